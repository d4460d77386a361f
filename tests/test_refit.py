"""`leebert-tune refit`: models on the whole training split, evaluated, in MLflow's registry, and answering there."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from best_files import LAYERS, ROWS
from encoders import graded_rows
from proxy import Fault, proxy

from leebert.errors import ConfigError, DataError, DivergedError
from leebert.exported.model import ExportedModel
from leebert.latency import time_criteria
from leebert.milliseconds import ExitMilliseconds
from leebert.provenance import code_version
from leebert.recipe import train_model
from leebert.yaml import dump_yaml, load_yaml
from tune.models.best_file import content_digest, read_best
from tune.models.serving import _load_pyfunc
from tune.serve.source import exported_folder
from tune.tracking import names

# MLflow's loader of models warns of MLflow's own type hints when it is imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")]

SCRIPTS = Path(sys.executable).parent
ADDRESS = "models:/leebert-pairs@champion"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def refitted(best_place, cli, mlflow_server, tmp_path_factory, trained):
    """The folder of a refit with two seeds, and what the command said."""
    out = tmp_path_factory.mktemp("refit") / "models"

    def training(run, folder, **more):
        train_model(run, folder, **more)
        shutil.copytree(folder, trained / folder.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.models.refit.train_model", training)
        patch.setattr("leebert.latency.ROUNDS", 1)
        patch.setattr("leebert.export.exits.GAIN", 1)  # whatever the times are, every exit is kept
        ran = cli(
            "leebert-tune", "refit", best_place.file, "--seeds", 2, "--criterion", "entropy", "--speed-up", 2,
            "--export", "fp32", "--out", out, "--json", "--tracking-uri", mlflow_server.url,
        )  # fmt: skip
    assert ran.code == 0, ran.err
    return out, ran


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What training alone left of the seeds of `refitted`."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def refit(cli, mlflow_server, refitted, trained, monkeypatch):
    """`leebert-tune refit` in PyTorch; models are those that the same seeds trained before, and few rows are timed, once."""

    def training(run, folder, **more):
        shutil.copytree(trained / f"seed-{run.training.seed}", folder, dirs_exist_ok=True)

    monkeypatch.setattr("tune.models.refit.train_model", training)
    monkeypatch.setattr("leebert.report.time_criteria", lambda *args: time_criteria(*args[:-1], 3))
    monkeypatch.setattr("leebert.latency.ROUNDS", 1)
    options = ("--export", "none", "--tracking-uri", mlflow_server.url)
    return lambda file, *more: cli("leebert-tune", "refit", file, *options, *more)


@pytest.fixture(scope="module")
def loaded(refitted, mlflow_server):
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
        return mlflow.pyfunc.load_model(ADDRESS)


@pytest.fixture
def served(loaded, mlflow_server, monkeypatch):
    """The registered model, as anybody loads it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    return loaded


@pytest.fixture(scope="module")
def rows():
    return pd.DataFrame([{"a": r["a"], "b": r["b"]} for r in graded_rows(40, 7)])


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(ran, *parts):
    assert ran.code == 1, ran.out
    (line,) = [one for one in ran.err.splitlines() if one.startswith("error: ")]
    for part in parts:
        assert str(part) in line, line


# What is trained and written.


def test_each_seed_is_trained_for_the_recorded_updates_on_all_rows(refitted, best_place):
    out, ran = refitted
    best = read_best(best_place.file)
    assert ran.json["seeds"] == [0, 1]
    weights = set()
    for seed in (0, 1):
        told = json.loads((out / f"seed-{seed}" / "training.json").read_text())
        assert (told["rows"], told["held_out_rows"], told["score"]) == (ROWS, 0, None)
        assert told["theta_updates"] == best.config.theta_updates == ran.json["theta_updates"]
        assert told["config"]["training"]["seed"] == seed
        weights.add((out / f"seed-{seed}" / "model.safetensors").read_bytes())
    assert len(weights) == 2
    assert json.loads((out / "refit.json").read_text()) == ran.json


def test_the_first_seed_is_registered_whatever_dev_scores(refitted):
    out, ran = refitted
    assert ran.json["registered_seed"] == 0
    assert "because it is the first, fixed before training" in ran.json["picked"]
    first, second = ((out / f"seed-{seed}" / "README.md").read_text() for seed in (0, 1))
    assert ran.json["picked"] in second
    assert ADDRESS in first
    assert "models:/" not in second, "that address is another model"


def test_thresholds_come_from_cross_validation_and_hold_on_dev(refitted, best_place):
    from leebert.thresholds import choose
    from tune.models.best_file import pooled

    out, ran = refitted
    held_out = pooled(read_best(best_place.file).logits())
    points = {p["criterion"]: p for p in ran.json["evaluations"]["0"]["dev"]["chosen"]}
    assert set(points) == {"patience", "entropy", "confidence", "pcee", "f-pabee", "beem"}
    for rule in points:
        chosen = choose(held_out, rule, 2)
        assert ran.json["chosen"][rule]["threshold"] == chosen.threshold == points[rule]["threshold"]
        if rule in ("entropy", "confidence"):
            assert chosen.reached == pytest.approx(2, rel=0.02)
            # Of one model on some hundred rows of dev; how near others come is measured on real tasks.
            assert points[rule]["speed_up"] == pytest.approx(2, rel=0.15)
    saved = json.loads((out / "seed-0" / "config.json").read_text())
    assert (saved["exit_strategy"], saved["exit_threshold"]) == ("entropy", points["entropy"]["threshold"])


