"""Loaded sweeps: one, or several of one task whose runs are joined where A is in one and B in another."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError
from leebert.metrics import METRICS
from leebert.provenance import backbone_differences
from tune.analysis.compare import has_value, matches
from tune.analysis.learned import ConfigurationMargin, margins_of, ratio_of
from tune.analysis.overview import UNFINISHED
from tune.analysis.stats import Interval, corrected_t
from tune.space import SweepSpec
from tune.store.curves import CellCurves
from tune.store.folder import SweepFolder, spec_of
from tune.store.ledger import SweepState

#: What must agree between sweeps for their scores to be comparable: the same samples in the same folds, one metric.
SAME = ("data_fingerprint", "folds", "rows", "metric")


@dataclasses.dataclass(frozen=True)
class LoadedSweep:
    """A sweep as read from its folder at one time.

    Attributes:
        folder: Its folder.
        spec: Its search space.
        manifest: Its manifest.
        state: What its ledger holds.
        status: `running`, `finished`, `stopped`, `failed` or `died`.
    """

    folder: SweepFolder
    spec: SweepSpec
    manifest: dict[str, Any]
    state: SweepState
    status: str

    @classmethod
    def read(cls, folder: SweepFolder, *, epochs: bool = False) -> LoadedSweep:
        """Read a sweep's folder.

        Args:
            folder: The folder.
            epochs: Whether to read the records of epochs, which learning curves and weights need.

        Raises:
            SweepError: The manifest or the ledger is damaged.
            ConfigError: The space is damaged.
        """
        running = folder.driver() is not None
        state = folder.ledger.read(epochs=epochs)
        return cls(folder, spec_of(folder), folder.manifest, state, state.status(running))

    @property
    def name(self) -> str:
        return self.folder.name

    @functools.cached_property
    def curve_of(self) -> CellCurves:
        """The curves of its runs under the default criterion, by their end records."""
        return CellCurves(self.folder.path)


def require_alike(sweeps: Sequence[LoadedSweep], *, paired: bool = False) -> None:
    """Refuse sweeps of one task whose scores are not comparable.

    Args:
        sweeps: The sweeps.
        paired: Whether to pair runs of different sweeps. Then these may only differ in the options that
            are searched.

    Raises:
        ConfigError: They differ; the message lists the differences.
    """
    first, *others = sweeps
    for other in others:
        differ = [key for key in SAME if other.manifest[key] != first.manifest[key]]
        differ += ["seeds"] if other.spec.seeds != first.spec.seeds else []
        if paired:
            differ += ["backbone"] if _other_backbone(first.manifest, other.manifest) else []
            differ += ["training"] if other.spec.training != first.spec.training else []
            # A backbone is identified by its files, whatever their path.
            models = [one.spec.model.model_copy(update={"backbone": ""}) for one in (first, other)]
            differ += ["model"] if models[0] != models[1] else []
        if differ:
            raise ConfigError(
                f"{first.name} and {other.name} are sweeps of {first.spec.task_name} with different {', '.join(differ)}: "
                f"their {'runs' if paired else 'scores'} can't be {'paired' if paired else 'compared'}"
            )


def _other_backbone(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    was, now = one.get("backbone"), other.get("backbone")
    return was != now and (not was or not now or bool(backbone_differences(was, now)))


@dataclasses.dataclass(frozen=True)
class SweepPool:
    """The runs of one sweep, or of several sweeps of one task.

    Attributes:
        name: The sweeps' names.
        sweeps: The sweeps.
        state: What their ledgers hold, joined.
        homes: The folder of each configuration's files.
        unfinished: A phrase on the sweeps that are not finished; empty if all are.
        planned: The number of planned configurations; None if all sweeps are finished.
        cache: What analyses have read of its runs.
    """

    name: str
    sweeps: tuple[LoadedSweep, ...]
    state: SweepState
    homes: Mapping[str, Path]
    unfinished: str
    planned: int | None
    cache: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, folder: SweepFolder, *, name: str = "", epochs: bool = False) -> SweepPool:
        """Load one sweep.

        Args:
            folder: Its folder.
            name: Its name in messages; empty: its own.
            epochs: Load the records of epochs, which learning curves and weights need.

        Returns:
            A pool of one sweep.
        """
        sweep = LoadedSweep.read(folder, epochs=epochs)
        spec, state, status = sweep.spec, sweep.state, sweep.status
        at_end = status == "finished"
        complete = sum(c.state == "complete" for c in state.history())
        of = f" of {spec.planned}" if spec.planned else ""
        return cls(
            name=name or folder.name,
            sweeps=(sweep,),
            state=state,
            homes=dict.fromkeys(state.configs, folder.path),
            unfinished=""
            if at_end
            else f"sweep {folder.name} {UNFINISHED.get(status, status)}, {complete}{of} configurations completed",
            planned=None if at_end else spec.planned,
        )

    @property
    def spec(self) -> SweepSpec:
        return self.sweeps[0].spec

    @property
    def running(self) -> bool:
        return any(sweep.status == "running" for sweep in self.sweeps)

    @functools.cached_property
    def margins(self) -> dict[str, ConfigurationMargin]:
        """Margins of the completed configurations over the majority class, by id, if known."""
        done = [c.id for c in self.state.history() if c.state == "complete"]
        ends = {config: self.state.cells_of.get(config, ()) for config in done}
        return margins_of(ends, self.homes, self.spec, self.manifest)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the first sweep."""
        return self.sweeps[0].manifest

    @property
    def test_train_ratio(self) -> float:
        """Validation samples per training sample in each run, for the corrected intervals."""
        return ratio_of(self.spec, self.manifest)

    def score_interval(self, scores: Sequence[float]) -> Interval:
        """Return the mean of (runs,) scores with its corrected interval, which ends at the least and the largest score."""
        return corrected_t(scores, self.test_train_ratio).clipped(*self.score_range)

    @property
    def score_range(self) -> tuple[float, float]:
        """The least and the largest score of the task's metric; any number if it is not installed here."""
        metric = METRICS.find(self.manifest["metric"])
        return (-math.inf, math.inf) if metric is None else (metric.lowest, 1.0)

    def has(self, option: str, value: str) -> bool:
        """Return whether the space has this value of an option, begun or not."""
        if has_value(self.state.history(), option, value):
            return True
        axis = self.spec.space.get(option)
        listed = self.spec.algorithms if option == "algorithm" else () if axis is None else axis.listed() or ()
        return any(str(value).lower() == str(v).lower() or _number(value) == v for v in listed)

    def narrowed(self, option: str, a: str, b: str) -> SweepPool:
        """Drop the configurations that are on neither side of a comparison.

        Args:
            option: Name of the compared option.
            a: Its value on the first side, as text.
            b: Its value on the second side, as text.

        Returns:
            The pool with the other configurations.
        """
        configs = {
            id: c for id, c in self.state.configs.items() if any(matches(s, c.values.get(option)) for s in (a, b))
        }
        return dataclasses.replace(self, state=dataclasses.replace(self.state, configs=configs))

    def scores(self) -> dict[tuple[str, int, int], float]:
        """Return the score of every finished run."""
        return {key: r["score"] for key, r in self.state.cells.items() if r.get("score") is not None}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def load_pools(folders: Sequence[SweepFolder], option: str, a: str, b: str, *, epochs: bool = False) -> list[SweepPool]:
    """Load sweeps for a comparison, joining the sweeps of a task in which none has both sides.

    Args:
        folders: The sweeps.
        option: Name of the compared option.
        a: Its value on the first side, as text.
        b: Its value on the second side, as text.
        epochs: Load the records of epochs, which figures need.

    Returns:
        One pool per sweep, or per joined task.

    Raises:
        ConfigError: A sweep is named twice, or a copy of it is named, or no task has both sides.
    """
    paths = [folder.path.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"{twice} is named twice; name it once")
    names = [folder.name for folder in folders]
    labels = [f.name if names.count(f.name) == 1 else str(f.path) for f in folders]
    single = [SweepPool.of(folder, name=name, epochs=epochs) for folder, name in zip(folders, labels, strict=True)]
    _refuse_copies(single)
    by_task: dict[str, list[SweepPool]] = {}
    for pool in single:
        by_task.setdefault(pool.spec.task_name, []).append(pool)
    _require_common_task(by_task, option, a, b)
    pools = []
    for pools_of_task in by_task.values():
        apart = len(pools_of_task) > 1 and not any(p.has(option, a) and p.has(option, b) for p in pools_of_task)
        pools += [_joined([p.narrowed(option, a, b) for p in pools_of_task])] if apart else pools_of_task
    return pools


