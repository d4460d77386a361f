"""What timing of exits measures, and that a machine with other work is told from a slow network."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from encoders import batch, encoder

from leebert.exits.replay import make_criterion
from leebert.latency import LEAST_ROUNDS, MOST_ROUNDS, time_exits
from leebert.model import build_model
from leebert.runtime import Runtime, limited_threads

ROWS = 2


@pytest.fixture
def timed(monkeypatch):
    """What timing a network of three layers finds, and how often its first layer ran."""
    model = build_model(encoder("bert", layers=3), ("no", "yes"), pooling="cls").eval()
    rule = make_criterion("patience", None, num_exits=3, num_classes=2)
    layers = model.stack.layers()

    def run(before_second=lambda: None):
        calls = []
        layers[0].register_forward_hook(lambda *_: calls.append(1))
        layers[1].register_forward_pre_hook(lambda *_: before_second())
        with limited_threads(1):
            found = time_exits(
                {"it": (model, rule)}, [batch(rows=1) for _ in range(ROWS)], Runtime(torch.device("cpu"), torch.float32)
            )
        return found, len(calls) / ROWS - 1  # the first round warms up

    return run


def test_work_counts_from_the_exit_after_it(timed):
    def work():
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass

    found, rounds = timed(work)
    first, second, third = np.diff([0.0, *found.seconds["it"]])
    assert second > 0.02 > max(first, third)
    assert LEAST_ROUNDS <= rounds <= MOST_ROUNDS
    assert type(found.share) is type(found.apart) is float, "what JSON takes, of a disturbed measurement too"


@pytest.mark.slow
def test_waiting_is_distinguished_from_work(timed):
    found, rounds = timed(lambda: time.sleep(0.02))
    assert np.diff(found.seconds["it"])[0] > 0.02, "the wall clock's"
    assert found.share < 0.5
    assert rounds == MOST_ROUNDS


@pytest.mark.slow
def test_rounds_that_disagree_are_reported_although_the_thread_had_a_processor(timed):
    calls = itertools.count()

    def slower_in_odd_rounds():
        until = time.thread_time() + (0.08 if next(calls) // ROWS % 2 else 0.04)
        while time.thread_time() < until:
            pass

    found, rounds = timed(slower_in_odd_rounds)
    assert found.apart > math.log(1.5)
    assert np.diff(found.seconds["it"])[0] == pytest.approx(0.04, rel=0.5), "the fastest counts"
    assert rounds == MOST_ROUNDS