def test_a_finished_refit_is_never_overwritten(refitted, best_place, refit):
    out, _ = refitted
    before = contents(out)
    refused(refit(best_place.file, "--out", out), out, "it already holds a refit")
    assert contents(out) == before


def test_dev_is_opened_last_and_a_refit_resumes_where_it_stopped(best_place, refit, mlflow_server, tmp_path):
    import mlflow

    path = best_place.copy(tmp_path / "best")
    values = load_yaml(path)
    shutil.copytree(best_place.folder / "data", tmp_path / "data")
    values["task"]["files"] = {s: str(tmp_path / "data" / f"{s}.jsonl") for s in ("train", "dev")}
    path.write_text(dump_yaml(values))
    dev = tmp_path / "data" / "dev.jsonl"
    good = dev.read_bytes()
    dev.write_bytes(b"\xff\xfe\0 nobody reads this")
    options = ("--seeds", 2, "--out", tmp_path / "m", "--name", "again", "--criterion", "confidence")
    refused(refit(path, *options), "dev.jsonl")
    weights = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "m").rglob("model.safetensors")}
    assert len(weights) == 2, "both models were trained before dev was opened"

    refused(refit(path, *options, "--speed-up", 1.5), "an unfinished refit with another speed_up")
    dev.write_bytes(good)
    ran = refit(path, *options, "--json")
    assert ran.code == 0, ran.err
    assert "updates on the whole training split" not in ran.err
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in weights} == weights
    assert ran.json["mlflow"]["version"] == 1
    # A second one of the same name is a new version; the first stays.
    again = refit(path, "--out", tmp_path / "n", "--name", "again")
    assert again.code == 0, again.err
    assert "models:/again@champion moves from version 1, which is kept, to version 2" in again.err
    serve = "mlflow models serve --env-manager local --model-uri 'models:/again@champion'"
    assert f"MLFLOW_TRACKING_URI={mlflow_server.url} {serve}" in again.err
    runs = [
        run.info.run_name
        for folder in ("m", "n")
        for run_id in json.loads((tmp_path / folder / "refit.json").read_text())["mlflow"]["runs"].values()
        for run in [mlflow.MlflowClient(mlflow_server.url).get_run(run_id)]
    ]
    assert len(set(runs)) == 3, "names are unique"
    assert re.search(
        r"^entropy \S+: target(: at most 1 point below the full model| 2); layer speed-up \d.\d\d in validation, on dev \d.\d\d \([+-]\d+%\), wall-clock speed-up \d.\d\d",
        again.out,
        re.M,
    )


def test_a_speed_up_is_missed_by_more_than_a_tenth_of_what_was_asked():
    from leebert.thresholds import Chosen

    assert not Chosen("entropy", 0.5, asked=2, reached=2.05).missed(2.19)
    assert Chosen("entropy", 0.5, asked=2, reached=2.05).missed(2.21)
    assert Chosen("confidence", 0.5, asked=2, reached=1.9).missed(1.79)
    assert not Chosen("patience", 2, asked=2, reached=1.5).missed(1.4), "held to the nearest that it attains"


def test_what_missed_its_speed_up_is_in_refit_json_and_in_the_card(refitted):
    out, ran = refitted
    expected = set()
    for seed, splits in ran.json["evaluations"].items():
        for point in splits["dev"]["chosen"]:
            rule = ran.json["chosen"][point["criterion"]]
            aim = rule["reached"] if point["criterion"] == "patience" else 2
            missed = abs(point["speed_up"] / aim - 1) > 0.1
            card = (out / f"seed-{seed}" / "README.md").read_text()
            assert (f"**{point['criterion']} misses the layer speed-up on dev**" in card) == missed
            if missed:
                expected.add((int(seed), point["criterion"]))
    assert {(m["seed"], m["criterion"]) for m in ran.json["missed"]} == expected


def test_a_largest_time_per_text_gives_the_thresholds(best_place, refit, tmp_path, monkeypatch):
    """With times that are proportional to layers."""
    times = ExitMilliseconds(tuple(float(i) for i in range(1, LAYERS + 1)), tuple(range(1, LAYERS + 1)), "made up")
    monkeypatch.setattr("tune.models.refit.time_network", lambda *_: times)
    options = ("--name", "leebert-timed", "--criterion", "entropy", "--out", tmp_path / "m")
    ran = refit(best_place.file, "--latency", "2.5ms", *options, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["latency"], ran.json["times"]["measured"], ran.json["missed"]) == (2.5, "made up", [])
    assert LAYERS / ran.json["chosen"]["entropy"]["reached"] <= 2.5
    refused(refit(best_place.file, "--latency", "2.5ms", "--speed-up", 2, "--out", tmp_path / "n"), "give one of them")
    refused(refit(best_place.file, "--latency", "0.5ms", "--out", tmp_path / "n"), "takes from 1 to 4 ms per sample")
    refused(refit(best_place.file, "--latency", "soon", "--out", tmp_path / "n"), "--latency soon")


