"""The ledger: torn tails, damage, two writers, fences, and a state that does not depend on reading twice."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leebert.errors import SweepError
from tune.store import ledger as ledger_module
from tune.store.ledger import Ledger, SegmentWriter, SweepState, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=8,
)


def epoch(config="c", seed=0, fold=0, n=0, attempt=1, score=0.5):
    return {
        "kind": "epoch", "config": config, "attempt": attempt, "seed": seed, "fold": fold, "epoch": n, "score": score,
        "exits": {"score": [score, score]}, "weights": {"ce": [1.0, 1.0], "kd": [1.0, 1.0]}, "theta_updates": n + 1,
        "seconds": 1.0, "train_loss": 1.0, "collapsed": [], "ended": None,
    }  # fmt: skip


def cell_end(config="c", seed=0, fold=0, attempt=1, score=0.5, ended="max_epochs"):
    return {
        "kind": "cell_end",
        "config": config,
        "attempt": attempt,
        "seed": seed,
        "fold": fold,
        "ended": ended,
        "score": score,
    }


def started(ledger, config="c", attempts=1):
    driver = ledger.driver_writer(1)
    driver.append({"kind": "sweep"})
    driver.append({"kind": "suggest", "config": config, "index": 0, "values": {"algorithm": "clo-v2"}})
    for attempt in range(1, attempts + 1):
        driver.append({"kind": "grant", "config": config, "attempt": attempt, "fences": {}})
    return driver


@given(st.dictionaries(st.text(), JSON))
def test_a_line_decodes_to_what_was_encoded_and_any_flipped_byte_is_seen(record):
    line = encode(record)
    assert line.count(b"\n") == 1
    assert decode(line[:-1]) == record
    damaged = line[:-2] + bytes([line[-2] ^ 1])
    with pytest.raises(ValueError, match="."):
        decode(damaged)


def test_a_torn_tail_is_ignored_wherever_it_is_cut(tmp_path):
    ledger = Ledger(tmp_path)
    started(ledger)
    writer = ledger.attempt_writer("c", "0001-0001")
    writer.append(epoch(n=0))
    writer.append(epoch(n=1))
    path = next((tmp_path / "c" / "0001-0001").iterdir())
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):  # without its line end alone, a record is whole
        path.write_bytes(whole[:cut])
        assert ledger.read().recorded_epochs("c", 0, 0) == {0}
    path.write_bytes(whole)
    assert ledger.read().recorded_epochs("c", 0, 0) == {0, 1}


def test_damage_in_the_middle_is_an_error_with_file_and_line(tmp_path):
    ledger = Ledger(tmp_path)
    started(ledger)
    writer = ledger.attempt_writer("c", "0001-0001")
    for n in range(3):
        writer.append(epoch(n=n))
    path = next((tmp_path / "c" / "0001-0001").iterdir())
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    with pytest.raises(SweepError, match=r"00000000\.jsonl, line 1: wrong checksum"):
        ledger.read()


def test_a_new_process_never_appends_behind_a_torn_line(tmp_path):
    first = SegmentWriter(tmp_path)
    first.append({"kind": "x"})
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes() + b"0000")
    second = SegmentWriter(tmp_path)
    assert second.append({"kind": "y"})[0]["seq"] == 1
    assert [r["kind"] for r in Ledger(tmp_path.parent)._read(tmp_path)] == ["x", "y"]


def test_segments_are_numbered_and_full_ones_never_change(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "SEGMENT", 2)
    writer = SegmentWriter(tmp_path)
    seen = {}
    for i in range(5):
        writer.append({"kind": "x", "i": i})
        for path in sorted(tmp_path.iterdir())[:-1]:
            assert seen.setdefault(path.name, path.read_bytes()) == path.read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000000.jsonl", "00000001.jsonl", "00000002.jsonl"]


def test_records_are_synced_before_append_returns_and_full_segments_before_the_next_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "SEGMENT", 2)
    synced = {}  # bytes by inode

    def fsync(handle):
        file = os.fstat(handle)
        synced[file.st_ino] = file.st_size

    monkeypatch.setattr(ledger_module.os, "fsync", fsync)

    def on_disk(path):
        return synced.get(path.stat().st_ino) == path.stat().st_size

    writer = SegmentWriter(tmp_path)
    first = tmp_path / "00000000.jsonl"
    writer.append({"kind": "x"})
    assert on_disk(first)
    writer.append({"kind": "x"}, sync=False)
    assert not on_disk(first)
    writer.append({"kind": "x"}, sync=False)
    assert on_disk(first)
    assert not on_disk(tmp_path / "00000001.jsonl")


def test_what_an_old_writer_adds_after_it_was_superseded_does_not_count(tmp_path):
    ledger = Ledger(tmp_path)
    driver = started(ledger)
    old = ledger.attempt_writer("c", "0001-0001")
    old.append(epoch(n=0, score=0.5))
    driver.append({"kind": "grant", "config": "c", "attempt": 2, "fences": {"1": 1}})
    old.append(epoch(n=1, attempt=1, score=0.1))  # a node that was cut off goes on writing
    old.append(cell_end(attempt=1, score=0.1))
    new = ledger.attempt_writer("c", "0002-0001")
    new.append(epoch(n=1, attempt=2, score=0.9))
    state = ledger.read()
    assert state.recorded_epochs("c", 0, 0) == {0, 1}
    assert state.epochs["c", 0, 0][1]["score"] == 0.9
    assert not state.cells


@given(st.permutations(range(6)))
def test_reading_twice_changes_nothing_and_identities_hold(order):
    state = SweepState()
    state.apply({"kind": "suggest", "config": "c", "index": 0, "values": {}})
    state.apply({"kind": "grant", "config": "c", "attempt": 1, "fences": {}})
    records = [{"seq": i, **epoch(n=i % 3, fold=i // 3)} for i in range(6)]
    for i in order:
        assert state.apply(records[i])
    for record in records:
        assert not state.apply(record)
    assert state.fold_epochs == 6
    assert {(c.fold, len(c.epochs)) for c in state.history()[0].cells} == {(0, 3), (1, 3)}


def test_every_record_is_new_once():
    state = SweepState()
    where = {"time": 1.0, "config": "c"}
    records = [
        {"kind": "sweep", "time": 1.0},
        {"kind": "suggest", **where, "index": 0, "values": {}},
        {"kind": "grant", **where, "attempt": 1, "fences": {}},
        {"time": 1.0, "seq": 0, **epoch()},
        {"time": 1.0, "seq": 1, **cell_end()},
        {"kind": "complete", **where},
        {"kind": "reopen", **where},
        {"kind": "fail", **where, "attempt": 1, "final": True},
        {"kind": "prune", **where},
    ]
    for record in records:
        assert state.apply(record) is True, record["kind"]
        assert state.apply(record) is False, record["kind"]


def test_histories_are_values_that_later_records_leave_alone():
    state = SweepState()
    state.apply({"kind": "suggest", "config": "c", "index": 0, "values": {}})
    state.apply({"seq": 0, **epoch(n=0)})
    before = state.history()
    state.apply({"seq": 1, **epoch(n=1)})
    assert len(before[0].cells[0].epochs) == 1
    assert len(state.history()[0].cells[0].epochs) == 2


def test_a_diverged_cell_has_no_score_and_a_pruned_configuration_stays_pruned():
    state = SweepState()
    state.apply({"kind": "suggest", "config": "c", "index": 0, "values": {}})
    state.apply({"seq": 0, **epoch(n=0)})
    state.apply({"seq": 1, **cell_end(ended="diverged", score=None)})
    assert state.history()[0].cells[0].best is None
    assert state.history()[0].scores == ()
    state.apply({"kind": "prune", "config": "c"})
    assert state.history()[0].state == "pruned"


def test_a_repaired_run_keeps_its_record_from_before_beside_the_new_one():
    state = SweepState()
    state.apply({"kind": "suggest", "config": "c", "index": 0, "values": {}})
    state.apply({"kind": "grant", "config": "c", "attempt": 1, "fences": {}})
    state.apply({"seq": 0, **cell_end(score=0.5)})
    state.apply({"kind": "reopen", "config": "c", "repair": {"cells": [[0, 0]], "attempt": 1}})
    assert not state.cells
    state.apply({"kind": "grant", "config": "c", "attempt": 2, "fences": {}})
    state.apply({"seq": 0, **cell_end(attempt=2, score=0.75)})
    assert (state.replaced["c", 0, 0]["score"], state.cells["c", 0, 0]["score"]) == (0.5, 0.75)


def test_a_missing_ledger_is_reported(tmp_path):
    with pytest.raises(SweepError, match="is not a ledger"):
        Ledger(tmp_path).read()


@pytest.mark.parametrize("ahead", [-3600, 0, 3600])
def test_a_trials_clock_does_not_move_its_records_past_the_driver_s_decisions(tmp_path, ahead):
    ledger = Ledger(tmp_path)
    driver, clock = ledger.driver_writer(1), 1_000_000
    told = []
    for config in ("a", "b"):
        trial = ledger.attempt_writer(config, "0001-0001")
        suggest = {"kind": "suggest", "config": config, "index": 0, "values": {}}
        grant = {"kind": "grant", "config": config, "attempt": 1, "fences": {}}
        for writer, record in (
            (driver, suggest), (driver, grant), (trial, epoch(config)), (trial, epoch(config, n=1)),
            (trial, cell_end(config)), (driver, {"kind": "complete", "config": config}),
        ):  # fmt: skip
            # The conclusion comes in the same moment as what it concludes from.
            clock += record["kind"] != "complete"
            writer.append({**record, "time": clock + (ahead if writer is trial else 0)})
            told.append((record["kind"], config, record.get("epoch")))
    driver.append({"kind": "end", "time": clock + 1})
    found = [(r["kind"], r.get("config"), r.get("epoch")) for r in ledger.in_order()]
    assert found == [*told, ("end", None, None)]


def test_in_order_records_come_before_the_decision_that_was_taken_with_them_whatever_the_clocks_show(
    tmp_path, monkeypatch
):
    ledger, clock = Ledger(tmp_path), [100.0]
    monkeypatch.setattr(ledger_module.time, "time", lambda: clock[0])
    driver = started(ledger)
    clock[0] = 900.0  # the trial's host is ahead
    trial = ledger.attempt_writer("c", "0001-0001")
    trial.append(epoch(n=0), cell_end())
    clock[0] = 101.0
    driver.append({"kind": "complete", "config": "c"})
    driver.append({"kind": "suggest", "config": "d", "index": 1, "values": {}})
    driver.append({"kind": "grant", "config": "d", "attempt": 1, "fences": {}})
    clock[0] = 10.0  # and another's behind
    ledger.attempt_writer("d", "0001-0001").append(epoch("d"))
    assert [(r["kind"], r.get("config")) for r in ledger.in_order()] == [
        ("sweep", None), ("suggest", "c"), ("grant", "c"), ("epoch", "c"), ("cell_end", "c"), ("complete", "c"),
        ("suggest", "d"), ("grant", "d"), ("epoch", "d"),
    ]  # fmt: skip


def test_a_driver_that_was_taken_over_before_its_first_record_counts_for_nothing(tmp_path):
    ledger = Ledger(tmp_path)
    started(ledger).append({"kind": "complete", "config": "c"})
    fences = ledger.driver_fences()
    third = ledger.driver_writer(3)
    third.append({"kind": "resume", "fences": fences})
    second = ledger.driver_writer(2)  # it has stood still since it got its number
    second.append({"kind": "resume", "fences": fences})
    second.append({"kind": "reopen", "config": "c"})
    third.append({"kind": "end", "status": "finished"})
    assert ledger.read().configs["c"].state == "complete"
    assert [r["kind"] for r in ledger.in_order()][-2:] == ["resume", "end"]
