"""What a comparison reads: one sweep, or several of one task where A stands in one and B in another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import ConfigError
from leebert.provenance import backbone_differences
from tune.analysis.compare import holds, means
from tune.analysis.learned import ConfigurationMargin, of_configuration, ratio_of
from tune.analysis.overview import UNFINISHED
from tune.analysis.stats import fold_ratio
from tune.space import SweepSpec
from tune.store.folder import SweepFolder, spec_of
from tune.store.ledger import State

#: What two sweeps must share for one's runs to be paired with the other's: all but the options that are searched.
SAME = ("data_fingerprint", "folds", "rows", "metric")


@dataclasses.dataclass(frozen=True)
class Pool:
    """The runs of one sweep, or of several: `homes` says in which folder a configuration's files lie.

    `unfinished` says what becomes of a sweep that isn't at its end, and is empty otherwise.
    """

    name: str
    folders: tuple[SweepFolder, ...]
    spec: SweepSpec
    state: State
    homes: Mapping[str, Path]
    running: bool
    unfinished: str
    planned: int | None

    @classmethod
    def of(cls, folder: SweepFolder, *, name: str = "", epochs: bool = False, state: State | None = None) -> Pool:
        """One sweep, as far as it has come. `epochs`: with the records of epochs, which weights over time need."""
        spec, running = spec_of(folder), folder.driver() is not None
        state = state or folder.ledger.read(epochs=epochs)
        status = state.status(running)
        at_end = status == "finished"
        complete = sum(c.state == "complete" for c in state.history())
        of = f" of {spec.planned}" if spec.planned else ""
        return cls(
            name=name or folder.name,
            folders=(folder,),
            spec=spec,
            state=state,
            homes=dict.fromkeys(state.configs, folder.path),
            running=running,
            unfinished=""
            if at_end
            else f"sweep {folder.name} {UNFINISHED.get(status, status)}, {complete}{of} configurations complete",
            planned=None if at_end else spec.planned,
        )

    @functools.cached_property
    def margins(self) -> dict[str, ConfigurationMargin]:
        """The complete configurations beside the majority class, by id, where their cells tell."""
        metric, ratio = self.manifest["metric"], ratio_of(self.spec, self.manifest)
        found = {
            c.id: of_configuration(self.homes[c.id], self.state.cells_of.get(c.id, ()), metric, ratio)
            for c in self.state.history()
            if c.state == "complete"
        }
        return {config: margin for config, margin in found.items() if margin is not None}

    @property
    def manifest(self) -> dict[str, Any]:
        """What the sweep, or the first of them, is made of."""
        return self.folders[0].manifest

    @property
    def test_train_ratio(self) -> float:
        """Held-out rows per training row in each cell, as the corrected intervals need it."""
        return fold_ratio(self.spec.folds) if self.spec.folds > 1 else float(self.manifest["test_train_ratio"])

    def has(self, option: str, value: str) -> bool:
        """Whether it searches this value of an option, begun or not."""
        if holds(self.state.history(), option, value):
            return True
        axis = self.spec.space.get(option)
        listed = self.spec.algorithms if option == "algorithm" else () if axis is None else axis.listed() or ()
        return any(str(value).lower() == str(v).lower() or _number(value) == v for v in listed)

    def narrowed(self, option: str, a: str, b: str) -> Pool:
        """Without the configurations that stand on neither side."""
        configs = {id: c for id, c in self.state.configs.items() if any(means(s, c.values.get(option)) for s in (a, b))}
        return dataclasses.replace(self, state=dataclasses.replace(self.state, configs=configs))

    def scores(self) -> dict[tuple[str, int, int], float]:
        """The score of every finished cell."""
        return {key: r["score"] for key, r in self.state.cells.items() if r.get("score") is not None}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def pools(folders: Sequence[SweepFolder], option: str, a: str, b: str, *, epochs: bool = False) -> list[Pool]:
    """One per sweep; the sweeps of a task in which none has both sides are joined into one.

    ConfigError for a sweep that is named twice, as itself or as a copy, and where no task has both sides.
    """
    paths = [folder.path.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ConfigError(f"{twice} is named twice: it would count twice")
    names = [folder.name for folder in folders]
    named = [f.name if names.count(f.name) == 1 else str(f.path) for f in folders]
    single = [Pool.of(folder, name=name, epochs=epochs) for folder, name in zip(folders, named, strict=True)]
    _refuse_copies(single)
    by_task: dict[str, list[Pool]] = {}
    for pool in single:
        by_task.setdefault(pool.spec.task_name, []).append(pool)
    _require_common_task(by_task, option, a, b)
    told = []
    for mine in by_task.values():
        apart = len(mine) > 1 and not any(p.has(option, a) and p.has(option, b) for p in mine)
        told += [_joined([p.narrowed(option, a, b) for p in mine])] if apart else mine
    return told


def _refuse_copies(found: Sequence[Pool]) -> None:
    """Two sweeps of the same data and folds of which one holds the other's scores to the last bit."""
    for i, one in enumerate(found):
        for other in found[:i]:
            same = all(
                one.manifest.get(key) == other.manifest.get(key) for key in ("task", "data_fingerprint", "folds")
            )
            less, more = sorted((one.scores(), other.scores()), key=len)
            if same and one.spec.task_name == other.spec.task_name and less and less.items() <= more.items():
                raise ConfigError(
                    f"{other.name} and {one.name} hold the same runs of {one.spec.task_name}, which would count twice: "
                    "name one of them"
                )