def test_without_the_packages_of_an_export_one_line_names_them(monkeypatch, caplog):
    from tune.models.exporting import form_of

    assert [form_of(form) for form in (None, "int8", "fp32", "none")] == ["int8", "int8", "fp32", "none"]
    with pytest.raises(ConfigError, match="--export int4: should be int8, fp32 or none"):
        form_of("int4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert form_of(None) == "none"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "will run in PyTorch" in line
    assert "pip install 'leebert-sweep[export]'" in line
    with pytest.raises(ConfigError, match="needs onnx, onnxscript, onnxruntime"):
        form_of("int8")


def test_a_seed_that_diverges_is_omitted_unless_it_is_the_registered_one(best_place, refit, tmp_path, monkeypatch):
    """As if it had diverged: that training says so is another test's."""
    from tune.models import refit as module

    train = module.train_model

    def training(wrong):
        def one(config, *args, **more):
            if config.training.seed == wrong:
                raise DivergedError("training diverged after 3 updates")
            return train(config, *args, **more)

        monkeypatch.setattr(module, "train_model", one)

    options = ("--seeds", 2, "--name", "diverged", "--out")
    training(0)
    ran = refit(best_place.file, *options, tmp_path / "first")
    refused(ran, "seed 0: training diverged after 3 updates", "--first-seed")
    training(1)
    ran = refit(best_place.file, *options, tmp_path / "second", "--json")
    assert ran.code == 0, ran.err
    assert "seed 1 is skipped: training diverged after 3 updates" in ran.err
    assert (ran.json["seeds"], ran.json["diverged"], list(ran.json["mlflow"]["runs"])) == ([0], [1], ["0"])


def test_two_refits_of_one_folder_are_refused(best_place, refit, tmp_path):
    import fcntl

    (tmp_path / "m").mkdir()
    with (tmp_path / "lock").open("w"):
        handle = os.open(tmp_path / "m", os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            refused(
                refit(best_place.file, "--out", tmp_path / "m"),
                "another refit is running in this folder",
            )
        finally:
            os.close(handle)
    assert list((tmp_path / "m").iterdir()) == []


def test_a_subset_is_called_one():
    from leebert.config import Subset
    from tune.models.refit import samples_in_words

    assert samples_in_words(600, None) == "the whole training split (600 samples)"
    told = samples_in_words(67349, Subset(rows=6000))
    assert told == "a stratified subset of 6,000 of 67,349 samples (seed 0)"


# MLflow.


def test_an_interrupted_refit_is_logged_once_and_where_the_last_call_asked_for(
    best_place, refit, serving, mlflow_server, tmp_path, monkeypatch
):
    """A task with a dot in its name, and a password in the address that no output shows."""
    import mlflow

    path = best_place.copy(tmp_path / "best")
    values = load_yaml(path)
    values["task"]["name"] = "pairs.v1"
    values["found"]["digest"] = content_digest(values)
    path.write_text(dump_yaml(values))
    secret = "pa55word-in-the-address"
    uri = mlflow_server.url.replace("http://", f"http://me:{secret}@")
    said = []

    def again(*more):
        ran = refit(path, "--out", tmp_path / "m", "--tracking-uri", uri, *more)
        said.append(ran.out + ran.err)
        return ran

    def cut(*args, **more):
        raise OSError("the cable was cut")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "log_figure", cut)
        refused(again(), "the cable was cut", "run the same command again")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", cut)
        refused(again(), "the cable was cut", "run the same command again")
    ran = again("--alias", "other")
    assert ran.code == 0, ran.err
    client = mlflow.MlflowClient(mlflow_server.url)
    experiment = client.get_experiment_by_name("leebert-pairs.v1").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "Refit · pairs.v1 CLO-v2 s0")
    assert len(client.get_metric_history(run.info.run_id, "on_dev/score")) == LAYERS, "no point stands there twice"
    (model,) = client.search_logged_models([experiment])
    (version,) = client.search_model_versions("name = 'leebert-pairs.v1'")
    assert version.source == f"models:/{model.model_id}"
    assert client.get_model_version_by_alias("leebert-pairs.v1", "other").version == version.version
    kept = [p.read_bytes() for p in (tmp_path / "m").rglob("*") if p.is_file()]
    assert not any(secret.encode() in contents for contents in kept)
    assert secret not in "".join(said)
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_what_was_logged_to_one_server_is_logged_anew_to_another(refitted, best_place, new_database, tmp_path):
    """The folder remembers the place; an SQLite file is a server of its own."""
    from tune.models.register import LOGGED, RegistryTarget, log_refit

    out = shutil.copytree(refitted[0], tmp_path / "m")
    to = RegistryTarget(new_database(tmp_path), "elsewhere", "leebert-pairs", "champion")
    before = json.loads((out / LOGGED).read_text())
    logged = log_refit(read_best(best_place.file), out, json.loads((out / "refit.json").read_text()), to)
    assert logged["version"] == 1
    assert set(logged["runs"].values()).isdisjoint(before["runs"].values())


def test_a_rejected_tag_is_reported_and_costs_that_tag_alone(
    refitted, best_place, new_database, tmp_path, monkeypatch, log_lines
):
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    from leebert.errors import TrackingError
    from tune.models.register import LOGGED, RegistryTarget, log_refit

    out = shutil.copytree(refitted[0], tmp_path / "m")
    (out / LOGGED).unlink()
    to = RegistryTarget(new_database(tmp_path), "elsewhere", "leebert-pairs", "champion")
    best, told = read_best(best_place.file), json.loads((out / "refit.json").read_text())
    told |= {"seeds": [0]}
    real = mlflow.MlflowClient.set_tag

    def refuse(client, run_id, key, value, **more):
        if key == "sweep":
            raise MlflowException("tags named sweep are not taken here", INVALID_PARAMETER_VALUE)
        return real(client, run_id, key, value, **more)

    def refuse_all(*args, **more):
        raise MlflowException("params of 7 letters are not taken here", INVALID_PARAMETER_VALUE)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_tag", refuse)
        patch.setattr(mlflow.MlflowClient, "log_batch", refuse_all)
        with pytest.raises(TrackingError, match=r"rejected the refit: .*params of 7 letters") as caught:
            log_refit(best, out, told, to)
    assert "Start one" not in str(caught.value)
    (line,) = log_lines()
    assert line.startswith("warning: MLflow rejected the tag 'sweep'; the refit continues without it: ")


