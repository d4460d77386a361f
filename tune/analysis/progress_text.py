"""The progress of a sweep as lines of text, for the live display and for `status`."""

from __future__ import annotations

import textwrap

from leebert.live import bar, duration
from tune.analysis.progress import BestSoFar, RunningConfiguration, SweepProgress

#: Lines that the display needs beside those of the running configurations.
_OTHERS = 7


def progress_lines(progress: SweepProgress, width: int, height: int = 24, unicode: bool = True) -> list[str]:
    """Describe a sweep's progress.

    Args:
        progress: The progress.
        width: Columns of the terminal; longer lines are wrapped between words.
        height: Its lines; of more running configurations than fit, the first ones are shown.
        unicode: Whether the terminal shows more than ASCII.

    Returns:
        The lines.
    """
    planned = f" of {progress.planned}" if progress.planned is not None else ""
    full = f"{bar(progress.done, progress.planned, unicode)}  " if progress.planned else ""
    lines = _wrapped(f"{progress.name}  {full}{progress.done}{planned} runs", width)
    lines += _wrapped(_second_line(progress), width)
    shown: list[str] = []
    for number, one in enumerate(progress.running):
        entry = _wrapped(running_line(one), width, "  ")
        if number and len(shown) + len(entry) > max(2, height - _OTHERS):
            shown.append(f"  and {len(progress.running) - number} more")
            break
        shown += entry
    lines += shown
    if progress.best:
        lines += _wrapped(best_line(progress.best), width)
    if progress.stopping:
        lines += _wrapped(f"stopping: {progress.stopping}; waiting for the trials to end", width)
    return lines


def _second_line(progress: SweepProgress) -> str:
    """Return the configurations by state, and the times."""
    counts = ", ".join(f"{n} {'completed' if word == 'complete' else word}" for word, n in progress.counts.items())
    parts = [f"configurations: {counts or 'none yet'}"]
    if progress.seconds is not None:
        parts.append(f"{duration(progress.seconds)} so far")
    if progress.seconds_left is not None:
        parts.append(f"about {duration(progress.seconds_left)} left")
    return "; ".join(parts)


def best_line(best: BestSoFar) -> str:
    """Describe the best configuration so far: its score, its runs, and its margin over the majority class."""
    counted = f"{best.runs} of {best.of_runs}" if best.runs < best.of_runs else str(best.runs)
    runs = f"{counted} run{'' if best.of_runs == 1 else 's'}"
    margin = f"; over the majority class: {best.margin}" if best.margin else ""
    return f"best so far: {best.name}: {100 * best.score:.2f} ({runs}){margin}"


def running_line(one: RunningConfiguration) -> str:
    """Describe a configuration that is training: its present run, fold, epoch, last score, elapsed and remaining time."""
    name = f"[{one.index}] {one.name}: "
    if one.queued:
        return f"{name}waits for a free CPU or GPU"
    parts = [f"run {one.run} of {one.runs} (seed {one.seed}, fold {one.fold})"]
    parts.append(f"epoch {min(one.epochs + 1, one.most_epochs)} of {one.most_epochs}")
    if one.score is not None:
        parts.append(f"score {100 * one.score:.2f}")
    if one.seconds is not None:
        parts.append(f"{duration(one.seconds)} so far")
    if one.seconds_left is not None:
        parts.append(f"about {duration(one.seconds_left)} left")
    return name + ", ".join(parts)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Wrap a line between words."""
    return textwrap.wrap(
        text, max(20, width), initial_indent=indent, subsequent_indent=f"{indent}    ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
