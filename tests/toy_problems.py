"""Toy problems that go wrong, each in one way."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toys import ThreeExitMLP, ToyProblem, toy_rows

from leebert.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class SlowRows:
    """Rows that take `pause` seconds a batch."""

    rows: Any
    pause: float

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Any:
        return self.rows.lengths

    def collate(self, indices: object) -> Any:
        time.sleep(self.pause)
        return self.rows.collate(indices)


def without_compiler() -> None:
    """Keep torch's compiler out of a worker, whose first optimiser imports it.

    That takes half the time that a worker needs to start, and longer than watchdogs of tests wait.
    """
    import torch

    compiler = types.ModuleType("torch._dynamo")
    compiler.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    compiler.graph_break = lambda: None  # type: ignore[attr-defined]
    sys.modules[compiler.__name__] = torch._dynamo = compiler


@dataclasses.dataclass(frozen=True)
class SlowProblem(ToyProblem):
    pause: float = 0.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        if Path(sys.argv[0]).name == "default_worker.py":
            without_compiler()
        self.__dict__.update(state)

    def rows(self) -> Any:
        return SlowRows(toy_rows(self.size), self.pause)


@dataclasses.dataclass(frozen=True)
class PlacedProblem(SlowProblem):
    """Takes its time, and tells in the folder `marks` where each cell runs."""

    marks: str = ""

    def model(self, config: TrainConfig) -> ThreeExitMLP:
        import ray

        context = ray.get_runtime_context()
        told = {
            "time": time.time(), "pid": os.getpid(), "node": context.get_node_id(),
            "config": f"{config.algorithm}-{config.lr_theta:g}", "accumulate": config.accumulate,
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "resources": context.get_assigned_resources(),
        }  # fmt: skip
        with open(Path(self.marks) / f"{told['pid']}.jsonl", "a") as f:
            f.write(json.dumps(told) + "\n")
        self.use(config, told["resources"])
        return super().model(config)

    def use(self, config: TrainConfig, resources: dict[str, float]) -> None:
        """What else a model needs."""


def told(marks: Path) -> list[dict[str, Any]]:
    """What problems told, in the order of their clocks."""
    lines = [json.loads(line) for path in marks.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["time"])


@dataclasses.dataclass(frozen=True)
class CrowdProblem(PlacedProblem):
    """Trials begin when `crowd` of them are there."""

    crowd: int = 1

    def use(self, config: TrainConfig, resources: dict[str, float]) -> None:
        deadline = time.monotonic() + 120
        while len(list(Path(self.marks).glob("*.jsonl"))) < self.crowd:
            assert time.monotonic() < deadline, "the others did not come"
            time.sleep(0.02)


@dataclasses.dataclass(frozen=True)
class GatheringProblem(CrowdProblem):
    """The very first cell runs at once."""

    def use(self, config: TrainConfig, resources: dict[str, float]) -> None:
        if len(told(Path(self.marks))) > 1:
            super().use(config, resources)


@dataclasses.dataclass(frozen=True)
class HungryProblem(PlacedProblem):
    """CLO-v2 fits into memory with a GPU to itself (at 1e-3), or in two parts on one (at 1e-2), BLO never."""

    def use(self, config: TrainConfig, resources: dict[str, float]) -> None:
        import torch

        alone = resources.get("GPU", 0) >= 1
        fits = {
            ("clo-v2", 1e-2): alone and config.accumulate >= 2,
            ("clo-v2", 1e-3): alone,
            ("blo", 1e-2): False,
        }
        if not fits[config.algorithm, config.lr_theta]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def sleep_for_ever() -> None:
    time.sleep(3600)


def keep_the_interpreter() -> None:
    """Sleep in C without giving up Python's lock: no thread of the process runs Python any more."""
    ctypes.PyDLL(None).sleep(3600)


def set_the_clock_back() -> None:
    """By an hour, for all Python code of this process."""
    real = time.time
    time.time = lambda: real() - 3600


@dataclasses.dataclass(frozen=True)
class TroubledRows(SlowRows):
    """The third batch of a process meets the next trouble that has not been met yet; files in `marks` say which have."""

    marks: str
    troubles: tuple[Callable[[], None], ...]

    def collate(self, indices: object) -> Any:
        batches.append(indices)
        left = [t for t in self.troubles if not Path(self.marks, t.__name__).exists()]
        if len(batches) == 3 and left:
            Path(self.marks, left[0].__name__).touch()
            left[0]()
        return super().collate(indices)


#: Of this process.
batches: list[Any] = []


@dataclasses.dataclass(frozen=True)
class TroubledProblem(SlowProblem):
    marks: str = ""
    troubles: tuple[Callable[[], None], ...] = ()

    def rows(self) -> Any:
        return TroubledRows(toy_rows(self.size), self.pause, self.marks, self.troubles)


#: The rate of the configuration that this process trains.
rates: list[float] = []


@dataclasses.dataclass(frozen=True)
class UnequalRows(TroubledRows):
    """At a rate of 1e-2 they meet troubles, at others they take their time."""

    def collate(self, indices: object) -> Any:
        if rates[-1] == 1e-2:
            return TroubledRows(self.rows, 0.0, self.marks, self.troubles).collate(indices)
        return SlowRows(self.rows, self.pause).collate(indices)


@dataclasses.dataclass(frozen=True)
class UnequalProblem(TroubledProblem):
    def rows(self) -> Any:
        return UnequalRows(toy_rows(self.size), self.pause, self.marks, self.troubles)

    def model(self, config: TrainConfig) -> ThreeExitMLP:
        rates.append(config.lr_theta)
        return super().model(config)
