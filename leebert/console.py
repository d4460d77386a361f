"""Output of both programs: errors as one message, the log on stderr, JSON, tables, and quiet libraries."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError, LeebertError

#: Options of :mod:`textwrap` that keep numbers, paths and options whole.
_BETWEEN_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


#: Packages that commands import when they need them, by the extra of this distribution that installs them.
EXTRAS = {
    "train": ("torch", "transformers", "datasets", "pyarrow", "pandas", "scipy", "sklearn", "safetensors", "PIL"),
    "sweep": ("ray", "optuna", "mlflow", "matplotlib", "jinja2", "psutil", "plotly"),
    "serve": ("onnxruntime", "tokenizers", "fastapi", "starlette", "uvicorn", "uvloop", "aiohttp"),
    "export": ("onnx", "onnxscript"),
}

#: The packages beyond those of training that an export needs.
EXPORT_PACKAGES = (*EXTRAS["export"], "onnxruntime")


def missing_package(error: ModuleNotFoundError, own: str = "train") -> str | None:
    """Write which extra installs a package that is missing.

    Args:
        error: The error of its import.
        own: The extra of the program's commands, which includes that for training.

    Returns:
        One sentence; None for packages that are not in :data:`EXTRAS`.
    """
    package = (error.name or "").partition(".")[0]
    extra = next((name for name, packages in EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return (
        f"this command needs {package}, which is not installed: pip install "
        f"'leebert-sweep[{own if extra == 'train' else extra}]'"
    )


def missing_packages(*names: str) -> list[str]:
    """Return those packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def require_packages(extra: str, *names: str) -> None:
    """Refuse a command whose packages are not installed.

    Args:
        extra: The extra that installs them.
        *names: The packages.

    Raises:
        ConfigError: Some are not installed.
    """
    if missing := missing_packages(*names):
        raise ConfigError(f"this command needs {', '.join(missing)}: pip install 'leebert-sweep[{extra}]'")


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


def run(app: Callable[[], Any], *, timestamps: bool = False, extra: str = "train") -> None:
    """Run a command-line application.

    A :class:`LeebertError`, and a package of an extra that is not installed, becomes one message on stderr and exit code 1;
    Ctrl-C is exit code 130.

    Args:
        app: The application.
        timestamps: Whether the time of day precedes each logged message.
        extra: The extra of this distribution for the application's commands.
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
    except BrokenPipeError:  # `| head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ModuleNotFoundError as error:
        if (sentence := missing_package(error, extra)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that can't be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def quick_end() -> Iterator[None]:
    """Make the process end with the context's exit code without taking down the interpreter.

    With PyTorch and Ray loaded, that takes a second of CPU time, in which a terminal shows nothing. Threads are still waited
    for, and exit functions run: the one that ends the process is registered first, so it comes last.
    """
    code = 0
    atexit.register(lambda: _end(code))
    try:
        yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except BaseException:
        code = 1
        raise


def _end(code: int) -> None:
    logging.shutdown()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed before the start
        try:
            stream.flush()
        except BrokenPipeError:  # `| head` closed the pipe
            continue
        except OSError:  # a full disk
            code = code or 1
    os._exit(code)


def print_version(requested: bool) -> None:
    """Print the package's version and exit; the callback of `--version`."""
    if requested:
        import typer

        from leebert import __version__

        print(f"leebert-sweep {__version__}")
        raise typer.Exit


def _warn(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    # Only our own warnings: users can't act on a library's deprecations.
    root = Path(__file__).resolve().parent
    if root in (path := Path(filename)).parents or root.parent / "tune" in path.parents:
        print(f"warning: {message}", file=sys.stderr)


def emit_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=1, default=str))


def quiet_transformers() -> None:
    """Turn off the progress bars and hints of transformers; our own output reports progress."""
    from transformers.utils import logging as hf

    hf.set_verbosity_error()
    hf.disable_progress_bar()


def stderr_console() -> Any:
    """Make a console on stderr, for progress and tables, so that stdout holds results only."""
    from rich.console import Console

    return Console(stderr=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any] | None],
    *,
    title: str = "",
    left: int | Container[int] = 1,
    whole: int | Container[int] = 0,
    caption: Any = None,
    framed: bool = True,
    lean: bool = False,
    lines: bool = False,
) -> Any:
    """Make a table for the terminal.

    Args:
        columns: The headings.
        rows: The cells of each row, texts with markup or `rich.text.Text`; None draws a line between two groups of rows.
        title: Title above the table.
        left: Number of first columns that are left-aligned, or their places; the others are right-aligned.
        whole: Number of first columns that never wrap, or their places.
        caption: Caption below the table, a text with markup or a `rich.text.Text`.
        framed: Draw a frame, unless the table is lean or has lines.
        lean: Omit frame and padding, so that many columns fit 80 characters.
        lines: Draw a line after each row.

    Returns:
        A `rich.table.Table`, below its title.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    frame: dict[str, Any] = {"box": box.SIMPLE_HEAD} if lean or lines or not framed else {}
    if lean:
        frame |= {"padding": 0, "pad_edge": False, "show_edge": False}
    result = Table(caption=caption, caption_justify="left", show_lines=lines, **frame)
    left_aligned = range(left) if isinstance(left, int) else left
    unwrapped = range(whole) if isinstance(whole, int) else whole
    for number, name in enumerate(columns):
        justify: Any = "left" if number in left_aligned else "right"
        # A word that is longer than its column, such as a path, goes on in the next line instead of ending in `…`.
        result.add_column(name, justify=justify, no_wrap=number in unwrapped, overflow="fold")
    for row in rows:
        if row is None:
            result.add_section()
        else:
            result.add_row(*row)
    # Rich would wrap its own title to the width of the table.
    return Group(Text(title, style="italic"), result) if title else result


def listing(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with their descriptions, which on a terminal are wrapped beside the names."""
    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, text in rows:
        sentence(f"{name:<{width}}{text}", width)


def sentence(text: str, hanging: int = 0) -> None:
    """Print a sentence on stdout: on a terminal its lines end between words, elsewhere it stays one line.

    Args:
        text: The text; each of its lines is wrapped for itself.
        hanging: Columns by which the lines after the first one are indented, besides the indent of the text.
    """
    if not sys.stdout.isatty():
        print(text)
        return
    width = shutil.get_terminal_size().columns
    for line in text.splitlines() or [""]:
        indent = " " * (len(line) - len(line.lstrip()) + hanging)
        lines = textwrap.wrap(_joined(line), max(20, width), subsequent_indent=indent, **_BETWEEN_WORDS)
        print(*(part.replace(_UNBROKEN, " ") for part in lines or [""]), sep="\n")


#: A space at which textwrap does not break a line.
_UNBROKEN = "\u00a0"


def _joined(line: str) -> str:
    """Keep an interval, and a number with its unit, on one line."""
    line = line.replace(" % CI ", f"{_UNBROKEN}%{_UNBROKEN}CI{_UNBROKEN}").replace(" points", f"{_UNBROKEN}points")
    return re.sub(r"(?<=\d) to (?=[−\d])", f"{_UNBROKEN}to{_UNBROKEN}", line)


def next_step(command: str) -> None:
    """Print the command to run next, as one line that can be copied; on stderr where stdout is not a terminal.

    So stdout holds the result alone: `$(leebert-tune report NAME)` is a path.
    """
    print(f"next: {command}", file=sys.stdout if sys.stdout and sys.stdout.isatty() else sys.stderr)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns, the last one as it is: for addresses and names that are copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
