"""A ledger of which the drivers' newest records were lost: what is sound is read, what is gone is said, and a resume goes on."""

import shutil
import warnings

import numpy as np
import pytest
import quick
from made_sweep import made_sweep
from test_driver import driver, run_all
from test_ledger import epoch

from leebert.errors import SweepError
from leebert.evaluate import RecordedLogits
from tune.running.crossval import run_attempt
from tune.store.gaps import Orphan, restore
from tune.store.ledger import Ledger, decode
from tune.tracking.rebuild import rebuild

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep of two drivers: the first was killed in its second configuration, the second has finished the sweep."""
    folder = tmp_path_factory.mktemp("whole")
    first = driver(folder)
    for _ in range(2):
        attempt = first.next_attempt("t")
        for records in run_attempt(first.study, attempt):
            first.receive(records)
            if attempt.index == 2:
                break
        first.running.clear()
    first.records.writer.close()
    taken_over(folder, 2)
    assert run_all(driver(folder, fresh=False, number=2)) == "finished"
    return folder


def taken_over(folder, number):
    """The first record of the next driver, as `resume` writes it."""
    ledger = Ledger(folder / "ledger")
    fences, recovered = ledger.driver_fences(), ledger.recovered()
    writer = ledger.driver_writer(number)
    writer.append({"kind": "resume", "fences": fences}, *recovered)
    writer.close()


def cuts(path):
    """Every length to which a file of records can be cut: between two records, and within each."""
    at = 0
    for line in path.read_bytes().splitlines(keepends=True):
        yield from (at, at + len(line) // 2)
        at += len(line)


def table(state):
    return {key: (r["score"], r["exits"]["score"]) for key, r in state.cells.items()}


def logits(seed):
    rng = np.random.default_rng(seed)
    return RecordedLogits(rng.normal(size=(6, 30, 2)).astype(np.float32), rng.integers(2, size=30))


def read(ledger):
    """The state, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return ledger.read(), [str(w.message) for w in said]


@pytest.mark.parametrize("segment", ["0001/00000000", "0001/00000001", "0002/00000000", "0002/00000001"])
def test_wherever_a_drivers_segment_is_cut_no_finished_cell_is_lost(whole, tmp_path, segment):
    shutil.copytree(whole / "ledger", tmp_path / "ledger")
    ledger, path = Ledger(tmp_path / "ledger"), tmp_path / "ledger" / "driver" / f"{segment}.jsonl"
    expected, data = ledger.read(), path.read_bytes()
    assert len(expected.cells) == 8
    for cut in cuts(path):
        path.write_bytes(data[:cut])
        state, said = read(ledger)
        assert table(state) == table(expected), cut
        assert {c.id: dict(c.values) for c in state.history()} == {c.id: dict(c.values) for c in expected.history()}
        assert state.indices == expected.indices
        assert [r["kind"] for r in ledger.in_order()].count("cell_end") == 8
        lost = {decode(line)["kind"] for line in data[cut:].splitlines()[bool(cut and data[cut - 1] != 10) :]}
        if lost & {"suggest", "grant"}:
            assert len(said) == 1, cut
            assert "missing" in said[0]


@pytest.mark.parametrize("lost", [("0001",), ("0002",), ("0001", "0002")])
def test_a_sweep_that_lost_records_is_resumed_twice_without_an_epoch_trained_twice(whole, tmp_path, lost):
    expected = Ledger(whole / "ledger").read()
    shutil.copytree(whole, tmp_path / "s")
    ledger = Ledger(tmp_path / "s" / "ledger")
    for number in lost:
        (ledger.folder / "driver" / number / "00000001.jsonl").unlink()
    for number in (3, 4):
        _, (said,) = read(ledger) if number == 3 or "0001" in lost else (None, ("missing",))
        assert "missing" in said
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            taken_over(tmp_path / "s", number)
            next_one = driver(tmp_path / "s", fresh=False, number=number)
        assert next_one.next_attempt("t") is None
        assert next_one.finish() == "finished"
        assert table(next_one.state) == table(expected)
        assert {c.state for c in next_one.state.history()} == {"complete"}
        assert next_one.state.fold_epochs == expected.fold_epochs
    state, said = read(ledger)
    assert state.history() == next_one.state.history()
    assert bool(said) == ("0001" in lost)  # what the newest driver had lost was written down by the next


def test_half_of_a_sweep_whose_driver_lost_everything_resumes_to_the_same_scores(whole, tmp_path):
    first = driver(tmp_path)
    attempt = first.next_attempt("t")
    next(run_attempt(first.study, attempt))  # an epoch of the first cell
    first.records.writer.close()
    (tmp_path / "ledger" / "driver" / "0001" / "00000001.jsonl").write_bytes(b"")
    with pytest.warns(UserWarning, match="missing"):
        Ledger(tmp_path / "ledger").read()
    taken_over(tmp_path, 2)
    second = driver(tmp_path, fresh=False, number=2)
    assert second.state.recorded_epochs(attempt.config, 0, 0) == {0}
    assert run_all(second) == "finished"
    assert table(second.state) == table(Ledger(whole / "ledger").read())
    assert second.state.fold_epochs == 16


