"""The lease on a sweep: one process at a time drives it, on any host, each with its own number.

A lease is a file `lease/<number>.json` that one driver creates, renews every few seconds and releases at its end; the
highest number counts. Creating it is atomic on every file system with hard links, NFS included, so only one of two drivers
gets it. The number is also a fence: records of a driver with a lower number are ignored (see `tune.store.ledger`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from leebert.errors import LeaseError, StorageError
from leebert.files import parse_json

#: Seconds between two renewals, and seconds without one after which a driver on another host counts as dead.
RENEWAL = 5.0
EXPIRY = 30.0

#: Seconds for which a lease with an implausible age is watched before it is taken over: two renewals.
WATCHED = 2 * RENEWAL


@dataclasses.dataclass(frozen=True)
class Holder:
    """The holder of the newest lease of a sweep, with the facts that it wrote."""

    number: int
    facts: dict[str, Any]

    @property
    def described(self) -> str:
        return f"process {self.facts.get('pid')} on {self.facts.get('host')}"

    @property
    def age(self) -> float:
        """Seconds since the last renewal, if the clocks of both hosts agree."""
        renewed = self.facts.get("time")
        return time.time() - (float(renewed) if isinstance(renewed, int | float) else 0.0)

    @property
    def alive(self) -> bool | None:
        """Whether the driver is alive: certain on this machine, by the last renewal elsewhere; None if unknown."""
        if self.facts.get("released"):
            return False
        if self.facts.get("machine") == _machine():
            pid = self.facts.get("pid")
            return isinstance(pid, int) and _started(pid) == self.facts.get("started_ticks")
        # After an old renewal, or one in the future, its host may be gone or one of the clocks wrong.
        return True if abs(self.age) <= EXPIRY else None


def holder(folder: Path) -> Holder | None:
    """Return the holder of the newest lease of a sweep's folder; None before the first."""
    numbers = sorted(int(path.stem) for path in (folder / "lease").glob("*.json") if path.stem.isdigit())
    if not numbers:
        return None
    try:
        facts = parse_json(_path(folder, numbers[-1]).read_text())
        return Holder(numbers[-1], facts if isinstance(facts, dict) else {})
    except (OSError, ValueError):
        return Holder(numbers[-1], {})


class Lease:
    """This process's lease on a sweep, from :meth:`take` to :meth:`release`; a thread renews it in between."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.facts: dict[str, Any] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "machine": _machine(),
            "started_ticks": _started(os.getpid()),
        }
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @classmethod
    def take(cls, folder: Path, *, take_over: bool = False) -> Lease:
        """Take the next lease.

        Args:
            folder: The sweep's folder.
            take_over: Take it even if another driver seems to be alive.

        Returns:
            The lease, to be renewed and released.

        Raises:
            LeaseError: Another driver is alive, or takes the lease first.
        """
        before = holder(folder)
        if before is not None and not take_over:
            alive = before.alive
            if alive is None:
                alive = watch(folder, before)
            if alive:
                raise LeaseError(
                    f"sweep {folder.name} is driven by {before.described}, last heartbeat {before.age:.0f} s ago; stop it by: "
                    f"leebert-tune stop {folder.name}, or resume with --take-over if you are sure that it is dead"
                )
        lease = cls(folder, before.number + 1 if before else 1)
        try:
            (folder / "lease").mkdir(exist_ok=True)
            temporary = lease._write_beside()
            try:
                os.link(temporary, _path(folder, lease.number))
            except FileExistsError:
                raise LeaseError(f"sweep {folder.name}: another driver has just taken it") from None
            finally:
                temporary.unlink()
        except OSError as error:
            raise StorageError(f"{folder} can't be written: {error.strerror or error}") from None
        lease._thread.start()
        return lease

    def add_facts(self, **facts: Any) -> None:
        """Add facts on the driver's work to the next renewal, for `leebert-tune status`."""
        self.facts = {**self.facts, **facts}

    def check(self) -> None:
        """Raise LeaseError if another driver has taken over: this one must not decide anything more."""
        try:
            lost = _path(self.folder, self.number + 1).exists()
        except OSError as error:
            raise StorageError(f"{self.folder} can't be read: {error.strerror or error}") from None
        if lost:
            newest = holder(self.folder)
            successor = newest.described if newest else "another driver"
            raise LeaseError(f"sweep {self.folder.name} was taken over by {successor}; this driver has ended")

    def release(self) -> None:
        """Release the lease; if that cannot be written, it expires."""
        self._ended.set()
        self.add_facts(released=True)
        self._renew_once()

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            self._renew_once()

    def _renew_once(self) -> None:
        # Full or missing storage raises an error with a message where the next record is written.
        with self._writing, contextlib.suppress(OSError):
            self._write_beside().replace(_path(self.folder, self.number))

    def _write_beside(self) -> Path:
        # A renewal differs from the previous one in more than its time: clocks may stop or go backwards.
        text = json.dumps({**self.facts, "time": time.time(), "renewal": uuid.uuid4().hex})
        temporary = self.folder / "lease" / f".{self.number:04d}-{uuid.uuid4().hex}"
        try:
            temporary.write_text(text)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


def _path(folder: Path, number: int) -> Path:
    return folder / "lease" / f"{number:04d}.json"


def watch(folder: Path, before: Holder) -> bool:
    """Watch a lease for some seconds, by this process's own clock only.

    Args:
        folder: The sweep's folder.
        before: The holder of the lease.

    Returns:
        Whether the lease was renewed, so that its driver is alive.
    """
    end = time.monotonic() + WATCHED
    while time.monotonic() < end:
        time.sleep(0.5)
        newest = holder(folder)
        if newest is not None and (newest.number, newest.facts.get("renewal")) != (
            before.number,
            before.facts.get("renewal"),
        ):
            return not newest.facts.get("released")
    return False


@functools.cache
def _machine() -> str:
    """Identify this machine or container, within which process numbers mean the same processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: the host's name must do
        return socket.gethostname()


def _started(pid: int) -> int | None:
    """Return a process's start in clock ticks since the boot; None if there is no such process.

    Process numbers are reused: only number and start together identify a process.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else int(fields[18])  # a zombie has ended
    except (OSError, IndexError, ValueError):
        return _exists(pid)


def _exists(pid: int) -> int | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
