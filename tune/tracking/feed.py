"""From the ledger's records to MLflow's events: pure functions, used live by the driver and again by a replay."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from leebert.tradeoff import mean_curve
from tune.store.curves import CurveOf, layers_needed, of_all, stored
from tune.store.history import Placement
from tune.store.ledger import Ledger, LedgerRecord, SweepState
from tune.tracking.events import (
    CellEnded,
    CellStarted,
    ConfigEnded,
    ConfigStarted,
    Epoch,
    SweepEnded,
    SweepStarted,
    TrackingEvent,
)
from tune.tracking.names import MEAN_SCORE, exit_metric


def events(record: LedgerRecord, state: SweepState, curve_of: CurveOf = stored) -> Iterator[TrackingEvent]:
    """Convert one record to events.

    Args:
        record: The record.
        state: The ledger's state, with the record applied.
        curve_of: Returns the curve of a run; by default the recorded one.
    """
    time_ms = int(record["time"] * 1000)
    kind = record["kind"]
    if kind in ("sweep", "resume"):
        origin = {key: record[key] for key in ("source", "dataset") if key in record}
        yield SweepStarted(params=record.get("params", {}), note=record.get("note", ""), **origin, time_ms=time_ms)
    elif kind == "suggest":
        yield ConfigStarted(record["config"], record["index"], record["values"], time_ms=time_ms)
    elif kind == "epoch":
        cell = (record["config"], record["seed"], record["fold"])
        newest = list(itertools.islice(reversed(state.epochs[cell].values()), 2))
        if len({r["attempt"] for r in newest}) == len(newest):  # the run's first epoch, or its first of another attempt
            place = state.placements.get((record["config"], record["attempt"]), Placement())
            yield CellStarted(*cell, attempt=record["attempt"], placement=place.described(), time_ms=time_ms)
        yield Epoch(*cell, record["epoch"], functools.partial(epoch_metrics, record), time_ms=time_ms)
    elif kind == "cell_end":
        status = "diverged" if record["ended"] == "diverged" else "finished"
        yield CellEnded(record["config"], record["seed"], record["fold"], status, time_ms=time_ms)  # type: ignore[arg-type]
    elif kind == "complete":
        yield config_ended(record["config"], "complete", state, time_ms, curve_of)
    elif kind == "prune":
        yield from _open_cells(record["config"], "pruned", state, time_ms)
        yield config_ended(record["config"], "pruned", state, time_ms, curve_of)
    elif kind == "fail" and record["final"]:
        yield from _open_cells(record["config"], "failed", state, time_ms)
        yield config_ended(record["config"], "failed", state, time_ms, curve_of)
    elif kind == "end":
        for config in state.history():
            if config.state == "running":
                yield from _open_cells(config.id, "stopped", state, time_ms)
                yield config_ended(config.id, "stopped", state, time_ms, curve_of)
        yield SweepEnded(record["status"], note=record.get("note", ""), time_ms=time_ms)


def epoch_metrics(record: LedgerRecord) -> dict[str, float]:
    """Return an epoch's metrics under the names of `tune.tracking.names`."""
    metrics: dict[str, float | None] = {
        "score/mean": record["score"],
        "theta_updates": record["theta_updates"],
        "seconds": record["seconds"],
        "train/loss_theta": record["train_loss"],
    }
    groups = {
        "score": record["exits"].get("score", []),
        "loss": record["exits"].get("loss", []),
        "omega_ce": record["weights"].get("ce", []),
        "omega_kd": record["weights"].get("kd", []),
    }
    for group, values in groups.items():
        metrics |= {exit_metric(group, i): v for i, v in enumerate(values, start=1)}
    metrics |= {f"system/{name}": v for name, v in record.get("system", {}).items()}
    exits = len(groups["score"])
    metrics |= {exit_metric("collapsed", i + 1): float(i in record["collapsed"]) for i in range(exits)}
    return {name: float(value) for name, value in metrics.items() if value is not None}


def _open_cells(config: str, status: Any, state: SweepState, time_ms: int) -> Iterator[TrackingEvent]:
    for cell in state.configs[config].cells:
        if cell.state == "running":
            yield CellEnded(config, cell.seed, cell.fold, status, time_ms=time_ms)


def config_ended(
    config: str, status: Any, state: SweepState, time_ms: int = 0, curve_of: CurveOf = stored
) -> ConfigEnded:
    """Collect a configuration's results from its finished runs.

    Args:
        config: The configuration.
        status: Its state.
        state: The sweep's state.
        time_ms: Time of its end, in ms since 1970.
        curve_of: Returns the curve of a run from the record of its end.

    Returns:
        The event for MLflow.
    """
    cells = [r for r in state.cells_of.get(config, []) if r["score"] is not None]
    metrics: dict[str, float] = {"cv/cells": float(len(cells))}
    depth: dict[str, list[float]] = {}
    curve: dict[str, list[float]] = {}
    if cells:
        scores = [r["score"] for r in cells]
        mean = float(np.mean(scores))
        metrics |= {"cv/score_mean": mean} | dict.fromkeys(("cv/score_pct", MEAN_SCORE), round(100 * mean, 3))
        if len(scores) > 1:
            std = float(np.std(scores, ddof=1))
            metrics |= {"cv/score_std": std, "cv/score_std_pct": round(100 * std, 3)}
        if all(r.get("majority") for r in cells):
            metrics["cv/margin"] = float(np.mean([r["majority"]["margin"] for r in cells]))
        depth = by_layer(cells)
        if curves := of_all(cells, curve_of):
            layers, at = mean_curve(curves)
            curve = {
                "layers": layers.tolist(),
                "score": at.tolist(),
                "speed_up": (curves[0].depth / layers).round(4).tolist(),
                "score_pct": (100 * at).round(3).tolist(),
            }
        if (needed := layers_needed(cells, curve_of)) is not None:
            metrics["cv/layers"] = needed
    return ConfigEnded(config, status, metrics=metrics, depth=depth, curve=curve, time_ms=time_ms)


def by_layer(cells: Sequence[LedgerRecord]) -> dict[str, list[float]]:
    """Return means over a configuration's finished runs by exit: score, and ω if all runs learn it."""
    depth = {"score": np.mean([r["exits"]["score"] for r in cells], axis=0).tolist()}
    if all(r["weights"] for r in cells):
        depth["omega_ce"] = np.mean([r["weights"]["ce"] for r in cells], axis=0).tolist()
    return depth


class Listener(Protocol):
    """A receiver of events, such as the tracker."""

    def put(self, event: TrackingEvent) -> None: ...


def replay(state_of: Ledger, listener: Listener, curve_of: CurveOf = stored) -> SweepState:
    """Send a ledger's whole history to a listener, in order.

    Args:
        state_of: The ledger.
        listener: Receives the events.
        curve_of: Returns the curve of a run; by default the recorded one.

    Returns:
        The final state.
    """
    state, fences = SweepState(slim=True), state_of.fences()
    for record in state_of.in_order():
        if "attempt" in record and record["kind"] in ("epoch", "cell_end"):
            fence = fences.get(record["config"], {}).get(record["attempt"])
            if fence is not None and record["seq"] >= fence:
                continue  # written after its attempt was superseded
        if state.apply_in_order(record):
            for event in events(record, state, curve_of):
                listener.put(event)
    return state