@pytest.mark.parametrize("lost", quick.only([7], [1, 4, 7, 15]))
def test_every_command_reads_a_made_sweep_that_lost_its_drivers_last_records(tmp_path, cli, lost):
    folder = made_sweep(  # as older versions wrote it: no `begin`
        tmp_path / "sweeps" / "s", "sqlite:///nowhere.db", held_out=lambda index, fold: logits(index + fold), configs=6
    )
    expected = folder.ledger.read(epochs=False)
    path = folder.path / "ledger" / "driver" / "0001" / "00000000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-lost]) + lines[-lost][:20])
    where = ["--storage", tmp_path / "sweeps"]
    for command in (
        ["status", "s"],
        ["best", "s", "--out", tmp_path, "--anyway"],
        ["compare", "s", "--a", "clo-v2", "--b", "blo"],
    ):
        ran = cli("leebert-tune", *command, *where)
        assert ran.code == 0, ran.err
        assert ("missing" in ran.err) == (lost > 3), ran.err  # its end and a conclusion leave no trace
    assert cli("leebert-tune", "list", *where).out.count("damaged") == 0
    ledger = folder.ledger
    if lost > 3:
        with pytest.warns(UserWarning, match="missing"):
            assert table(ledger.read()) == table(expected)


def test_an_attempt_that_a_driver_granted_after_it_was_taken_over_is_no_loss(tmp_path):
    ledger = Ledger(tmp_path)
    first = ledger.driver_writer(1)
    first.append({"kind": "sweep"})
    ledger.driver_writer(2).append({"kind": "resume", "fences": ledger.driver_fences()})
    first.append({"kind": "suggest", "config": "c", "index": 1, "values": {"algorithm": "blo"}})
    first.append({"kind": "grant", "config": "c", "attempt": 1, "driver": 1, "fences": {}})
    ledger.attempt_writer("c", "0001-0001").append(epoch())
    assert not ledger.read().configs  # and no warning


def test_an_attempt_whose_values_are_unknown_is_named_and_omitted(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.driver_writer(1).append({"kind": "sweep"})
    ledger.attempt_writer("c", "0001-0001").append(epoch())
    with pytest.warns(UserWarning, match="the values of configuration c are lost, so its records are ignored"):
        assert not ledger.read().configs


def test_decisions_on_what_was_lost_are_omitted_only_where_something_was_lost(tmp_path):
    records = [{"seq": 0, "time": 1.0, "kind": "sweep"}, {"seq": 1, "time": 1.0, "kind": "complete", "config": "c"}]
    assert [r["kind"] for _, r in restore({"0001": records}, [], dict().get).records] == ["sweep", "complete"]
    records[1]["seq"] = 5
    told = restore({"0001": records}, [], dict().get)
    assert [r["kind"] for _, r in told.records] == ["sweep"]
    assert told.missing[0].startswith("4 records of driver 0001 are missing")
    back = restore(
        {"0001": records}, [Orphan("c", "0001-0001", {"kind": "begin", "values": {"a": 1}, "index": 3})], {}.get
    )
    assert [r["kind"] for _, r in back.records] == ["sweep", "suggest", "grant", "complete"]
    assert back.records[1][1]["index"] == 3
    assert not back.recovered  # the gap is seen by the next reader, too
    assert back.fences == {"0001": 6}


def test_configurations_of_attempts_without_a_copy_of_their_grant_are_numbered_after_the_ones_that_exist():
    orphans = [Orphan(name, "0001-0001", {"kind": "epoch", "time": time}) for time, name in ((2.0, "b"), (1.0, "a"))]
    sweep = {"seq": 0, "time": 0.0, "kind": "sweep"}
    restored = restore({"0001": [sweep]}, orphans, {"a": {"x": 1}, "b": {"x": 2}}.get).records
    suggested = [(r["config"], r["index"], r["values"]) for _, r in restored if r["kind"] == "suggest"]
    assert suggested == [("a", 1, {"x": 1}), ("b", 2, {"x": 2})]


def test_damage_in_the_middle_of_a_drivers_segment_is_still_an_error(whole, tmp_path):
    shutil.copytree(whole / "ledger", tmp_path / "ledger")
    path = tmp_path / "ledger" / "driver" / "0002" / "00000001.jsonl"
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    with pytest.raises(SweepError, match=r"00000001\.jsonl, line 1: wrong checksum"):
        Ledger(tmp_path / "ledger").read()


def test_mlflow_is_not_made_to_agree_with_a_ledger_that_lost_a_part(tmp_path):
    """It would lose the results of configurations whose conclusions are gone, until a resume draws them again."""
    folder = made_sweep(tmp_path / "s", f"sqlite:///{tmp_path / 'mlflow.db'}", configs=2, prune_last=False)
    taken_over(folder.path, 2)
    (folder.path / "ledger" / "driver" / "0001" / "00000000.jsonl").unlink()
    with pytest.raises(SweepError, match=r"records of driver 0001 are missing.*first resume by: leebert-tune resume "):
        rebuild(folder)
    assert not (tmp_path / "mlflow.db").exists()
