"""Who drives a sweep: real processes that hold, lose, release and take over its lease."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from leebert.errors import LeaseError, StorageError
from tune.store import folder as folder_module
from tune.store import lease as lease_module
from tune.store.folder import SweepFolder
from tune.store.lease import Lease, holder

HOLD = """
import sys, time
from pathlib import Path
from tune.store.lease import Lease
lease = Lease.take(Path(sys.argv[1]))
print(lease.number, flush=True)
time.sleep(600)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A driver in a process of its own that holds the lease; its process."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.communicate()


def foreign(folder, number=1, **facts):
    """A lease of a driver on another host."""
    told = {"pid": 1, "host": "far", "machine": "another", "time": time.time(), "renewal": "a", **facts}
    (folder / "lease").mkdir(exist_ok=True)
    (folder / "lease" / f"{number:04d}.json").write_text(json.dumps(told))


def test_numbers_rise_and_a_released_lease_is_free(tmp_path):
    for number in (1, 2, 3):
        lease = Lease.take(tmp_path)
        assert lease.number == number
        assert holder(tmp_path).alive
        with pytest.raises(LeaseError, match=f"driven by process {os.getpid()} on {socket.gethostname()}"):
            Lease.take(tmp_path)
        lease.release()
        assert holder(tmp_path).alive is False


def test_a_second_driver_is_refused_with_the_firsts_host_and_process_until_that_is_dead(tmp_path, elsewhere):
    with pytest.raises(LeaseError, match=f"driven by process {elsewhere.pid} on {socket.gethostname()}.*--take-over"):
        Lease.take(tmp_path)
    elsewhere.kill()
    deadline = time.monotonic() + 10
    while holder(tmp_path).alive and time.monotonic() < deadline:
        time.sleep(0.01)  # not even its parent has to notice: a zombie drives nothing
    lease = Lease.take(tmp_path)
    assert lease.number == 2
    lease.release()


def test_a_driver_that_was_stopped_is_taken_over_on_demand_and_notices(tmp_path):
    first = Lease.take(tmp_path)
    first.check()
    second = Lease.take(tmp_path, take_over=True)
    assert second.number == 2
    with pytest.raises(LeaseError, match="taken over by process"):
        first.check()
    second.check()
    first.release()  # says nothing of the lease that counts
    assert holder(tmp_path).number == 2
    assert holder(tmp_path).alive
    second.release()


def test_of_many_that_try_at_once_one_gets_it(tmp_path):
    foreign(tmp_path, released=True)
    start, taken, refused = threading.Barrier(8), [], []

    def race():
        start.wait()
        try:
            taken.append(Lease.take(tmp_path))
        except LeaseError as error:
            refused.append(error)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lease.number for lease in taken] == [2]
    assert len(refused) == 7
    taken[0].release()


def test_a_lease_is_renewed_while_its_driver_lives_and_states_what_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEWAL", 0.05)
    lease = Lease.take(tmp_path)
    lease.add_facts(running=["abc"])
    first, deadline = holder(tmp_path).facts["renewal"], time.monotonic() + 5
    while holder(tmp_path).facts["renewal"] == first and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holder(tmp_path).facts["running"] == ["abc"]
    lease.release()


@pytest.mark.parametrize("age", [0, 20])
def test_a_driver_on_another_host_whose_lease_is_recent_is_not_disturbed(tmp_path, age):
    foreign(tmp_path, time=time.time() - age)
    with pytest.raises(LeaseError, match="process 1 on far, last heartbeat "):
        Lease.take(tmp_path)


def test_only_a_driver_elsewhere_that_was_not_heard_of_lately_is_watched_and_only_on_demand(tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr(folder_module, "watch", lambda *_: watched.append(1) or True)
    folder = SweepFolder(tmp_path)
    foreign(tmp_path, time=time.time() - 60)
    assert folder.driver() is None
    assert not watched
    assert folder.driver(certain=True)["host"] == "far"
    assert watched == [1]
    foreign(tmp_path)
    assert folder.driver(certain=True)["host"] == folder.driver()["host"] == "far"
    foreign(tmp_path, released=True)
    assert folder.driver(certain=True) is None
    assert watched == [1]


@pytest.mark.slow
@pytest.mark.parametrize("age", [31, 1e6, -3600], ids=["expired", "long ago", "its clock is ahead"])
def test_a_driver_on_another_host_is_taken_over_only_if_its_lease_is_really_stale(tmp_path, monkeypatch, age):
    monkeypatch.setattr(lease_module, "WATCHED", 2.0)
    foreign(tmp_path, time=time.time() - age)
    renewal = threading.Timer(0.3, lambda: foreign(tmp_path, time=time.time() - age, renewal="b"))
    renewal.start()
    with pytest.raises(LeaseError, match="on far"):
        Lease.take(tmp_path)  # its clock is wrong, but it lives
    renewal.join()
    Lease.take(tmp_path).release()


def test_a_process_number_that_was_given_away_again_is_another_process(tmp_path, elsewhere):
    path = tmp_path / "lease" / "0001.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "started_ticks": facts["started_ticks"] - 100}))
    elsewhere.send_signal(signal.SIGSTOP)  # it must not renew while this is looked at
    path.write_text(json.dumps({**facts, "started_ticks": facts["started_ticks"] - 100}))
    assert holder(tmp_path).alive is False


def test_a_folder_that_takes_no_files_is_reported(tmp_path):
    (tmp_path / "lease").write_text("in the way")
    with pytest.raises(StorageError, match="can't be written"):
        Lease.take(tmp_path)
