"""`leebert-tune predict`: files on a Ray cluster of two nodes, in shards; what is refused, and what is resumed."""

import contextlib
import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from ahead import ENVIRONMENT, prepared
from commands import commands
from encoders import WORDS
from saved_models import save_model

ROWS = (5000, 3)  # of the two files: two windows, and one
NAMES = ["0000-one-000000000000.parquet", "0000-one-000000004096.parquet", "0001-two-000000000000.parquet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("cluster"))


def make_place(folder):
    """A saved model and two files of texts."""
    save_model(folder / "model", None, ("no", "yes"), layers=2)
    chance = random.Random(0)
    for name, rows in zip(("one.txt", "two.jsonl"), ROWS, strict=True):
        texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(rows)]
        lines = texts if name == "one.txt" else [json.dumps({"text": text}) for text in texts]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def files(place):
    return place / "one.txt", place / "two.jsonl"


#: In a process of its own: a model takes random numbers, which other tests take meanwhile.
MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cluster_prediction import make_place
make_place(Path(sys.argv[1]))
"""


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions by two nodes: a whole run, one that resumes it without a shard, one of a bad row."""

    place: Path
    whole: subprocess.CompletedProcess
    resumed: subprocess.CompletedProcess
    bad: subprocess.CompletedProcess
    kept: bool  # whether the second run has left a shard of the first as it was


@prepared(using=("nodes",))
def predicted(folder, nodes):
    make = [sys.executable, "-c", MAKE, folder, Path(__file__).parent]
    subprocess.run(make, check=True, env=ENVIRONMENT, capture_output=True)
    (folder / "bad.jsonl").write_text('{"text": "cat"}\n{"text": 3}\n')
    with nodes.alone, contextlib.ExitStack() as added, commands(folder) as command:
        for _ in range(2):
            added.callback(nodes.remove, nodes.add(cpus=1))

        def run(out, *words):
            return command("predict", folder / "model", *words, "--out", folder / out, "--address", nodes.address)

        whole = run("out", *files(folder), "--json")
        assert whole.returncode == 0, whole.stderr
        shutil.copytree(folder / "out", folder / "first")
        (folder / "out" / NAMES[1]).unlink()  # as if the first run had been interrupted
        written = (folder / "out" / NAMES[0]).stat().st_mtime_ns
        resumed = run("out", *files(folder))
        kept = (folder / "out" / NAMES[0]).stat().st_mtime_ns == written
        bad = run("bad", folder / "bad.jsonl")
    yield Predicted(folder, whole, resumed, bad, kept)


def shards(out):
    return sorted(path.name for path in out.iterdir() if path.name != "predict.json")


def read(out):
    return pd.concat([pd.read_parquet(out / name) for name in NAMES], ignore_index=True)


@pytest.mark.slow
def test_two_nodes_write_the_predictions_of_one_process_and_a_second_run_resumes(predicted, cli, tmp_path):
    place, first, out = predicted.place, predicted.place / "first", predicted.place / "out"
    assert shards(first) == NAMES
    assert json.loads(predicted.whole.stdout) == {"out": str(out), "shards": 3, "rows": sum(ROWS), "resumed": 0}
    together = read(first)
    assert together["source"].tolist() == ["one.txt"] * ROWS[0] + ["two.jsonl"] * ROWS[1]
    alone = []
    for file in files(place):
        ran = cli("leebert", "predict", place / "model", file, "--out", tmp_path / "alone.parquet", "--device", "cpu")
        assert ran.code == 0, ran.err
        alone.append(pd.read_parquet(tmp_path / "alone.parquet"))
    expected = pd.concat(alone, ignore_index=True)
    pd.testing.assert_frame_equal(together.drop(columns="source"), expected, check_exact=False, atol=1e-5)
    ran = predicted.resumed
    assert ran.returncode == 0, ran.stderr
    assert f"{ROWS[0] - 4096} predictions; 3 shards; 2 of them are of an earlier run" in " ".join(ran.stdout.split())
    assert predicted.kept
    assert shards(out) == NAMES
    pd.testing.assert_frame_equal(read(out), together, check_exact=False, atol=1e-5)


@pytest.mark.slow
def test_a_bad_row_is_named_with_its_file_and_line_from_the_node_that_read_it(predicted):
    assert predicted.bad.returncode == 1
    assert predicted.bad.stderr.splitlines()[-1] == (
        f"error: {predicted.place / 'bad.jsonl'}, line 2, column 'text': 3 is not text but int; write it as a string"
    )


def test_what_is_refused_before_a_cluster_is_asked_for(place, cli, tmp_path):
    def refused(*words, part):
        ran = cli("leebert-tune", "predict", *words)
        assert ran.code == 1, ran.out
        assert part in ran.err

    one, _ = files(place)
    out = ("--out", tmp_path / "out")
    refused(place / "model", tmp_path / "none.txt", *out, part="no such file")
    refused(place / "model", one, one, *out, part="a file is named twice")
    refused(place / "model", one, *out, "--format", "xml", part="--format xml: should be jsonl, csv or parquet")
    refused(place, one, *out, part="no config.json")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    refused(place / "model", one, "--out", tmp_path / "taken", part="the folder has other contents")


def test_other_settings_do_not_resume(place, tmp_path, monkeypatch):
    from leebert.errors import ConfigError
    from leebert.files import write_atomically
    from leebert.predictor_options import PredictorOptions
    from tune.models.predict import ClusterPrediction, check

    model = shutil.copytree(place / "model", tmp_path / "model")
    request = ClusterPrediction(PredictorOptions(model), files(place), (), tmp_path / "out", "csv")
    request.out.mkdir()
    write_atomically(request.out / "predict.json", json.dumps(request.identity()))
    check(request)
    faster = PredictorOptions(model, threads=4)
    check(ClusterPrediction(faster, request.files, (), request.out, "csv"))
    monkeypatch.chdir(tmp_path)
    check(ClusterPrediction(PredictorOptions(Path("model")), request.files, (), Path("out"), "csv"))
    with pytest.raises(ConfigError, match="predictions with other options"):  # its windows begin elsewhere
        check(ClusterPrediction(PredictorOptions(model, batch_size=8), request.files, (), request.out, "csv"))
    other = PredictorOptions(model, criterion="confidence", threshold=0.9)
    with pytest.raises(ConfigError, match="predictions with other options; give a new folder"):
        check(ClusterPrediction(other, request.files, (), request.out, "csv"))
    with pytest.raises(ConfigError, match="predictions with other files, format;"):
        check(ClusterPrediction(request.options, request.files[:1], (), request.out, "jsonl"))
    config = model / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ConfigError, match="predictions with other model;"):
        check(request)


def test_our_own_error_is_read_from_one_of_ray():
    import ray

    from leebert.errors import DataError, SweepError
    from tune.models.predict import _cause

    own = DataError("texts.txt, line 3: empty\nFailed to run task after 1/1 attempts.\nTo change retry attempts, x.")
    wrapped = ray.exceptions.RayTaskError("read", "a traceback", own).as_instanceof_cause()
    error = _cause(wrapped)
    assert (type(error), str(error)) == (DataError, "texts.txt, line 3: empty")
    other = _cause(ray.exceptions.RayTaskError("read", "a traceback", MemoryError("no memory")).as_instanceof_cause())
    assert isinstance(other, SweepError)
    assert str(other).startswith("Ray ended the prediction: ")
