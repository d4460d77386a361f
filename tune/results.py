"""The results table: every metric of every exit at every epoch, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tune.ledger import State

COLUMNS = (
    "sweep", "task", "configuration", "algorithm", "seed", "fold", "epoch", "theta_updates", "exit", "metric", "value", "seconds",
)  # fmt: skip


def table(state: State, sweep: str, task: str) -> Any:
    """A pyarrow table with one row per cell, epoch, exit (from 1) and metric; `score` is the task's metric."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for (config, seed, fold), epochs in state.epochs.items():
        algorithm = state.configs[config].values.get("algorithm", "")
        for epoch, record in sorted(epochs.items()):
            by_exit = {**record["exits"], **{f"omega_{k}": v for k, v in record["weights"].items()}}
            for metric, values in by_exit.items():
                for exit_, value in enumerate(values, start=1):
                    row = (
                        sweep, task, config, algorithm, seed, fold, epoch, record["theta_updates"], exit_, metric, value,
                        record["seconds"],
                    )  # fmt: skip
                    for name, cell in zip(COLUMNS, row, strict=True):
                        columns[name].append(cell)
    types = {
        "seed": pa.int64(),
        "fold": pa.int32(),
        "epoch": pa.int32(),
        "theta_updates": pa.int64(),
        "exit": pa.int32(),
    }
    types |= {"value": pa.float64(), "seconds": pa.float64()}
    return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()})


def write(path: Path, state: State, sweep: str, task: str) -> None:
    """Write the table; an older one is replaced at once or not at all."""
    import pyarrow.parquet as pq

    temporary = path.with_suffix(".tmp")
    pq.write_table(table(state, sweep, task), temporary, compression="zstd")
    temporary.replace(path)