def test_a_server_that_goes_away_at_the_end_costs_no_training(best_place, refit, mlflow_server, tmp_path, monkeypatch):
    """Nobody answers once the models are evaluated; when the server is back, the same command logs them."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    evaluated = tmp_path / "m" / "seed-0" / "evaluation.json"
    back = []

    def away(path):
        return Fault() if evaluated.exists() and not back else None

    path = best_place.copy(tmp_path / "best")
    with proxy(mlflow_server.url, away) as url:
        options = ("--out", tmp_path / "m", "--name", "away", "--tracking-uri", url)
        refused(refit(path, *options), f"MLflow can't be used at {url}", "run the same command again to log them")
        back.append(True)
        again = refit(path, *options, "--json")
    assert again.code == 0, again.err
    assert "updates on the whole training split" not in again.err
    assert again.json["mlflow"]["version"] == 1


def test_mlflow_has_a_run_per_seed_with_the_exit_curve(refitted, mlflow_server):
    import mlflow

    _, ran = refitted
    client = mlflow.MlflowClient(mlflow_server.url)
    for seed, run_id in ran.json["mlflow"]["runs"].items():
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert (run.data.tags["kind"], run.data.tags["seed"], run.data.tags["sweep"]) == ("refit", seed, "toy")
        assert all(names.find("metric", name) for name in run.data.metrics)
        told = ran.json["evaluations"][seed]["dev"]
        depth = client.get_metric_history(run_id, "on_dev/score")
        assert [(m.step, m.value) for m in depth] == list(enumerate(told["exits"]["score"], start=1))
        layers = [m.value for m in client.get_metric_history(run_id, "on_dev/entropy_layers")]
        assert sorted(layers) == pytest.approx([p["layers"] for p in told["curves"]["entropy"]])
        assert run.data.metrics["on_dev/score_mean"] == pytest.approx(told["mean_over_exits"])
        assert run.data.params["exit_strategy"] == "entropy"
        assert run.data.params["precision"] == "fp32"
        assert run.data.metrics["on_dev/majority"] == pytest.approx(told["majority"]["score"])
        assert run.data.tags["mlflow.source.name"] == "leebert-tune refit"
        (dataset,) = [one.dataset for one in run.inputs.dataset_inputs]
        assert (dataset.name, len(dataset.digest) > 8) == ("pairs", True)
        there = {a.path for a in client.list_artifacts(run_id)}
        assert {"evaluation.json", "training.json", "exits.json", "README.md", "exit_curve.png"} <= there


def test_params_are_the_options_as_they_were_used(best_place):
    """With `auto`, MLflow has the model's own precision as a param already, and refuses to change it."""
    from tune.models.register import _params

    best = read_best(best_place.file)
    told = {"theta_updates": 1, "criterion": "entropy", "chosen": {"entropy": {"threshold": 0.5, "patience": None}}}
    params = {p.key: p.value for p in _params(best, told, 3, "bf16")}
    assert (params["precision"], params["seed"], params["lr_theta"]) == ("bf16", "3", "0.006")


def test_the_registered_version_has_signature_example_and_no_pickle(
    refitted, scoring, served, best_place, mlflow_server, tmp_path
):
    import mlflow

    _, ran = refitted
    dev = ran.json["evaluations"]["0"]["dev"]
    own = next(point for point in dev["chosen"] if point["criterion"] == ran.json["criterion"])
    client = mlflow.MlflowClient(mlflow_server.url)
    version = client.get_model_version_by_alias("leebert-pairs", "champion")
    assert int(version.version) == ran.json["mlflow"]["version"]
    assert version.tags == {
        "sweep": "toy", "config": ran.json["configuration"], "seed": "0", "best_digest": ran.json["best_digest"],
        "code": code_version(),
        "dev: score": f"{100 * dev['mean_over_exits']:.2f} %",
        "dev: majority class": f"{100 * dev['majority']['score']:.2f} %",
        "dev: layer speed-up": f"{own['speed_up']:.2f}",
        "exported": "fp32", "dev: exported": version.tags["dev: exported"],
    }  # fmt: skip
    assert re.fullmatch(r"[\d.]+ % at [\d.]+× layer speed-up, [\d.e-]+ ms", version.tags["dev: exported"])
    assert (
        f"![Score against mean exit layer](get-artifact?path=exit_curve.png&run_uuid={version.run_id})"
        in version.description
    )
    assert "## Evaluation on dev" in version.description, "the card"
    assert not version.description.startswith("---")
    assert [c.name for c in served.metadata.signature.inputs] == ["a", "b"]
    assert [c.name for c in served.metadata.signature.outputs] == [
        "row", "label", "probability", "exit_layer", "layers_saved",
    ]  # fmt: skip
    assert {p.name for p in served.metadata.signature.params} == {
        "criterion", "threshold", "patience", "speed_up", "max_loss", "latency", "truncate", "batch_size", "strategy",
    }  # fmt: skip
    assert served.metadata.flavors["python_function"]["loader_module"] == "tune.models.serving"
    logged = client.get_logged_model(ran.json["mlflow"]["model_id"])
    assert "on_dev/score_mean" in {m.key for m in logged.metrics}
    folder = Path(mlflow.artifacts.download_artifacts(ADDRESS, dst_path=str(tmp_path / "model")))
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".bin", ".pt", ".joblib")]
    assert {"input_example.json", "serving_input_example.json", "requirements.txt"} <= {p.name for p in files}
    assert "+cpu" not in (folder / "requirements.txt").read_text()
    assert not [p for p in files if p.name.startswith((".checkpoints", ".cache", ".best", "state."))]
    here = str(best_place.folder).encode()
    assert not [p for p in files if here in p.read_bytes()], "no place on one machine"


