"""What a ledger still says after a part of the drivers' records was lost: a torn disk, a copy that never finished.

Records are numbered by their writer (`seq`), and whoever takes over writes how many of those before count, so a loss shows
as a gap, as fewer records than the fence counts, or as an attempt that nobody granted. Every attempt begins with a copy of
its grant (`begin`), from which the driver's records of it are made again.
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
    """An attempt whose grant is in no driver's records. begin: the first record that it wrote."""

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
    """The drivers' records that count, in order, each with the folder of its driver.

    recovered: those made again from the attempts' own records whose loss no fence or gap would show later: whoever takes
    over writes them down. missing: a sentence per loss. fences: how many records of each driver count, lost ones included.
    """

    records: tuple[tuple[str, LedgerRecord], ...]
    recovered: tuple[LedgerRecord, ...]
    missing: tuple[str, ...]
    fences: Mapping[str, int]


def is_attempt(name: str) -> bool:
    """Whether a folder can be an attempt's, by its name."""
    return _ATTEMPT.fullmatch(name) is not None


def counted(drivers: Mapping[str, Sequence[LedgerRecord]]) -> tuple[dict[str, Sequence[LedgerRecord]], dict[str, int]]:
    """The records of each driver that count, and how many there should be, by folder.

    What a driver wrote after another had taken over does not count. Where the newest driver's first record, which says so,
    is lost itself, all that is there counts.
    """
    newest = max((name for name, records in drivers.items() if records), default=None)
    first = drivers[newest][0] if newest is not None else {}
    # A driver that the newest has not heard of had written nothing when it was taken over.
    fences = first.get("fences", {}) if first.get("seq", 0) == 0 else None
    kept: dict[str, Sequence[LedgerRecord]] = {}
    expected: dict[str, int] = {}
    for name in sorted({*drivers, *(fences or ())}):
        records = drivers.get(name, ())
        if name == newest or fences is None:
            expected[name] = records[-1]["seq"] + 1 if records else 0
        else:
            expected[name] = int(fences.get(name, 0))
        kept[name] = [r for r in records if r["seq"] < expected[name]]
    return kept, expected


def mended(
    drivers: Mapping[str, Sequence[LedgerRecord]],
    orphans: Iterable[Orphan],
    values_of: Callable[[str], Mapping[str, Any] | None],
) -> Decisions:
    """The decisions that a ledger holds, with the lost ones on attempts made again.

    `values_of` finds a configuration's values by its id, for attempts of versions that wrote no `begin`; None: unknown.
    """
    kept, expected = counted(drivers)
    lost = {name: max(0, count - len(kept[name])) for name, count in expected.items()}
    newest = max((name for name, records in kept.items() if records), default="")
    # An attempt of a driver that has lost nothing was granted after its fence: it does not count.
    mine = [o for o in orphans if o.driver >= newest or lost.get(o.driver)]
    told: list[tuple[str, LedgerRecord]] = []
    recovered: list[LedgerRecord] = []
    unknown: set[str] = set()
    skipped = 0
    known: dict[str, int] = {}
    lossy = False
    for name in sorted({*kept, *(o.driver for o in mine)}):
        for record in _with_orphans(kept.get(name, ()), sorted((o for o in mine if o.driver == name), key=_when)):
            if isinstance(record, Orphan):
                lossy = True
                made = list(_made_again(record, known, values_of))
                if not made:
                    unknown.add(record.config)
                recovered += made if not lost.get(record.driver) else []
            elif record is None:
                lossy, made = True, []
            elif lossy and "config" in record and record["kind"] != "suggest" and str(record["config"]) not in known:
                made, skipped = [], skipped + 1
            else:
                made = [record]
            for one in made:
                if one["kind"] == "suggest":
                    index = one.get("index")
                    known.setdefault(str(one.get("config")), index if isinstance(index, int) else 0)
                told.append((name, one))
        lossy = lossy or bool(lost.get(name))
    fences = {name: count for name, count in expected.items() if count}
    return Decisions(tuple(told), tuple(recovered), tuple(_missing(lost, mine, unknown, skipped)), fences)


def _when(orphan: Orphan) -> tuple[float, str, str]:
    return float(orphan.begin.get("time", 0.0)), orphan.config, orphan.name


def _with_orphans(records: Sequence[LedgerRecord], orphans: Sequence[Orphan]) -> Iterator[LedgerRecord | Orphan | None]:
    """A driver's records, with its orphans where the first are missing, else at the end; None marks each gap."""
    expected, waiting = 0, list(orphans)
    for record in records:
        if record["seq"] > expected:
            yield None
            yield from waiting
            waiting = []
        yield record
        expected = record["seq"] + 1
    yield from waiting


def _made_again(
    orphan: Orphan, known: Mapping[str, int], values_of: Callable[[str], Mapping[str, Any] | None]
) -> Iterator[LedgerRecord]:
    """The records with which a driver suggested and granted an attempt; none where its values are lost, too."""
    begin = orphan.begin if orphan.begin.get("kind") == "begin" else {}
    common = {"time": orphan.begin.get("time", 0.0), "config": orphan.config}
    if orphan.config not in known:
        values = begin.get("values") or values_of(orphan.config)
        if not values:
            return
        index = begin.get("index") or 1 + max(known.values(), default=0)
        yield {"kind": "suggest", **common, "index": index, "values": dict(values)}
    grant = {"kind": "grant", **common, "attempt": orphan.attempt, "driver": int(orphan.driver)}
    grant["fences"] = begin.get("fences", {})
    yield grant | {key: begin[key] for key in ("alone", "accumulate") if key in begin}


def _missing(lost: Mapping[str, int], orphans: Sequence[Orphan], unknown: set[str], skipped: int) -> Iterator[str]:
    """What is gone, and what became of it."""
    found = {name: n for name, n in lost.items() if n}
    for name in sorted({*found, *(o.driver for o in orphans)}):
        many = f"{found[name]} records" if name in found else "the last records"
        yield f"{many} of driver {name} are missing: its file was cut, or not copied whole"
    if back := [o for o in orphans if o.config not in unknown]:
        yield f"{len(back)} attempt(s) are known from the trials' own records"
    for config in sorted(unknown):
        yield f"the values of configuration {config} are lost, so its records are left out"
    if skipped:
        yield f"{skipped} decisions on configurations whose values are lost are left out"
