"""The results table: every metric of every exit at every epoch, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leebert.files import replaced
from tune.store.ledger import LedgerRecord, SweepState

COLUMNS = (
    "sweep", "task", "configuration", "algorithm", "seed", "fold", "epoch", "theta_updates", "exit", "metric", "value", "seconds",
)  # fmt: skip


def schema() -> Any:
    """Return the table's columns and types."""
    import pyarrow as pa

    types = {
        "seed": pa.int64(),
        "fold": pa.int32(),
        "epoch": pa.int32(),
        "theta_updates": pa.int64(),
        "exit": pa.int32(),
    }
    types |= {"value": pa.float64(), "seconds": pa.float64()}
    return pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])


def cell_table(
    sweep: str, task: str, config: str, algorithm: str, seed: int, fold: int, epochs: dict[int, LedgerRecord]
) -> Any:
    """Make the rows of one run: every epoch, exit (from 1) and metric; `score` is the task's metric.

    Args:
        sweep: Name of the sweep.
        task: Name of the task.
        config: The configuration.
        algorithm: Name of its method.
        seed: Seed of the run.
        fold: Validation fold of the run.
        epochs: Epoch, from 0 → its record.

    Returns:
        A pyarrow table.
    """
    import numpy as np
    import pyarrow as pa

    metrics: list[str] = []
    parts: dict[str, list[Any]] = {name: [] for name in ("epoch", "theta_updates", "exit", "value", "seconds")}
    for epoch, record in sorted(epochs.items()):
        for metric, values in {**record["exits"], **{f"omega_{k}": v for k, v in record["weights"].items()}}.items():
            m = len(values)
            metrics += [metric] * m
            parts["epoch"].append(np.full(m, epoch))
            parts["theta_updates"].append(np.full(m, record["theta_updates"]))
            parts["exit"].append(np.arange(1, m + 1))
            parts["value"].append(np.array(values, float))
            parts["seconds"].append(np.full(m, record["seconds"]))
    n = len(metrics)
    columns: dict[str, Any] = {name: np.concatenate(p) if p else np.empty(0) for name, p in parts.items()}
    columns |= {"seed": np.full(n, seed), "fold": np.full(n, fold), "metric": metrics}
    columns |= {
        k: [v] * n for k, v in (("sweep", sweep), ("task", task), ("configuration", config), ("algorithm", algorithm))
    }
    return pa.table({f.name: pa.array(columns[f.name], f.type) for f in schema()})


def write(path: Path, state: SweepState, sweep: str, task: str) -> None:
    """Write the table run by run, in place of an older one, atomically.

    Args:
        path: The Parquet file.
        state: The sweep's state, with the records of epochs.
        sweep: Name of the sweep.
        task: Name of the task.
    """
    import pyarrow.parquet as pq

    # Without fsync: it can be written again from the ledger at any time.
    with replaced(path, sync=False) as temporary, pq.ParquetWriter(temporary, schema(), compression="zstd") as writer:
        for (config, seed, fold), epochs in state.epochs.items():
            algorithm = str(state.configs[config].values.get("algorithm", ""))
            writer.write_table(cell_table(sweep, task, config, algorithm, seed, fold, epochs))