def test_the_registered_version_holds_the_export_which_the_server_takes(refitted, served, rows, mlflow_server):
    out, ran = refitted
    with exported_folder(ADDRESS, mlflow_server.url) as folder:
        manifest = ExportedModel.load(folder).manifest
        requirements = next(p for p in folder.parents if p.name == "data").parent / "requirements.txt"
        assert "onnxruntime==" in requirements.read_text()
        assert "torch" not in requirements.read_text()
    assert (manifest.name, manifest.precision, manifest.exit_layers) == ("leebert-pairs", "fp32", (1, 2, 3, 4))
    own = ran.json["chosen"]["entropy"]
    assert (manifest.exits.criterion, manifest.exits.threshold) == ("entropy", own["threshold"])
    curve = manifest.curve("entropy")
    # Its curves are those of cross-validation, with the milliseconds of the exported form.
    saved = json.loads((out / "seed-0" / "exits.json").read_text())["curves"]["entropy"]
    assert [[p.threshold, p.speed_up, p.score] for p in curve.points] == [pytest.approx(point) for point in saved]
    assert ran.json["exported"]["splits"]["dev"]["own"]["milliseconds"] > 0
    fastest = served.predict(rows, params={"latency": curve.points[-1].milliseconds * 1.001})
    assert (fastest["exit_layer"] == 1).all()


def test_a_version_without_an_export_runs_in_pytorch(refitted, served, rows):
    from mlflow.exceptions import MlflowException

    in_torch = _load_pyfunc(str(refitted[0] / "seed-0"), {"device": "cpu", "precision": "fp32"})
    params = {"criterion": "confidence", "threshold": 0.9}
    pd.testing.assert_frame_equal(
        in_torch.predict(rows, params), served.predict(rows, params=params), rtol=0, atol=1e-4
    )
    with pytest.raises(MlflowException, match="latency: this model has no measured times"):
        in_torch.predict(rows, {"latency": 1.0})


def test_what_the_models_came_from_is_logged_without_places(refitted, best_place, mlflow_server, tmp_path):
    import mlflow

    _, ran = refitted
    client = mlflow.MlflowClient(mlflow_server.url)
    run_id = ran.json["mlflow"]["runs"]["1"]
    assert client.get_run(run_id).data.tags["best_digest"] == ran.json["best_digest"]
    folder = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    assert json.loads((folder / "refit.json").read_text())["missed"] == ran.json["missed"]
    logged, was = read_best(folder / "best" / "pairs.yaml"), read_best(best_place.file)
    assert logged.config.training == was.config.training
    assert logged.found["score_mean"] == was.found["score_mean"]
    assert len(logged.logits()) == len(was.logits())
    here = str(best_place.folder).encode()
    assert not [p for p in folder.rglob("*") if p.is_file() and here in p.read_bytes()]


# Answers.


def test_batch_scoring_answers_as_the_library_does(served, refitted, rows, cli, tmp_path):
    out, ran = refitted
    answer = served.predict(rows)
    (tmp_path / "rows.jsonl").write_text(rows.to_json(orient="records", lines=True))
    predicted = cli("leebert", "predict", out / "seed-0", tmp_path / "rows.jsonl")
    assert predicted.code == 0, predicted.err
    lines = [json.loads(line) for line in predicted.out.splitlines()]
    predicted = answer[["row", "label", "probability", "exit_layer"]]
    # It answers from the exported model.
    pd.testing.assert_frame_equal(predicted, pd.DataFrame(lines), rtol=0, atol=1e-4, check_index_type=False)
    assert (answer["layers_saved"] == LAYERS - answer["exit_layer"]).all()
    assert answer.index.equals(rows.index)
    entropy = ran.json["chosen"]["entropy"]["threshold"]
    pd.testing.assert_frame_equal(served.predict(rows, params={"criterion": "entropy", "threshold": entropy}), answer)


def test_criterion_and_threshold_are_parameters_of_a_request(served, rows):
    everything = served.predict(rows, params={"criterion": "never"})
    assert (everything["layers_saved"] == 0).all()
    assert (served.predict(rows, params={"criterion": "confidence", "threshold": 0.5})["exit_layer"] == 1).all()
    assert set(served.predict(rows, params={"criterion": "patience", "threshold": 3})["exit_layer"]) == {LAYERS}
    assert (served.predict(rows, params={"criterion": "patience"})["exit_layer"] >= 2).all()
    for patience in (1, 3):
        certain = {"criterion": "pcee", "threshold": 1, "patience": patience}
        assert (served.predict(rows, params=certain)["exit_layer"] == patience).all()
    assert set(served.predict(rows, params={"criterion": "beem", "threshold": 0.1})["exit_layer"]) == {2}
    # f-pabee has a curve at its default patience, 1.
    assert (served.predict(rows, params={"criterion": "f-pabee", "speed_up": 2})["exit_layer"] >= 2).all()
    assert served.predict(rows.iloc[:0]).empty


