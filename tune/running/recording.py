"""Record the epochs of a sweep's completed configurations for a simulation, from its ledger or from a small copy.

A copy is a folder with `space.yaml`, the sweep's space, and `scores.json`, its scores and seconds by configuration, cell
(seed, fold) and epoch. It omits the scores of single exits, which no searcher and no pruner reads.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leebert.errors import SweepError
from leebert.files import parse_json
from tune.space import SweepSpec, config_id, load_space, resolved_yaml
from tune.space.sections import PartSpec
from tune.store.folder import SweepFolder
from tune.store.ledger import LedgerRecord, SweepState
from tune.store.ranking import completed, mean_and_std

_SPACE, _SCORES = "space.yaml", "scores.json"


@dataclasses.dataclass(frozen=True)
class RecordedCell:
    """The epochs of a finished cell.

    Attributes:
        seed: The cell's seed.
        fold: Its validation fold, from 0.
        scores: The validation score of each epoch, a fraction; None if not finite.
        seconds: The duration of each epoch.
        best_epoch: The epoch with the best score, from 0.
        ended: Why training ended, as the ledger has it.
    """

    seed: int
    fold: int
    scores: tuple[float | None, ...]
    seconds: tuple[float, ...]
    best_epoch: int
    ended: str

    @property
    def score(self) -> float:
        """The validation score at the best epoch, a fraction."""
        score = self.scores[self.best_epoch]
        assert score is not None  # the best epoch has a finite score
        return score

    def reports(self, config: str) -> Iterator[tuple[float, list[LedgerRecord]]]:
        """Yield the seconds of each epoch, and the records that a trial sends to the driver after it."""
        cell = {"config": config, "attempt": 1, "seed": self.seed, "fold": self.fold, "time": 0.0, "exits": {}}
        last = len(self.scores) - 1
        for i, (score, seconds) in enumerate(zip(self.scores, self.seconds, strict=True)):
            epoch = {"epoch": i, "score": score, "seconds": seconds, "ended": self.ended if i == last else None}
            records = [{**cell, "kind": "epoch", "seq": 0, "collapsed": (), **epoch}]
            if i == last:
                end = {"best_epoch": self.best_epoch, "score": self.score, "epochs": i + 1}
                total = {"seconds": sum(self.seconds), "ended": self.ended}
                records.append({**cell, "kind": "cell_end", "seq": 0, **end, **total})
            yield seconds, records


@dataclasses.dataclass(frozen=True)
class RecordedConfiguration:
    """A completed configuration with its cells in the sweep's order."""

    values: dict[str, Any]
    cells: tuple[RecordedCell, ...]

    @property
    def epochs(self) -> int:
        """The number of epochs over all cells."""
        return sum(len(cell.scores) for cell in self.cells)

    @property
    def score(self) -> float:
        """The validation score, a mean over all cells."""
        return mean_and_std(cell.score for cell in self.cells).mean

    @functools.cached_property
    def reports(self) -> list[tuple[float, list[LedgerRecord]]]:
        """All reports in their order, see :meth:`RecordedCell.reports`."""
        return [report for cell in self.cells for report in cell.reports(config_id(self.values))]


