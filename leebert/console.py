"""What both command lines share: errors as one message, the log on stderr, JSON or tables, and quiet libraries."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leebert.errors import LeebertError

if TYPE_CHECKING:
    from rich.table import Table


class _Stderr(logging.Handler):
    """Prints each record on what is stderr at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


@contextlib.contextmanager
def log_to_stderr(timestamps: bool) -> Iterator[None]:
    """Print what `leebert` and `tune` log on stderr, one message a line; only the command lines do so.

    Args:
        timestamps: Whether the time of day precedes each message.
    """
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s" if timestamps else "%(message)s", "%H:%M:%S"))
    loggers = [logging.getLogger(name) for name in ("leebert", "tune")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # another library may have given the root logger a handler
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def run(app: Callable[[], Any], *, timestamps: bool = False) -> None:
    """Run a command-line application; an error of ours becomes one message on stderr and exit code 1, Ctrl-C 130.

    Args:
        app: The application.
        timestamps: Whether the time of day precedes each logged message.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    warnings.showwarning = _warn
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        with log_to_stderr(timestamps):
            app()
    except LeebertError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OverflowError as error:
        print(f"error: a number is too large for this machine: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a full disk, a folder that can't be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def print_version(asked: bool) -> None:
    """The callback of `--version`: print the package's version and end."""
    if asked:
        import typer

        from leebert import __version__

        print(f"leebert-sweep {__version__}")
        raise typer.Exit


def _warn(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    # Only ours: a user can do nothing about a library's deprecations.
    root = Path(__file__).resolve().parent
    if root in (path := Path(filename)).parents or root.parent / "tune" in path.parents:
        print(f"warning: {message}", file=sys.stderr)


def emit_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=1, default=str))


def quiet_transformers() -> None:
    """No progress bars and hints of transformers: our own output says what happens."""
    from transformers.utils import logging as hf

    hf.set_verbosity_error()
    hf.disable_progress_bar()


def stderr_console() -> Any:
    """A console for progress and tables that leaves stdout to results."""
    from rich.console import Console

    return Console(stderr=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any] | None],
    *,
    title: str = "",
    left: int | Container[int] = 1,
    whole: int = 0,
    caption: Any = None,
    framed: bool = True,
    lean: bool = False,
    lines: bool = False,
) -> Table:
    """Make a table for a terminal, as every command shows it.

    Args:
        columns: The headings.
        rows: The cells of each row, texts with markup or `rich.text.Text`; None draws a line between two groups of rows.
        title: What stands above it.
        left: How many columns, from the first, are flush left, or their places; the others are flush right.
        whole: How many columns, from the first, are never wrapped.
        caption: What stands below it: a text with markup, or a `rich.text.Text`.
        framed: Whether it has a frame, where it is not lean and has no lines.
        lean: Without a frame and padding, so that many columns fit 80 characters.
        lines: Whether a line follows each row.

    Returns:
        A `rich.table.Table`.
    """
    from rich import box
    from rich.table import Table

    frame: dict[str, Any] = {"box": box.SIMPLE_HEAD} if lean or lines or not framed else {}
    if lean:
        frame |= {"padding": 0, "pad_edge": False, "show_edge": False}
    heads = {"title": title or None, "title_justify": "left", "caption": caption, "caption_justify": "left"}
    made = Table(**heads, show_lines=lines, **frame)
    flush_left = range(left) if isinstance(left, int) else left
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number in flush_left else "right", no_wrap=number < whole)
    for row in rows:
        if row is None:
            made.add_section()
        else:
            made.add_row(*row)
    return made


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns, the last one as it is: for addresses and names that are copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
