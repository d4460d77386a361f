"""Where trials run, and where they are tried again after memory ran out: a real node with a GPU that is none."""

import contextlib
import itertools

import pytest
import toy_sweep
from ahead import prepared
from toy_problems import told

from tune.store.ledger import Ledger, attempt_name

pytestmark = pytest.mark.slow

TRAINING = {"batch_size": 4, "max_epochs": 2}


@prepared(using=("nodes",))
def half_gpus(folder, nodes):
    """Trials of half a GPU each, on one GPU, in two sessions, each in a process of its own; their folder."""
    statuses = []
    with nodes.alone, contextlib.ExitStack() as added:
        for problem, options, budget in (
            ("CrowdProblem", {"crowd": 2, "pause": 0.05}, {"fold_epochs": 4}),
            ("HungryProblem", {}, {"trials": 3}),
        ):
            marks = folder / problem
            marks.mkdir()
            process = toy_sweep.start(
                folder, address=nodes.address, problem=problem, options={"marks": str(marks), **options}, gpus=0.5,
                training=TRAINING, budget=budget,
            )  # fmt: skip
            if not statuses:  # while the driver starts
                added.callback(nodes.remove, nodes.add(cpus=3, gpus=1))
            statuses.append(toy_sweep.finished(process))
    assert statuses == ["stopped", "finished"]
    yield folder


@prepared(using=("nodes", "half_gpus"))
def full_node(folder, nodes, half_gpus):
    """How a sweep ended that lost its trial to Ray's monitor of memory, and its folder; after the one above."""
    marks = folder / "marks"
    marks.mkdir()
    with nodes.alone:
        process = toy_sweep.start(
            folder, address=nodes.address, problem="PlacedProblem", options={"marks": str(marks), "pause": 0.3},
            training={"batch_size": 2, "max_epochs": 2}, budget={"trials": 1},
        )  # fmt: skip
        # Any use at all is too much on this node.
        full = nodes.add(cpus=2, env={"RAY_memory_usage_threshold": "0.0001", "RAY_memory_monitor_refresh_ms": "3000"})
        try:
            status = toy_sweep.finished(process)
        finally:
            nodes.remove(full)
    yield status, folder


def grants(folder):
    return [r for r in Ledger(folder / "ledger").in_order() if r["kind"] == "grant"]


def runs(folder):
    """Each stay of a trial on a GPU: from a cell's start to the end of its attempt's records, or of its failure."""
    ledger = Ledger(folder / "ledger")
    state, stays = ledger.read(), []
    ended = {(f["config"], f["attempt"]): f["time"] for known in state.failures.values() for f in known}
    for config, mine in itertools.groupby(
        sorted(told(folder / "HungryProblem"), key=lambda m: m["config"]), lambda m: m["config"]
    ):
        starts = list(mine)
        for start, after in itertools.zip_longest(starts, starts[1:]):
            times = [
                r["time"]
                for g in grants(folder)
                if g["config"] == config
                for r in ledger.records_of(config, attempt_name(g))
                if r["kind"] != "begin"  # written before the trial marks its start, it would lengthen the stay before
            ]
            times += [time for (c, _), time in ended.items() if c == config]
            before_next = after["time"] if after else float("inf")
            end = max((t for t in times if start["time"] <= t <= before_next), default=start["time"])
            stays.append({**start, "end": end})
    return stays


def together(stays, stay):
    """Who is on the same GPU at the same time."""
    return [
        s
        for s in stays
        if s is not stay and s["gpu"] == stay["gpu"] and s["time"] < stay["end"] and stay["time"] < s["end"]
    ]


def test_trials_share_a_gpu_by_halves(half_gpus):
    at_once = told(half_gpus / "CrowdProblem")[:2]
    assert len({s["pid"] for s in at_once}) == 2
    assert [(s["gpu"], s["resources"]["GPU"]) for s in at_once] == [("0", 0.5)] * 2


def test_after_a_resume_in_a_new_process_they_still_ask_for_gpus(half_gpus):
    assert {g["driver"] for g in grants(half_gpus)} == {1, 2}
    later = told(half_gpus / "HungryProblem")
    assert {s["gpu"] for s in later} == {"0"}
    assert {s["resources"]["GPU"] for s in later} == {0.5, 1.0}


def test_memory_that_runs_out_is_answered_alone_then_in_micro_batches_then_fails(half_gpus):
    order = {}
    for g in grants(half_gpus):
        order.setdefault(g["config"], []).append((g.get("alone", ""), g.get("accumulate", 1)))
    order = {config: [place for place, _ in itertools.groupby(places)] for config, places in order.items()}
    assert order == {
        "clo-v2-0.01": [("", 1), ("gpu", 1), ("gpu", 2)],
        "clo-v2-0.001": [("", 1), ("gpu", 1)],
        "blo-0.01": [("", 1), ("gpu", 1), ("gpu", 2), ("gpu", 4)],
    }
    state = Ledger(half_gpus / "ledger").read()
    assert {c.id: c.state for c in state.history()} == {
        "clo-v2-0.01": "complete", "clo-v2-0.001": "complete", "blo-0.01": "failed",
    }  # fmt: skip
    assert {f["reason"] for known in state.failures.values() for f in known} == {"gpu_memory"}
    placements = {config: cell.get("placement") for (config, _, fold), cell in state.cells.items() if fold == 1}
    assert placements == {
        "clo-v2-0.01": {"alone": "gpu", "accumulate": 2},
        "clo-v2-0.001": {"alone": "gpu", "accumulate": 1},
    }


def test_alone_on_a_gpu_nobody_else_is_on_it(half_gpus):
    stays = runs(half_gpus)
    alone = [s for s in stays if s["resources"]["GPU"] == 1]
    assert {s["config"] for s in alone} == {"clo-v2-0.01", "clo-v2-0.001", "blo-0.01"}
    for stay in alone:
        assert not together(stays, stay), stay


def test_a_trial_that_rays_monitor_ends_for_the_nodes_memory_is_tried_again_alone(full_node):
    status, folder = full_node
    assert status == "finished"
    state = Ledger(folder / "ledger").read()
    (failures,) = state.failures.values()
    assert [f["reason"] for f in failures] == ["host_memory"] * 3
    assert [(g.get("alone", ""), g.get("accumulate", 1)) for g in grants(folder)] == [
        ("", 1),
        ("node", 1),
        ("node", 2),
    ]
