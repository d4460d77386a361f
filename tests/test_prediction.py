"""Prediction of long files and streams: windows, several processes, formats of the output."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from encoders import WORDS
from hypothesis import given
from hypothesis import strategies as st
from saved_models import save_model

from leebert import windows
from leebert.errors import DataError
from leebert.predictor import threads_each
from leebert.windows import Windows, arriving_lines

SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), None, ("no", "yes"), layers=2)


def texts(count):
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 12))) for _ in range(count)]


def as_jsonl(lines):
    return "".join(json.dumps({"text": line}) + "\n" for line in lines)


# Windows


@given(st.lists(st.integers(0, 40)), st.integers(1, 5))
def test_windows_hold_every_item_in_order_and_are_bounded(weights, rows):
    bound, windows.WEIGHT = windows.WEIGHT, 60
    try:
        parts = list(Windows(iter(weights), int, rows=rows))
        assert [weight for part in parts for weight in part] == weights
        assert all(0 < len(part) <= rows and sum(part[:-1]) < 60 for part in parts)
        arrived = list(Windows(iter(weights), int, rows=rows, streams=True))
        assert [weight for part in arrived for weight in part] == weights
        assert all(0 < len(part) <= rows and sum(part[:-1]) < 60 for part in arrived)
    finally:
        windows.WEIGHT = bound


@pytest.mark.parametrize("streams", [False, True])
def test_items_before_an_error_come_first(streams):
    def items():
        yield from (1, 2, 3)
        raise DataError("row 3 is bad")

    parts = Windows(items(), int, rows=2, streams=streams)
    taken = []
    while len(taken) < 3:
        taken += parts.take()
    with pytest.raises(DataError, match="row 3 is bad"):
        parts.take()
    assert taken == [1, 2, 3]


def test_a_stream_is_read_at_most_a_window_ahead_and_waits_for_nothing_that_has_not_arrived():
    arrivals = threading.Semaphore(0)
    read = []

    def items():
        for number in range(100):
            arrivals.acquire()
            read.append(number)
            yield number

    parts = Windows(items(), lambda _: 1, rows=3, streams=True)
    assert parts.take(wait=False) is None
    arrivals.release()
    assert parts.take() == [0]
    arrivals.release(50)
    while len(read) < 5:  # one window, and the next item
        pass
    assert parts.take(wait=False) == [1, 2, 3]
    assert len(read) < 10


def test_lines_that_arrive_in_pieces():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as writer:
        lines = arriving_lines(stream)
        writer.write(b"one\ntw")
        assert next(lines) == b"one\n"
        writer.write(b"o\r\n\nthree")
        assert [next(lines), next(lines)] == [b"two\r\n", b"\n"]
        writer.close()
        assert list(lines) == [b"three"]


def test_more_threads_than_cores_are_warned_about(monkeypatch):
    monkeypatch.setattr("leebert.predictor.cores", lambda: 4)
    assert [threads_each(None, 1), threads_each(None, 2), threads_each(None, 9), threads_each(2, 2)] == [None, 2, 1, 2]
    with pytest.warns(UserWarning, match=r"2 process\(es\) with 3 thread\(s\) each are more than the 4 core\(s\)"):
        assert threads_each(3, 2) == 3


# The command


def test_the_formats_of_the_output_hold_the_same_predictions(model, cli, tmp_path):
    import pandas as pd

    source = tmp_path / "texts.jsonl"
    source.write_text(as_jsonl(texts(30)))
    outputs = {form: tmp_path / f"out.{form}" for form in ("jsonl", "csv", "parquet")}
    for out in outputs.values():
        ran = cli("leebert", "predict", model, source, "--out", out, "--threads", 1)
        assert ran.code == 0, ran.err
    lines = pd.read_json(outputs["jsonl"], lines=True)
    pd.testing.assert_frame_equal(pd.read_parquet(outputs["parquet"]), lines, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(outputs["csv"]), lines, check_dtype=False)
    assert lines["row"].tolist() == list(range(30))


def test_windows_do_not_change_predictions(model, cli, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("\n".join(texts(50)) + "\n")
    whole = cli("leebert", "predict", model, tmp_path / "texts.txt")
    monkeypatch.setattr("leebert.kinds.texts.ROWS", 7)
    parts = cli("leebert", "predict", model, tmp_path / "texts.txt", "--batch-size", 3)
    answers, expected = ([json.loads(line) for line in ran.out.splitlines()] for ran in (parts, whole))
    assert [answer["row"] for answer in answers] == list(range(50))
    for answer, other in zip(answers, expected, strict=True):
        assert answer.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-5)
        assert answer == other


@contextlib.contextmanager
def command(model, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [SCRIPTS / "leebert", "predict", model, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_line_on_stdin_is_answered_before_the_next_one(model):
    with command(model) as process:
        for number, text in enumerate(texts(3)):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["row"] == number
        process.send_signal(signal.SIGINT)  # while it waits for the next line
        assert process.wait(60) == 130
        assert set(process.stderr.read().splitlines()) <= {"loading the model …"}  # only where that takes long


@pytest.mark.slow
def test_processes_answer_in_order_and_a_bad_row_ends_all_of_them(model, cli, tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text(as_jsonl(texts(9000)))  # three windows
    one = tmp_path / "one.jsonl"
    assert cli("leebert", "predict", model, source, "--out", one).code == 0
    with command(model, source, "--processes", "2") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    answers, expected = ([json.loads(line) for line in text.splitlines()] for text in (out, one.read_text()))
    assert [answer["row"] for answer in answers] == list(range(9000))
    assert [a["label"] for a in answers] == [e["label"] for e in expected]
    with source.open("a") as f:
        f.write('{"text": ""}\n')
    with command(model, source, "--processes", "2", "--out", one) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert "line 9001, column 'text': the text is empty" in err.splitlines()[-1]
    assert len(one.read_text().splitlines()) == 9000, "the earlier file stays"
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl", "one.jsonl"}


@pytest.mark.slow
def test_an_interrupted_prediction_leaves_no_half_file_and_no_process(model, tmp_path):
    import psutil

    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts(200_000)))
    out = tmp_path / "out.jsonl"
    with command(model, tmp_path / "texts.txt", "--out", out, "--processes", "2") as process:
        while not [path for path in tmp_path.glob(".out*") if path.stat().st_size]:
            assert process.poll() is None
        children = psutil.Process(process.pid).children()
        assert len(children) >= 2
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert set(process.stderr.read().splitlines()) <= {"loading the model …"}
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]
    assert not psutil.wait_procs(children, 10)[1]