@dataclasses.dataclass(frozen=True)
class Recording:
    """The completed configurations of a sweep in the order of their suggestion.

    Attributes:
        name: The sweep's name.
        space: The file of its space.
        configurations: The completed configurations.
        left_out: The number of the others.
    """

    name: str
    space: Path
    configurations: tuple[RecordedConfiguration, ...]
    left_out: int = 0

    @classmethod
    def find(cls, name: str, storage: str | None = None) -> Recording:
        """Load a sweep's recording by name or folder, or a copy by its folder.

        Args:
            name: A sweep's name or folder, or the folder of a copy.
            storage: The folder of the sweeps; by default LEEBERT_STORAGE, else ./sweeps.

        Raises:
            SweepError: Fewer than two configurations are complete, or a copy can't be read.
        """
        if (Path(name) / _SCORES).is_file():
            return cls._load(Path(name))
        folder = SweepFolder.find(name, storage)
        state = folder.ledger.read()
        recorded = recorded_configurations(state)
        if len(recorded) < 2:
            raise SweepError(
                f"sweep {folder.name}: {len(recorded)} of its {len(state.configs)} configurations are completed; "
                "a simulation needs two at least, from a sweep with `pruner: none`"
            )
        return cls(folder.name, folder.path / _SPACE, recorded, len(state.configs) - len(recorded))

    @classmethod
    def _load(cls, folder: Path) -> Recording:
        try:
            content = parse_json((folder / _SCORES).read_text())
            cells = [[RecordedCell(**_tuples(cell)) for cell in c["cells"]] for c in content["configurations"]]
            values = [c["values"] for c in content["configurations"]]
            name, left_out = content["sweep"], content["left_out"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SweepError(
                f"{folder / _SCORES} can't be read as a copy of a sweep's scores: {error!r}; rewrite it by: "
                "leebert-tune simulate SWEEP --save FOLDER"
            ) from None
        both = zip(values, cells, strict=True)
        return cls(name, folder / _SPACE, tuple(RecordedConfiguration(v, tuple(c)) for v, c in both), left_out)

    def save(self, folder: Path) -> None:
        """Write a copy that :meth:`find` reads, without paths and addresses of this machine."""
        spec = self.spec()
        changes = {
            "data": spec.data.model_copy(update={"dir": None}),
            "storage": None,
            "tracking": type(spec.tracking)(),
        }
        content = {
            "sweep": self.name,
            "left_out": self.left_out,
            "configurations": [dataclasses.asdict(c) for c in self.configurations],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SPACE).write_text(resolved_yaml(spec.model_copy(update=changes)))
        lines = json.dumps(content).replace('{"values"', '\n{"values"').replace('{"seed"', '\n {"seed"')
        (folder / _SCORES).write_text(lines + "\n")

    def spec(self, overrides: Sequence[str] = ()) -> SweepSpec:
        """Load the sweep's space, with ``key=value`` overrides."""
        return load_space(self.space, overrides)

    def spec_with(self, pruner: str, searcher: str, overrides: Sequence[str] = ()) -> SweepSpec:
        """Load the sweep's space with another pruner and searcher.

        Args:
            pruner: Name of the pruner.
            searcher: Name of the searcher.
            overrides: Further assignments ``key=value``.

        Returns:
            The validated space.
        """
        spec = self.spec()
        return self.spec(
            [_renamed("pruner", spec.pruner, pruner), _renamed("searcher", spec.searcher, searcher), *overrides]
        )


def _renamed(section: str, recorded: PartSpec, name: str) -> str:
    """Return the override that names another plugin; options that only the recorded plugin of another package has are dropped."""
    registry = recorded.registry
    if name == recorded.name or recorded.name in registry.built_in:
        return f"{section}.name={name}"
    rows = [registry[other] for other in (*registry.built_in, name) if other in registry]
    valid = {option for row in rows for option in row.options.model_fields}
    options = {key: value for key, value in (recorded.model_extra or {}).items() if key in valid}
    return f"{section}={json.dumps({'name': name, **options})}"


def recorded_configurations(state: SweepState) -> tuple[RecordedConfiguration, ...]:
    """Return the completed configurations of a ledger's state."""
    return tuple(
        RecordedConfiguration(
            dict(c.values), tuple(_recorded_cell(state, (c.id, cell.seed, cell.fold)) for cell in c.cells)
        )
        for c in completed(state.history())
    )


def _recorded_cell(state: SweepState, key: tuple[str, int, int]) -> RecordedCell:
    epochs, end = [r for _, r in sorted(state.epochs[key].items())], state.cells[key]
    scores, seconds = tuple(r["score"] for r in epochs), tuple(r["seconds"] for r in epochs)
    return RecordedCell(key[1], key[2], scores, seconds, end["best_epoch"], end["ended"])


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
