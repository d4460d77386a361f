"""The results file: one Parquet row per cell, with all that tables and figures are drawn from, and what it belongs to."""

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

#: What rows differ in, so that it is no part of what they share.
VARIED = {"algorithm", "seed", "keep", *COST_ONLY}

#: Below this share of a processor, and above this difference between rounds, times are called rough.
BUSY, APART = 0.9, 0.05

#: Of the file's layout; another is not read.
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Costs:
    """What networks cost, by structure: parameters, multiply-adds up to each exit, seconds up to each exit under an exit criterion.

    machine: what the seconds were measured on. share, apart: how quiet it was (:class:`leebert.latency.ExitTimes`).
    """

    parameters: dict[str, int] = dataclasses.field(default_factory=dict)
    operations: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    machine: str = ""
    share: float = 1.0
    apart: float | None = None

    @property
    def sound(self) -> bool:
        """Whether the seconds are a good measure; of old ones nobody knows."""
        return self.apart is not None and not self.rough

    @property
    def rough(self) -> str:
        """Why the seconds are no good measure, in words; an empty text where nothing is known against them."""
        if self.share < BUSY:
            return f"the timing had a processor for {self.share:.0%} of the time"
        if (self.apart or 0.0) > APART:
            return f"the fastest of even and of odd rounds differ by up to {self.apart:.0%}"
        return ""


@dataclasses.dataclass(frozen=True)
class Results:
    """The cells of one task and backbone under one set of options, which `identity` names."""

    identity: dict[str, Any]
    cells: tuple[ReproducedCell, ...] = ()
    costs: Costs = dataclasses.field(default_factory=Costs)

    def with_cells(self, cells: Iterable[ReproducedCell]) -> Results:
        """These and the given ones, which replace those of the same method and seed."""
        joined = {cell.key: cell for cell in (*self.cells, *cells)}
        ordered = sorted(joined.values(), key=lambda c: (c.method, c.keep or 0.0, c.seed))
        return dataclasses.replace(self, cells=tuple(ordered))

    def of(self, method: str, keep: float | None) -> dict[int, ReproducedCell]:
        """A method's cells by seed."""
        return {cell.seed: cell for cell in self.cells if (cell.method, cell.keep) == (method, keep)}


def experiment_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say how two identities are not of one experiment, a line each; what only one of them knows is no difference."""
    return differences(was, now, sorted(was.keys() & now.keys()))


def read(path: Path) -> Results | None:
    """The results of a file, None where there is none. SweepError for one that is damaged."""
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
        # An option that came later had its default when these were trained.
        identity["training"] = TrainConfig().model_dump(mode="json", exclude=VARIED) | identity["training"]
        return Results(identity, cells, Costs(**about["costs"]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        detail = " ".join(str(error).split())[:200]
        raise SweepError(
            f"{path} can't be read as results ({type(error).__name__}: {detail}): put back a whole copy, or remove it; what the "
            "sweeps' folders hold is then collected again, and the rest trained"
        ) from None


def write(path: Path, results: Results) -> None:
    """Write the file, whole or not at all."""
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
    row = dataclasses.asdict(cell)
    for outcome in row["outcomes"]:
        outcome["measures"] = json.dumps(outcome["measures"])
        outcome["rule"] = outcome.pop("criterion")  # the column that files have
    return row


def _cell(row: dict[str, Any]) -> ReproducedCell:
    outcomes = [
        CriterionResult(criterion=o.pop("rule"), **{**o, "measures": json.loads(o["measures"])})
        for o in map(dict, row["outcomes"])
    ]
    return ReproducedCell(**{**row, "outcomes": outcomes})
