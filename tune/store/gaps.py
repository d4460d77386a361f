"""Reading a ledger that lost some of the drivers' records, to a damaged disk or an incomplete copy.

Records are numbered by their writer (`seq`), and a process that takes over records how many earlier ones count. A loss thus
shows as a gap, as fewer records than the fence counts, or as an attempt without a grant. Every attempt begins with a copy of
its grant (`begin`), from which the driver's records of the attempt are restored.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

LedgerRecord = dict[str, Any]

_ATTEMPT = re.compile(r"(\d{4,})-(\d{4,})")


@dataclasses.dataclass(frozen=True)
class Orphan:
    """An attempt whose grant is in no driver's records. `begin` is the first record that it wrote."""

    config: str
    name: str
    begin: LedgerRecord

    @property
    def attempt(self) -> int:
        return int(self.name.partition("-")[0])

    @property
    def driver(self) -> str:
        """The folder of the driver that granted it."""
        return self.name.partition("-")[2]


@dataclasses.dataclass(frozen=True)
class Decisions:
    """The drivers' records that count.

    Attributes:
        records: The records in order, each with the folder name of its driver.
        recovered: Records restored from the attempts' own ones, whose loss no fence or gap would show later; a driver that
            takes over writes them again.
        missing: A sentence on each loss.
        fences: How many records of each driver count, lost ones included.
    """

    records: tuple[tuple[str, LedgerRecord], ...]
    recovered: tuple[LedgerRecord, ...]
    missing: tuple[str, ...]
    fences: Mapping[str, int]


def is_attempt(name: str) -> bool:
    """Return whether a folder can be an attempt's, by its name."""
    return _ATTEMPT.fullmatch(name) is not None


def count_records(
    drivers: Mapping[str, Sequence[LedgerRecord]],
) -> tuple[dict[str, Sequence[LedgerRecord]], dict[str, int]]:
    """Return the records of each driver that count, and their expected number, by folder name.

    Records that a driver wrote after another had taken over do not count. If the newest driver's first record, which holds
    the fences, is itself lost, all existing records count.
    """
    newest = max((name for name, records in drivers.items() if records), default=None)
    first = drivers[newest][0] if newest is not None else {}
    # A driver without a fence had written nothing when it was superseded.
    fences = first.get("fences", {}) if first.get("seq", 0) == 0 else None
    counted: dict[str, Sequence[LedgerRecord]] = {}
    expected: dict[str, int] = {}
    for name in sorted({*drivers, *(fences or ())}):
        records = drivers.get(name, ())
        if name == newest or fences is None:
            expected[name] = records[-1]["seq"] + 1 if records else 0
        else:
            expected[name] = int(fences.get(name, 0))
        counted[name] = [r for r in records if r["seq"] < expected[name]]
    return counted, expected


def restore(
    drivers: Mapping[str, Sequence[LedgerRecord]],
    orphans: Iterable[Orphan],
    values_of: Callable[[str], Mapping[str, Any] | None],
) -> Decisions:
    """Return the decisions of a ledger, with lost ones on attempts restored.

    Args:
        drivers: Each driver's records, by folder name.
        orphans: The attempts without a grant.
        values_of: Finds a configuration's values by its id, for attempts of versions without `begin`; None if unknown.
    """
    counted, expected = count_records(drivers)
    lost = {name: max(0, count - len(counted[name])) for name, count in expected.items()}
    newest = max((name for name, records in counted.items() if records), default="")
    # An attempt of a driver without lost records was granted after its fence, and does not count.
    relevant = [o for o in orphans if o.driver >= newest or lost.get(o.driver)]
    decisions: list[tuple[str, LedgerRecord]] = []
    recovered: list[LedgerRecord] = []
    unknown: set[str] = set()
    skipped = 0
    indices: dict[str, int] = {}
    lossy = False
    for name in sorted({*counted, *(o.driver for o in relevant)}):
        for record in _with_orphans(
            counted.get(name, ()), sorted((o for o in relevant if o.driver == name), key=_by_time)
        ):
            if isinstance(record, Orphan):
                lossy = True
                added = list(_restored(record, indices, values_of))
                if not added:
                    unknown.add(record.config)
                recovered += added if not lost.get(record.driver) else []
            elif record is None:
                lossy, added = True, []
            elif lossy and "config" in record and record["kind"] != "suggest" and str(record["config"]) not in indices:
                added, skipped = [], skipped + 1
            else:
                added = [record]
            for one in added:
                if one["kind"] == "suggest":
                    index = one.get("index")
                    indices.setdefault(str(one.get("config")), index if isinstance(index, int) else 0)
                decisions.append((name, one))
        lossy = lossy or bool(lost.get(name))
    fences = {name: count for name, count in expected.items() if count}
    return Decisions(tuple(decisions), tuple(recovered), tuple(_missing(lost, relevant, unknown, skipped)), fences)


def _by_time(orphan: Orphan) -> tuple[float, str, str]:
    return float(orphan.begin.get("time", 0.0)), orphan.config, orphan.name


def _with_orphans(records: Sequence[LedgerRecord], orphans: Sequence[Orphan]) -> Iterator[LedgerRecord | Orphan | None]:
    """Iterate over a driver's records, with its orphans at the first gap, else at the end; None marks each gap."""
    expected, waiting = 0, list(orphans)
    for record in records:
        if record["seq"] > expected:
            yield None
            yield from waiting
            waiting = []
        yield record
        expected = record["seq"] + 1
    yield from waiting


def _restored(
    orphan: Orphan, indices: Mapping[str, int], values_of: Callable[[str], Mapping[str, Any] | None]
) -> Iterator[LedgerRecord]:
    """Restore the records with which a driver suggested and granted an attempt; none if its values are also lost."""
    begin = orphan.begin if orphan.begin.get("kind") == "begin" else {}
    common = {"time": orphan.begin.get("time", 0.0), "config": orphan.config}
    if orphan.config not in indices:
        values = begin.get("values") or values_of(orphan.config)
        if not values:
            return
        index = begin.get("index") or 1 + max(indices.values(), default=0)
        yield {"kind": "suggest", **common, "index": index, "values": dict(values)}
    grant = {"kind": "grant", **common, "attempt": orphan.attempt, "driver": int(orphan.driver)}
    grant["fences"] = begin.get("fences", {})
    yield grant | {key: begin[key] for key in ("alone", "accumulate") if key in begin}


def _missing(lost: Mapping[str, int], orphans: Sequence[Orphan], unknown: set[str], skipped: int) -> Iterator[str]:
    """Yield a sentence on each loss and its consequence."""
    losses = {name: n for name, n in lost.items() if n}
    for name in sorted({*losses, *(o.driver for o in orphans)}):
        many = f"{losses[name]} records" if name in losses else "the last records"
        yield f"{many} of driver {name} are missing: its file was truncated, or not copied completely"
    if restored := [o for o in orphans if o.config not in unknown]:
        yield f"{len(restored)} attempt(s) were restored from the trials' own records"
    for config in sorted(unknown):
        yield f"the values of configuration {config} are lost, so its records are ignored"
    if skipped:
        yield f"{skipped} decisions on configurations whose values are lost are ignored"
