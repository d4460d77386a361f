"""The driver's part of the ledger: decisions are written, all records applied in order, and MLflow is fed from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tune.store.curves import CellCurves
from tune.store.history import Configuration, describe
from tune.store.ledger import LedgerRecord, SweepState
from tune.tracking.feed import Listener, events


class Appender(Protocol):
    """Append the driver's records, and return them with sequence numbers and times."""

    def append(self, *records: Mapping[str, Any], sync: bool = True) -> list[LedgerRecord]: ...
    def close(self) -> None: ...


class LedgerAccess(Protocol):
    """The part of a ledger that the driver reads and writes; a simulation implements it without files."""

    def read(self) -> SweepState: ...
    def driver_writer(self, driver: int) -> Appender: ...
    def records_of(self, config: str, attempt: str) -> Iterable[LedgerRecord]: ...


class DriverRecords:
    """The state of a sweep, and its only writer in the driver's process.

    Attributes:
        number: The number of the driver's lease.
        state: What the records hold that were applied so far.
        writer: Writes the driver's records.
        may_decide: Raises LeaseError once another driver has taken over.
    """

    def __init__(
        self,
        ledger: LedgerAccess,
        number: int,
        folder: Path,
        *,
        state: SweepState | None,
        listener: Listener | None,
        may_decide: Callable[[], None],
        log: logging.Logger,
        name: Callable[[Mapping[str, Any]], str] = describe,
    ) -> None:
        """Open the driver's part of the ledger; the arguments are those of :class:`tune.running.driver.Driver`."""
        self._ledger, self._listener, self.number, self.may_decide = ledger, listener, number, may_decide
        self._curve_of = CellCurves(folder, log.warning)
        self._name = name
        self.state = state or ledger.read()
        self.state.slim = True
        self.writer = ledger.driver_writer(number)

    def write(self, record: LedgerRecord, *, sync: bool = True) -> None:
        """Write one of the driver's own records to the ledger, apply it and pass its events to the listener.

        Args:
            record: The record, without sequence number and time.
            sync: Whether it is on disk when this returns; otherwise with the next one that is.

        Raises:
            LeaseError: Another driver has taken over.
        """
        self.may_decide()
        (written,) = self.writer.append(record, sync=sync)
        self.apply(written)

    def apply(self, record: LedgerRecord) -> bool:
        """Apply a record to the state; return False for one that was applied before or is fenced off."""
        if not self.state.apply_in_order(record):
            return False
        if self._listener:
            for event in events(record, self.state, self._curve_of):
                self._listener.put(event)
        return True

    def collect(self, config: str) -> dict[int, int]:
        """Apply records that the configuration's attempts wrote but did not report; return each attempt's record count."""
        counts = {}
        for number, name in sorted(self.state.attempts.get(config, {}).items()):
            records = list(self._ledger.records_of(config, name))
            for record in records:
                self.apply(record)
            counts[number] = len(records)
        return counts

    def name(self, config: str) -> str:
        """Return a configuration as messages name it."""
        return f"[{self.state.indices[config]}] {self._name(self.state.configs[config].values)}"


def finished_cells(configuration: Configuration) -> set[tuple[int, int]]:
    """Return (seed, fold) of a configuration's finished runs."""
    return {(c.seed, c.fold) for c in configuration.cells if c.state == "finished"}
