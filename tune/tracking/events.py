"""The events of a sweep for MLflow: plain values that the driver makes from the ledger's records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Series = Mapping[str, Sequence[float | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingEvent:
    """An event. `time_ms` is its time by the ledger; 0 means the time of :meth:`Tracker.put`.

    Give the ledger's time: MLflow recognises a report replayed with the same time and does not store it twice.
    """

    time_ms: int = 0


@dataclasses.dataclass(frozen=True)
class SweepStarted(TrackingEvent):
    """A sweep starts or resumes.

    Attributes:
        params: Its fixed settings.
        note: The description of its run.
        source: The program's `name` and git `commit`, if known; all runs of the sweep carry them.
        dataset: `name`, `digest`, `rows` and `source` of the training split, if known.
    """

    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dataset: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ConfigStarted(TrackingEvent):
    """A configuration starts. `index` numbers configurations in the order of suggestion; `values` includes the method."""

    config_id: str
    index: int
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class CellStarted(TrackingEvent):
    """A run (one seed on one fold) starts. `attempt` counts from 1; `placement` is empty unless memory ran out before."""

    config_id: str
    seed: int
    fold: int
    attempt: int = 1
    placement: str = ""


@dataclasses.dataclass(frozen=True)
class Epoch(TrackingEvent):
    """One report of a run, under the names of `tune.tracking.names`; epochs count from 0.

    `metrics` is called when the report is sent: 100,000 reports may wait for a server that is down for days, and a
    reference to the ledger's record takes little memory.
    """

    config_id: str
    seed: int
    fold: int
    epoch: int
    metrics: Callable[[], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class CellEnded(TrackingEvent):
    """A run (one seed on one fold) ends."""

    config_id: str
    seed: int
    fold: int
    status: Literal["finished", "diverged", "stopped", "pruned", "failed"]


@dataclasses.dataclass(frozen=True)
class ConfigEnded(TrackingEvent):
    """A configuration's results: `depth` by layer (score, omega_ce), `curve` by point (layers, score)."""

    config_id: str
    status: Literal["complete", "pruned", "failed", "stopped"]
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    depth: Series = dataclasses.field(default_factory=dict)
    curve: Series = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture on a run, which MLflow's charts show.

    Attributes:
        key: Its name in charts.
        contents: All that it shows, as text: equal contents give equal pictures.
        draw: Draws it as PNG; called when it is sent.
    """

    key: str
    contents: str
    draw: Callable[[], bytes] = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True)
class Summary(TrackingEvent):
    """Results over many configurations.

    A summary with the same label and other contents replaces the old one.

    Attributes:
        label: Subject of the summary, unique within the sweep.
        metrics: Values by full name, such as `paired/diff_pct`.
        depth: Values by layer, from 1, by full name.
        algorithm: The method; None for a difference of two.
        colour: Colour in charts; None: the method's.
        note: Description of its run.
        pictures: Its pictures.
    """

    label: str
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    depth: Series = dataclasses.field(default_factory=dict)
    algorithm: str | None = None
    colour: str | None = None  # where it isn't the algorithm's
    note: str = ""
    pictures: Sequence[Picture] = ()


@dataclasses.dataclass(frozen=True)
class SweepVerdict(TrackingEvent):
    """The verdict on the sweep's first two methods, in a sentence: a tag of the sweep's run, and part of its description."""

    sentence: str


@dataclasses.dataclass(frozen=True)
class SavedViews(TrackingEvent):
    """The sweep's current saved views. MLflow may refuse them, which is reported but does not count as unsent.

    Attributes:
        views: The views.
        sentence: The sweep's verdict, for the experiment's description; empty without one.
    """

    views: Sequence[View] = ()
    sentence: str = ""


@dataclasses.dataclass(frozen=True)
class SweepEnded(TrackingEvent):
    """A sweep's session ends. `note` replaces the description of its run, if it is not empty."""

    status: Literal["finished", "stopped", "failed"]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class View:
    """One saved view.

    Attributes:
        slug: Its name in addresses.
        name: Its name in MLflow's menu.
        state: The selection of runs, charts and columns, as MLflow stores it.
    """

    slug: str
    name: str
    state: Mapping[str, Any]