@pytest.mark.parametrize("rule", ["entropy", "normalised_entropy", "confidence"])
def test_a_request_may_ask_for_a_speed_up(served, rule):
    dev = pd.DataFrame([{"a": r["a"], "b": r["b"]} for r in graded_rows(400, 1)])
    asked = (1, 2, 3, 4)
    layers = [served.predict(dev, params={"criterion": rule, "speed_up": s})["exit_layer"].mean() for s in asked]
    assert layers == sorted(layers, reverse=True)
    assert (layers[0], layers[-1]) == (LAYERS, 1)
    assert LAYERS / np.array(layers[1:3]) == pytest.approx([2, 3], rel=0.15)


def test_patience_takes_the_nearest_and_reports_it(served, rows, caplog):
    served.predict(rows, params={"criterion": "patience", "speed_up": 3.9})
    (said,) = [r.getMessage() for r in caplog.records if "patience" in r.getMessage()]
    assert re.match(
        r"speed_up: exit criterion patience does not reach a layer speed-up of 3.9, .*: the nearest is [\d.]+, threshold 1$",
        said,
    )


WRONG = {
    "a threshold above its range": ({"criterion": "confidence", "threshold": 1.5}, "between 0 and 1, not 1.5"),
    "a threshold below its range": (
        {"criterion": "entropy", "threshold": -0.1},
        "between 0 and ln 2 = 0.6931, not -0.1",
    ),
    "an entropy above ln K": ({"criterion": "entropy", "threshold": 1.2}, "between 0 and ln 2 = 0.6931"),
    "normalised for plain entropy": ({"criterion": "entropy", "threshold": 0.9}, "did you mean normalised_entropy"),
    "a confidence of nothing": ({"criterion": "confidence", "threshold": 0}, "lies above 0, not 0"),
    "more patience than exits": ({"criterion": "patience", "threshold": 4}, "patience lies between 1 and 3"),
    "half a patience": ({"criterion": "patience", "threshold": 1.5}, "a whole number of at least 1, not 1.5"),
    "a rule that nobody knows": ({"criterion": "guess", "threshold": 1}, "exit criterion 'guess' is not known"),
    "a rule without its threshold": ({"criterion": "confidence"}, "'confidence' needs a threshold"),
    "both": ({"threshold": 0.5, "speed_up": 2}, "threshold and speed_up: give one of them"),
    "a speed-up beyond the layers": ({"speed_up": 5}, "speed-up 5: should lie between 1 (all layers) and 4"),
    "a patience of entropy": ({"criterion": "entropy", "threshold": 0.4, "patience": 2}, "has no parameter 'patience'"),
    "a patience without a curve": (
        {"criterion": "pcee", "patience": 3, "speed_up": 1.2},
        "no curve of the exit criterion 'pcee, patience 3'",
    ),
    "a speed-up of never": ({"criterion": "never", "speed_up": 2}, "no threshold of the exit criterion 'never'"),
    "no batch": ({"batch_size": 0}, "batch_size 0: should be a whole number of at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_named_in_one_line(served, rows, name):
    from mlflow.exceptions import MlflowException

    params, part = WRONG[name]
    with pytest.raises(MlflowException) as caught:
        served.predict(rows, params=params)
    assert caught.value.message.startswith("error: ")
    assert part in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.get_http_status_code() == 400


def test_wrong_rows_are_named(served, rows):
    from mlflow.exceptions import MlflowException

    long = rows.copy()
    long.loc[3, "a"] = "cat " * 50
    cases = [
        (rows[["a"]], "Model is missing inputs ['b']"),
        (long, "error: the model takes at most 32 tokens: row 3 has"),
        (rows.assign(b=[*rows["b"][:-1], "  "]), "error: row 39, column 'b': the text is empty"),
    ]
    for data, part in cases:
        with pytest.raises(MlflowException) as caught:
            served.predict(data)
        assert part in caught.value.message
    cut = served.predict(long, params={"truncate": True})
    pd.testing.assert_frame_equal(cut.drop(index=3), served.predict(rows).drop(index=3))


def test_the_library_alone_names_wrong_columns(refitted):
    from leebert.serving import Served

    served = Served(refitted[0] / "seed-0")
    with pytest.raises(DataError, match="no column 'a'; the columns are 'x'"):
        served.predict(pd.DataFrame({"x": ["cat"]}))
    with pytest.raises(DataError, match="row 0, column 'b': 1.5 is not text but float"):
        served.predict(pd.DataFrame({"a": ["cat"], "b": [1.5]}))
    with pytest.raises(DataError, match="duplicate column 'a'"):
        served.predict(pd.DataFrame([["cat", "dog", "bird"]], columns=["a", "a", "b"]))
    good = pd.DataFrame({"a": ["cat"], "b": ["dog"]})
    with pytest.raises(ConfigError, match="unknown parameter 'treshold' .did you mean 'threshold'"):
        served.predict(good, {"treshold": 0.5})
    pd.testing.assert_frame_equal(served.predict(good, {"batch_size": None, "truncate": None}), served.predict(good))


def test_many_rows_are_answered_as_few_are(refitted):
    from leebert.predict import CHUNK
    from leebert.serving import Served

    served = Served(refitted[0] / "seed-0")
    many = pd.DataFrame([{"a": r["a"], "b": r["b"]} for r in graded_rows(CHUNK + 30, 9)])
    all_, some = served.predict(many), served.predict(many.iloc[CHUNK:])
    assert all_["row"].tolist() == list(range(CHUNK + 30))
    assert some["row"].tolist() == list(range(30)), "rows count from 0 in each request"
    pd.testing.assert_frame_equal(all_.iloc[CHUNK:].drop(columns="row"), some.drop(columns="row"))
    many.loc[CHUNK + 3, "a"] = "cat " * 50
    with pytest.raises(DataError, match=f"row {CHUNK + 3} has"):
        served.predict(many)


def test_a_model_is_served_in_the_precision_that_its_thresholds_are_for(refitted):
    from leebert.serving import Served

    folder = refitted[0] / "seed-0"
    assert json.loads((folder / "config.json").read_text())["precision"] == "fp32"
    assert Served(folder).runtime.precision == "fp32"
    assert Served(folder, precision="bf16").runtime.precision == "bf16"


# Processes of their own: both load the model at once, which takes either some seconds.


@pytest.fixture(scope="module")
def scoring(refitted, rows, mlflow_server, tmp_path_factory):
    """A folder, and the process that scores a file there."""
    folder = tmp_path_factory.mktemp("scoring")
    rows.to_csv(folder / "rows.csv", index=False)
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'ray'): sys.modules[name] = None\n"
        "import mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model({ADDRESS!r})\n"
        "model.predict(pandas.read_csv('rows.csv')).to_json('out.json', orient='records')\n"
        "import leebert, tune; print('CODE', leebert.__file__, tune.__file__)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow_server.url},
    )  # fmt: skip
    yield folder, process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def serving(refitted, mlflow_server, tmp_path_factory):
    """`mlflow models serve` on a free port, which starts while other tests run; waits for it, and returns its address."""
    log = tmp_path_factory.mktemp("serve") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        SCRIPTS / "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", ADDRESS, "--port", str(port),
    ]  # fmt: skip
    # As in an activated environment: MLflow looks for uvicorn on the path.
    path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_server.url, "PATH": path}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)

    def address():
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                return f"http://127.0.0.1:{port}/invocations"
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    yield address
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 15)
    process.wait(30)


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_mlflow_models_serve_answers_and_refuses(serving, served, rows):
    split = {"columns": ["a", "b"], "data": rows.to_numpy().tolist()}
    url = serving()
    code, told = post(url, {"dataframe_split": split})
    assert code == 200, told
    expected = served.predict(rows)
    assert [r["label"] for r in told["predictions"]] == expected["label"].tolist()
    assert [r["probability"] for r in told["predictions"]] == pytest.approx(expected["probability"], abs=1e-5)
    code, told = post(url, {"dataframe_split": split, "params": {"criterion": "never"}})
    assert {r["exit_layer"] for r in told["predictions"]} == {LAYERS}
    code, fast = post(url, {"dataframe_split": split, "params": {"criterion": "confidence", "speed_up": 4}})
    assert {r["layers_saved"] for r in fast["predictions"]} == {LAYERS - 1}
    for body, part in (
        ({"dataframe_split": split, "params": {"criterion": "entropy", "threshold": -1}}, "between 0 and ln 2"),
        ({"dataframe_split": {"columns": ["x"], "data": [["y"]]}}, "missing inputs ['a', 'b']"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [["cat " * 99, "dog"]]}}, "at most 32 tokens"),
    ):
        code, told = post(url, body)
        assert code == 400
        assert part in told["message"]
    assert post(url, {"dataframe_split": split})[0] == 200, "it is alive after all that"


