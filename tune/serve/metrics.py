"""Counters, histograms and gauges of a server in Prometheus' text format; snapshots of several replicas in one page."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

#: Upper ends of the buckets of latencies, in seconds.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
#: Upper ends of the buckets of batch sizes.
SIZES = (1, 2, 4, 8, 16, 32, 64)

#: Name → type, help and, of histograms, buckets.
METRICS: dict[str, tuple[str, str, Sequence[float]]] = {
    "requests_total": ("counter", "Requests by HTTP status.", ()),
    "texts_total": ("counter", "Predicted texts by the layer of their exit.", ()),
    "request_seconds": ("histogram", "Time from a request's last byte to its answer.", SECONDS),
    "queue_seconds": ("histogram", "Time that a text waits before its batch starts.", SECONDS),
    "batch_texts": ("histogram", "Texts per batch.", SIZES),
    "batch_seconds": ("histogram", "Time of a batch in the model.", SECONDS),
    "point_changes_total": ("counter", "Changes of the operating point.", ()),
    "waiting_texts": ("gauge", "Texts that wait.", ()),
    "busy_ratio": ("gauge", "Share of the last seconds in which the model ran.", ()),
    "arrivals_per_second": ("gauge", "Average arrival rate of texts.", ()),
    "threshold": ("gauge", "Threshold of the operating point.", ()),
    "layer_speed_up": ("gauge", "Layer speed-up of the operating point, from the curve.", ()),
    "point_milliseconds": ("gauge", "Mean time per text of the operating point, from the curve.", ()),
    "score": ("gauge", "Score of the operating point, from the curve.", ()),
    "score_floor": ("gauge", "Lowest score that the load may lead to, from the curve.", ()),
    "pace": ("gauge", "Measured time per text relative to the curve's.", ()),
    "connections": ("gauge", "Connections of clients.", ()),
    "replicas": ("gauge", "Replicas that are connected.", ()),
}

#: Prefix of every metric's name.
PREFIX = "leebert_"

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}
        self._buckets: dict[str, list[float]] = {}

    def add(self, name: str, amount: float = 1, **labels: Any) -> None:
        """Increase a counter.

        Args:
            name: One of :data:`METRICS`.
            amount: By how much.
            labels: Its labels.
        """
        key = (name, tuple((k, str(v)) for k, v in labels.items()))
        self._values[key] = self._values.get(key, 0) + amount

    def set(self, name: str, value: float, **labels: Any) -> None:
        """Set a gauge.

        Args:
            name: One of :data:`METRICS`.
            value: The value.
            labels: Its labels.
        """
        self._values[name, tuple((k, str(v)) for k, v in labels.items())] = value

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        ends = METRICS[name][2]
        counts = self._buckets.setdefault(name, [0.0] * (len(ends) + 2))  # the last one is the sum
        counts[bisect.bisect_left(ends, value)] += 1
        counts[-1] += value

    def snapshot(self) -> dict[str, Any]:
        """Return the present values as JSON data."""
        return {
            "values": [
                [name, [list(pair) for pair in labels], value] for (name, labels), value in list(self._values.items())
            ],
            "buckets": {name: list(counts) for name, counts in list(self._buckets.items())},
        }


def page(snapshots: Mapping[str, Mapping[str, Any]], gone: frozenset[str] = frozenset()) -> str:
    """Render snapshots in Prometheus' text format.

    Args:
        snapshots: Snapshots (:meth:`Metrics.snapshot`) by the value of the label `replica`; "" without that label.
        gone: Replicas that have ended. Their counters and histograms remain, their gauges do not.
    """
    lines: list[str] = []
    for name, (kind, help_, ends) in METRICS.items():
        rows: list[str] = []
        for replica, snapshot in snapshots.items():
            own = [["replica", replica]] if replica else []
            if kind == "histogram" and name in snapshot["buckets"]:
                rows += _histogram(name, ends, snapshot["buckets"][name], own)
            elif kind != "histogram" and not (kind == "gauge" and replica in gone):
                values = [v for v in snapshot["values"] if v[0] == name]
                rows += [f"{PREFIX}{name}{_labels([*labels, *own])} {value:g}" for _, labels, value in values]
        if rows:
            lines += [f"# HELP {PREFIX}{name} {help_}", f"# TYPE {PREFIX}{name} {kind}", *rows]
    return "\n".join(lines) + "\n"


def _histogram(name: str, ends: Sequence[float], counts: Sequence[float], own: list[list[str]]) -> list[str]:
    rows, total = [], 0.0
    for end, count in zip((*ends, "+Inf"), counts, strict=False):
        total += count
        rows.append(f"{PREFIX}{name}_bucket{_labels([*own, ['le', str(end)]])} {total:.0f}")
    return [
        *rows,
        f"{PREFIX}{name}_sum{_labels(own)} {counts[-1]:.9g}",
        f"{PREFIX}{name}_count{_labels(own)} {total:.0f}",
    ]


def _labels(pairs: Sequence[Sequence[str]]) -> str:
    escaped = ((k, v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for k, v in pairs)
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped) + "}" if pairs else ""
