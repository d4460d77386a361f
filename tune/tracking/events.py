"""What happens in a sweep, as MLflow is told of it: plain values that the driver makes from the ledger's records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Series = Mapping[str, Sequence[float | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingEvent:
    """Something that the ledger records. `time_ms` is when it happened by the ledger; 0 means when it was put.

    Give the ledger's time: replayed with the same time, a report is recognised by MLflow and not stored twice.
    """

    time_ms: int = 0


@dataclasses.dataclass(frozen=True)
class SweepStarted(TrackingEvent):
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ConfigStarted(TrackingEvent):
    """`index` numbers the configurations in the order of their suggestion; `values` holds the algorithm too."""

    config_id: str
    index: int
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class CellStarted(TrackingEvent):
    config_id: str
    seed: int
    fold: int
    attempt: int = 1
    placement: str = ""


@dataclasses.dataclass(frozen=True)
class Epoch(TrackingEvent):
    """One report of a cell, under the names of `tune.tracking.names`; epochs count from 0.

    `metrics` is called when the report is sent: while a server is away for days, 100,000 of them wait, and those that
    only point at the ledger's records take little memory.
    """

    config_id: str
    seed: int
    fold: int
    epoch: int
    metrics: Callable[[], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class CellEnded(TrackingEvent):
    config_id: str
    seed: int
    fold: int
    status: Literal["finished", "diverged", "stopped", "pruned", "failed"]


@dataclasses.dataclass(frozen=True)
class ConfigEnded(TrackingEvent):
    """A configuration's results: `depth` by layer (score, omega_ce), `curve` in steps of layers (layers, score)."""

    config_id: str
    status: Literal["complete", "pruned", "failed", "stopped"]
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    depth: Series = dataclasses.field(default_factory=dict)
    curve: Series = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Summary(TrackingEvent):
    """What was computed over many configurations, under full names (`paired/diff`); `depth` by layer from 1.

    Put again under the same label with other contents, it takes the old one's place.
    """

    label: str
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    depth: Series = dataclasses.field(default_factory=dict)
    algorithm: str | None = None
    colour: str | None = None  # where it isn't the algorithm's
    note: str = ""


@dataclasses.dataclass(frozen=True)
class SavedViews(TrackingEvent):
    """The sweep's saved views as they are to be now. MLflow may refuse them, which is said and counts as no loss."""

    views: Sequence[View] = ()


@dataclasses.dataclass(frozen=True)
class SweepEnded(TrackingEvent):
    status: Literal["finished", "stopped", "failed"]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class View:
    """One saved view: `slug` names it in addresses, `name` in the menu; `state` is what MLflow restores."""

    slug: str
    name: str
    state: Mapping[str, Any]