def _refuse_copies(pools: Sequence[SweepPool]) -> None:
    """Raise an error if a sweep is a copy of another: same data and folds, and bitwise equal scores."""
    for i, one in enumerate(pools):
        for other in pools[:i]:
            identical = all(
                one.manifest.get(key) == other.manifest.get(key) for key in ("task", "data_fingerprint", "folds")
            )
            less, more = sorted((one.scores(), other.scores()), key=len)
            if identical and one.spec.task_name == other.spec.task_name and less and less.items() <= more.items():
                raise ConfigError(
                    f"{other.name} and {one.name} hold the same runs of {one.spec.task_name}, which would count twice: "
                    "name one of them"
                )


def _require_common_task(by_task: Mapping[str, Sequence[SweepPool]], option: str, a: str, b: str) -> None:
    of_a, of_b = (
        [task for task, pools_of_task in by_task.items() if any(p.has(option, s) for p in pools_of_task)]
        for s in (a, b)
    )
    if of_a and of_b and not set(of_a) & set(of_b):
        raise ConfigError(
            f"no common tasks: {option} {a} is in sweeps of {', '.join(of_a)}, {b} in sweeps of {', '.join(of_b)}"
        )


def _joined(pools: Sequence[SweepPool]) -> SweepPool:
    """Join several sweeps of one task. Raises ConfigError if they differ in anything but their search."""
    require_alike([sweep for pool in pools for sweep in pool.sweeps], paired=True)
    first, *others = pools
    configs = dict(first.state.configs)
    state = SweepState(configs=configs, indices=dict(first.state.indices), cells=dict(first.state.cells))
    state.epochs = dict(first.state.epochs)
    homes = dict(first.homes)
    for other in others:
        if common := configs.keys() & other.state.configs.keys():
            raise ConfigError(f"{first.name} and {other.name} share configurations ({min(common)}): name one of them")
        configs.update(other.state.configs)
        state.indices.update(other.state.indices)
        state.cells.update(other.state.cells)
        state.epochs.update(other.state.epochs)
        homes.update(other.homes)
    planned = [p.planned or len(p.state.configs) for p in pools]
    return SweepPool(
        name=" + ".join(p.name for p in pools),
        sweeps=tuple(sweep for p in pools for sweep in p.sweeps),
        state=state,
        homes=homes,
        unfinished="; ".join(p.unfinished for p in pools if p.unfinished),
        planned=sum(planned) if any(p.planned for p in pools) else None,
    )