def _require_common_task(by_task: Mapping[str, Sequence[Pool]], option: str, a: str, b: str) -> None:
    of_a, of_b = ([task for task, mine in by_task.items() if any(p.has(option, s) for p in mine)] for s in (a, b))
    if of_a and of_b and not set(of_a) & set(of_b):
        raise ConfigError(
            f"no common tasks: {option} {a} is in sweeps of {', '.join(of_a)}, {b} in sweeps of {', '.join(of_b)}"
        )


def _other_backbone(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    was, now = one.get("backbone"), other.get("backbone")
    return was != now and (not was or not now or bool(backbone_differences(was, now)))


def _joined(found: Sequence[Pool]) -> Pool:
    """Several sweeps of one task as one. ConfigError where they differ in more than what they search."""
    first, *others = found
    configs = dict(first.state.configs)
    state = State(configs=configs, indices=dict(first.state.indices), cells=dict(first.state.cells))
    state.epochs = dict(first.state.epochs)
    homes = dict(first.homes)
    for other in others:
        differ = [key for key in SAME if first.manifest.get(key) != other.manifest.get(key)]
        differ += ["backbone"] if _other_backbone(first.manifest, other.manifest) else []
        differ += [key for key in ("seeds", "training") if getattr(first.spec, key) != getattr(other.spec, key)]
        # A backbone is the same by its files, wherever they lay.
        models = [one.spec.model.model_copy(update={"backbone": ""}) for one in (first, other)]
        differ += ["model"] if models[0] != models[1] else []
        if differ:
            raise ConfigError(
                f"{first.name} and {other.name} are sweeps of {first.spec.task_name} with different "
                f"{', '.join(dict.fromkeys(differ))}: their runs can't be paired"
            )
        if common := configs.keys() & other.state.configs.keys():
            raise ConfigError(f"{first.name} and {other.name} share configurations ({min(common)}): name one of them")
        configs.update(other.state.configs)
        state.indices.update(other.state.indices)
        state.cells.update(other.state.cells)
        state.epochs.update(other.state.epochs)
        homes.update(other.homes)
    planned = [p.planned or len(p.state.configs) for p in found]
    return Pool(
        name=" + ".join(p.name for p in found),
        folders=tuple(folder for p in found for folder in p.folders),
        spec=first.spec,
        state=state,
        homes=homes,
        running=any(p.running for p in found),
        unfinished="; ".join(p.unfinished for p in found if p.unfinished),
        planned=sum(planned) if any(p.planned for p in found) else None,
    )