def test_a_process_that_imports_nothing_of_ours_scores_a_file_by_the_code_that_travels_with_the_model(
    scoring, served, rows
):
    folder, process = scoring
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    for path in re.search("CODE (.*)", out).group(1).split():
        assert Path(path).parent.parent.name == "code"
    told = json.loads((folder / "out.json").read_text())
    assert [r["label"] for r in told] == served.predict(rows)["label"].tolist()


# The folder by itself.


def test_transformers_pipeline_takes_the_folder(refitted, served, rows):
    from transformers import pipeline

    import leebert  # noqa: F401

    classify = pipeline("text-classification", model=str(refitted[0] / "seed-0"))
    told = classify([{"text": a, "text_pair": b} for a, b in rows.to_numpy().tolist()])
    expected = served.predict(rows)
    assert [t["label"] for t in told] == expected["label"].tolist()
    assert [t["score"] for t in told] == pytest.approx(expected["probability"].tolist(), abs=1e-4)


def test_the_card_is_the_hubs_and_its_figures_the_measured_ones(refitted, best_place):
    from huggingface_hub import ModelCard

    out, ran = refitted
    loaded = ModelCard.load(out / "seed-0" / "README.md")
    told = ran.json["evaluations"]["0"]["dev"]
    data = loaded.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"]) == ("text-classification", "transformers")
    values = {r.metric_name: r.metric_value for r in loaded.data.eval_results}
    assert values["accuracy, all layers"] == pytest.approx(told["exits"]["accuracy"][-1], abs=1e-6)
    (own,) = [p for p in told["chosen"] if p["criterion"] == "entropy"]
    assert values[f"accuracy, {own['speed_up']:.2f}× layer speed-up"] == pytest.approx(own["measures"]["score"])
    text = loaded.text
    for time_ in told["wall_clock"]:
        assert f"{time_['milliseconds']:.2f}" in text
    for time_ in told["wall_clock"][1:]:  # the first are all layers
        assert f"{time_['milliseconds']:.2f} | {time_['speed_up']:.2f} | {time_['layer_ratio']:.2f} |" in text
    assert "with 50 samples spread over dev" in text
    assert "the best of 1 in sweep toy by mean over exits" in text
    for p in told["chosen"]:
        assert f"{p['speed_up']:.2f}" in text
    scores = [e["dev"]["mean_over_exits"] for e in ran.json["evaluations"].values()]
    assert f"{100 * np.mean(scores):.2f} ± {100 * np.std(scores, ddof=1):.2f} over 2 seeds" in text
    assert "thread(s), " in text, "what the times were measured on"
    assert ADDRESS in text
    assert str(best_place.folder) not in (out / "seed-0" / "README.md").read_text(), "no place on one machine"


