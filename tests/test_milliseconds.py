"""Wall-clock time of operating points: means over exits, scores within a time, and the targets of the commands."""

import json

import numpy as np
import pytest
from encoders import graded_rows, write_task
from hypothesis import given
from hypothesis import strategies as st
from saved_models import save_model

from leebert.errors import ConfigError
from leebert.evaluate import RecordedLogits
from leebert.milliseconds import ExitMilliseconds, parse_milliseconds
from leebert.tradeoff import tradeoff
from leebert.yaml import dump_yaml

TIMES = ExitMilliseconds((1.0, 3.0, 4.0), (1, 2, 3), "PyTorch, this machine")


def curve(seed=0, rows=200):
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 2, rows)
    sure = chance.gamma(2.0, 1.0, rows) * np.arange(1, 4)[:, None]
    logits = chance.normal(size=(3, rows, 2))
    logits[np.arange(3)[:, None], np.arange(rows), labels] += sure
    return tradeoff(RecordedLogits(logits.astype(np.float32), labels), "confidence", metric="accuracy")


@pytest.mark.parametrize(("text", "value"), [("5ms", 5), ("5", 5), (" 0.5 MS", 0.5), ("1e-3ms", 0.001)])
def test_a_time_is_given_in_milliseconds(text, value):
    assert parse_milliseconds(text, "--latency") == value


@pytest.mark.parametrize("text", ["", "ms", "-5ms", "0", "5s", "1.2.3", "nan", "inf"])
def test_what_is_no_time(text):
    with pytest.raises(ConfigError, match=r"--latency .*should be milliseconds per sample above 0, such as 5ms"):
        parse_milliseconds(text, "--latency")


def test_the_mean_time_counts_each_sample_at_its_exit():
    assert TIMES.mean([2, 1, 1]) == pytest.approx(9 / 4)
    assert TIMES.mean([[4, 0, 0], [0, 0, 4]]).tolist() == [1, 4]
    assert TIMES.at_layers([1, 1.5, 3]).tolist() == [1, 2, 4]
    assert ExitMilliseconds.of(TIMES.as_dict()) == TIMES


@given(st.integers(0, 5), st.floats(1.01, 5))
def test_a_curve_within_a_time(seed, latency):
    points = curve(seed)
    times = TIMES.of_curve(points)
    assert times == pytest.approx([TIMES.mean(count) for count in points.counts])
    assert (np.diff(times) > 0).all()
    assert times[-1] == 4
    if latency < times[0]:
        assert not TIMES.reaches(points, latency)
        for read in (TIMES.score_at, TIMES.speed_up_within):
            with pytest.raises(
                ConfigError, match=rf"takes from {times[0]:.3g} to 4 ms per sample \(PyTorch, this machine\)"
            ):
                read(points, latency)
        return
    assert TIMES.score_at(points, latency) == pytest.approx(np.interp(latency, times, points.scores))
    layers = points.depth / TIMES.speed_up_within(points, latency)
    index = int(np.abs(points.layers - layers).argmin())
    assert times[index] <= latency * (1 + 1e-9)
    assert index == len(times) - 1 or times[index + 1] > latency


def test_a_curve_without_counts_is_interpolated_in_layers():
    exact, read = curve(), type(curve()).of(curve().as_dict())
    assert TIMES.of_curve(read) == pytest.approx(TIMES.at_layers(exact.layers))


@pytest.mark.slow
def test_the_exported_form_is_timed_and_evaluated_as_the_model_is(cli, tmp_path):
    own = write_task(tmp_path / "data")
    for split, rows in (("train", graded_rows(60, 0)), ("dev", graded_rows(80, 1))):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_model(tmp_path / "model", own, ("no", "yes"), layers=3)
    (tmp_path / "pairs.yaml").write_text(dump_yaml(own))
    ran = cli("leebert", "export", model, "--out", tmp_path / "exported", "--exits", "all", "--criterion", "entropy")
    assert ran.code == 0, ran.err
    in_torch = cli("leebert", "evaluate", model, "--json", "--timed-rows", 3).json["dev"]
    timed = cli("leebert", "evaluate", model, "--exported", "--json", "--timed-rows", 3).json["dev"]
    ran = cli("leebert", "evaluate", tmp_path / "exported", "--task", tmp_path / "pairs.yaml", "--json")
    assert ran.code == 0, ran.err
    exported = ran.json["dev"]
    for result in (timed, exported):
        assert result["milliseconds"]["measured"].startswith("ONNX Runtime fp32, ")
        assert result["milliseconds"]["layers"] == [1, 2, 3]
        assert result["milliseconds"]["exits"] == sorted(result["milliseconds"]["exits"])
    assert in_torch["milliseconds"]["measured"].startswith("PyTorch, ")
    assert exported["exits"]["score"] == pytest.approx(in_torch["exits"]["score"])
    layers = [point["layers"] for point in exported["table"]["entropy"]]
    assert layers == pytest.approx([point["layers"] for point in in_torch["table"]["entropy"]], abs=0.05)
    ran = cli("leebert", "evaluate", tmp_path / "exported")
    assert ran.code == 1
    assert "its task pairs is declared in a file; give the file as --task" in ran.err
