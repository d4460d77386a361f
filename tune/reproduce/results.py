"""Read and write the results file: one Parquet row per run, with all data of tables and figures, and the experiment's identity."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from leebert.config import COST_ONLY, TrainConfig
from leebert.errors import SweepError
from leebert.files import replaced
from leebert.provenance import differences
from tune.reproduce.outcomes import CriterionResult, ReproducedCell

#: Training options in which the runs of one experiment differ.
VARIED = {"algorithm", "seed", "keep", *COST_ONLY}

#: Times are rough if the timing had less than this share of a processor, or its rounds differ by more than this share.
BUSY, APART = 0.9, 0.05

#: The version of the file's layout; other versions are refused.
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of networks, by structure.

    Attributes:
        parameters: The number of parameters.
        operations: Multiply-adds up to each exit, (M,).
        seconds: Seconds per sample up to each exit, (M,), by exit criterion.
        machine: What the seconds were measured on.
        share: The share of a processor that the timing had (:class:`leebert.latency.ExitTimes`).
        apart: The relative difference between rounds; None if not measured.
    """

    parameters: dict[str, int] = dataclasses.field(default_factory=dict)
    operations: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    machine: str = ""
    share: float = 1.0
    apart: float | None = None

    @property
    def sound(self) -> bool:
        """Whether the seconds are reliable; old files don't record it and count as unreliable."""
        return self.apart is not None and not self.rough

    @property
    def rough(self) -> str:
        """The reason why the seconds are unreliable; empty if they are reliable."""
        if self.share < BUSY:
            return f"the timing had a processor for {self.share:.0%} of the time"
        if (self.apart or 0.0) > APART:
            return f"the fastest of even and of odd rounds differ by up to {self.apart:.0%}"
        return ""


@dataclasses.dataclass(frozen=True)
class Results:
    """The runs of one task and backbone under one set of options.

    Attributes:
        identity: What all runs share: task, data, folds, backbone and training options.
        cells: The runs.
        costs: The costs of their networks.
    """

    identity: dict[str, Any]
    cells: tuple[ReproducedCell, ...] = ()
    costs: Costs = dataclasses.field(default_factory=Costs)

    def with_cells(self, cells: Iterable[ReproducedCell]) -> Results:
        """Return the results with further runs, which replace those of the same method, share kept and seed."""
        joined = {cell.key: cell for cell in (*self.cells, *cells)}
        ordered = sorted(joined.values(), key=lambda c: (c.method, c.keep or 0.0, c.seed))
        return dataclasses.replace(self, cells=tuple(ordered))

    def of(self, method: str, keep: float | None) -> dict[int, ReproducedCell]:
        """Return the runs of a method and share kept, by seed."""
        return {cell.seed: cell for cell in self.cells if (cell.method, cell.keep) == (method, keep)}


def experiment_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List how two identities differ, a line each; keys that only one of them has are ignored."""
    return differences(was, now, sorted(was.keys() & now.keys()))


def read(path: Path) -> Results | None:
    """Read the results file.

    Args:
        path: The file.

    Returns:
        The results; None if there is no file.

    Raises:
        SweepError: The file is damaged or of another version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"reproduce"])
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}, not {FORMAT}")
        cells = tuple(_cell(row) for row in table.to_pylist())
        identity = dict(about["identity"])
        # Options that the file lacks are newer than it; the runs had their defaults.
        identity["training"] = TrainConfig().model_dump(mode="json", exclude=VARIED) | identity["training"]
        return Results(identity, cells, Costs(**about["costs"]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise SweepError(
            f"{path} can't be read as results ({type(error).__name__}: {detail}): restore a copy, or remove the file; the same "
            "command then collects the finished runs from the sweeps' folders and trains the others"
        ) from None


def write(path: Path, results: Results) -> None:
    """Write the results file atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {"format": FORMAT, "identity": results.identity, "costs": dataclasses.asdict(results.costs)}
    rows = [_plain(cell) for cell in results.cells]
    table = pa.Table.from_pylist(rows, schema=_schema()).replace_schema_metadata({"reproduce": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _schema() -> Any:
    import pyarrow as pa

    text, real, whole = pa.string(), pa.float64(), pa.int64()
    outcome = pa.struct(
        [
            ("rule", text), ("threshold", real), ("held_out", real), ("layers", real), ("speed_up", real),
            ("score", real), ("measures", text), ("counts", pa.list_(whole)),
        ]
    )  # fmt: skip
    return pa.schema(
        [
            ("method", text), ("keep", real), ("seed", whole), ("configuration", text), ("code", text),
            ("held_out_score", real), ("exits", pa.list_(real)), ("exit_layers", pa.list_(whole)), ("depth", whole),
            ("structure", text), ("best_epoch", whole), ("epochs", whole), ("minutes_to_best", real),
            ("runtime", text), ("outcomes", pa.list_(outcome)),
        ]
    )  # fmt: skip


def _plain(cell: ReproducedCell) -> dict[str, Any]:
    """Convert a run to a row of the file."""
    row = dataclasses.asdict(cell)
    for outcome in row["outcomes"]:
        outcome["measures"] = json.dumps(outcome["measures"])
        outcome["rule"] = outcome.pop("criterion")  # the file keeps the former column name
    return row


def _cell(row: dict[str, Any]) -> ReproducedCell:
    outcomes = [
        CriterionResult(criterion=o.pop("rule"), **{**o, "measures": json.loads(o["measures"])})
        for o in map(dict, row["outcomes"])
    ]
    return ReproducedCell(**{**row, "outcomes": outcomes})