def test_calibrated_on_unlabelled_texts_the_folder_serves_and_its_card_states_it(refitted, cli, tmp_path):
    from huggingface_hub import ModelCard

    from leebert.serving import Served

    folder = shutil.copytree(refitted[0] / "seed-0", tmp_path / "m")
    before = ModelCard.load(folder / "README.md")
    texts = pd.DataFrame(graded_rows(400, 11))
    texts.to_csv(tmp_path / "texts.csv", index=False)
    ran = cli("leebert", "calibrate", folder, tmp_path / "texts.csv", "--speed-up", 2.5)
    assert ran.code == 0, ran.err
    assert "the thresholds chosen on validation logits of" in ran.out
    served = Served(folder)
    assert LAYERS / served.predict(texts)["exit_layer"].mean() == pytest.approx(2.5, rel=0.02)
    faster = served.predict(texts, {"criterion": "confidence", "speed_up": 3})
    assert LAYERS / faster["exit_layer"].mean() == pytest.approx(3, rel=0.05)
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == before.data.to_dict(), "what was measured stays"
    assert "a layer speed-up of 2.5, chosen on 400 unlabelled texts of texts.csv" in card.text
    assert f"the criterion **entropy** at {served.model.config.exit_threshold:.6g}." in card.text
    assert card.text.endswith(before.text[before.text.index("## Use") :])


# Bad input: nothing is trained, nothing is overwritten.


def test_what_is_wrong_is_reported_before_anything_is_trained(best_place, cli, refit, tmp_path):
    def wrong(file, *more):
        return refit(file, "--out", tmp_path / "m", *more)

    refused(wrong(tmp_path / "none.yaml"), "none.yaml: no such file")
    refused(wrong(best_place.file, "--speed-up", 9), "speed-up 9: should lie between 1 (all layers) and 4")
    refused(wrong(best_place.file, "--criterion", "never"), "no threshold of the exit criterion 'never'")
    refused(wrong(best_place.file, "--name", "a/b"), "--name 'a/b'")
    refused(wrong(best_place.file, "--alias", "v1"), "--alias 'v1'")
    path = best_place.copy(tmp_path / "best")
    logits = path.with_name("pairs.held-out.parquet")
    moved = logits.rename(tmp_path / "elsewhere")
    refused(wrong(path), logits, "no such file")
    moved.rename(logits)
    values = load_yaml(path)
    values["found"]["backbone"]["weights"] = "0" * 16
    values["found"]["digest"] = content_digest(values)
    path.write_text(dump_yaml(values))
    refused(wrong(path), "another backbone: its weights was 0000")
    values["theta_updates"] = 1
    path.write_text(dump_yaml(values))
    refused(wrong(path), "edited after it was written")
    away = cli(
        "leebert-tune", "refit", best_place.file, "--out", tmp_path / "m", "--tracking-uri", "http://127.0.0.1:9"
    )
    refused(away, "MLflow can't be used at http://127.0.0.1:9")
    assert not (tmp_path / "m").exists()
    refused(cli("leebert-tune", "refit", path, "--out", tmp_path / "m"), "edited after it was written")
    refused(cli("leebert-tune", "refit", best_place.file, "--speed-up", 9, "--out", tmp_path / "m"), "speed-up 9")
    assert not list(tmp_path.glob("**/mlflow.db")), "a refit that is refused leaves nothing"

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("precious")
    refused(wrong(best_place.file), "it is not empty and holds no refit")
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["mine.txt"]


def test_missing_and_other_data_is_reported(best_place, refit, tmp_path):
    path = best_place.copy(tmp_path / "best")
    values = load_yaml(path)
    lines = (best_place.folder / "data" / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    for name, part in (
        ("none.jsonl", "none.jsonl: no such file"),
        ("train.jsonl", "the sweep used other training data"),
    ):
        values["task"]["files"]["train"] = str(tmp_path / name)
        path.write_text(dump_yaml(values))
        refused(refit(path, "--out", tmp_path / "m"), part)
        assert not (tmp_path / "m").exists()


def test_a_version_s_description_has_space_between_the_columns_of_tables():
    from tune.models.register import version_description

    card = "---\ntags: [a]\n---\n# M\n\n| exit | score |\n| --- | ---: |\n| 1 | 50.00 |\n\n## Use\n\nThis | that."
    text = version_description(card, "r", "1", "Seed 0.")
    rows = ["| exit\u00a0\u00a0 | score\u00a0\u00a0 |", "| --- | ---: |", "| 1\u00a0\u00a0 | 50.00\u00a0\u00a0 |"]
    assert "\n".join(rows) in text
    assert "This | that." in text
