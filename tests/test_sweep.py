"""Real sweeps through Ray: of plain tensors by `run_session`, and of text by `leebert-tune`, with a real MLflow server."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import in_process
import numpy as np
import pytest
from clusters import wait_until
from encoders import save_backbone, write_task
from test_driver import driver
from toys import ToyProblem, toy_rows

from leebert.errors import DataError
from leebert.metrics import per_exit
from leebert.yaml import dump_yaml, load_yaml
from tune.running.crossval import run_attempt
from tune.running.session import run_session
from tune.store.folder import SweepFolder
from tune.store.held_out import held_out_path, load_held_out
from tune.store.results import COLUMNS
from tune.tracking.tracker import Tracker

SCRIPTS = Path(sys.executable).parent
POISON = b"\xff\xfe\0 whoever opens the development split can't go on"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """./sweeps and ./mlflow.db would lie in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("LEEBERT_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


# Plain tensors: what Ray adds to the driver.


@pytest.fixture(scope="module")
def by_value(ray_up):
    """The test modules' classes travel to the workers themselves: they are in no package."""
    import toys
    from ray import cloudpickle

    modules = (toys, sys.modules[__name__])
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def toy_driver(folder, **change):
    d = driver(folder)
    d.study = dataclasses.replace(d.study, threads=1, **change)
    return d


def session(d, concurrent):
    return run_session(d.study, d, cpus=1, gpus=0, concurrent=concurrent, beat=lambda: None)


def table(d):
    """Every score of every epoch, by configuration and cell."""
    return {(c.id, k.seed, k.fold): k.epochs for c in d.state.history() for k in c.cells}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same sweep without Ray, one configuration after the other in this process."""
    d = toy_driver(tmp_path_factory.mktemp("plain"))
    while (attempt := d.next_attempt("t")) is not None:
        for records in run_attempt(d.study, attempt):
            d.receive(records)
        d.trial_ended("t")
    assert d.finish() == "finished"
    return d


@dataclasses.dataclass(frozen=True)
class DyingRows:
    """Rows of which one process, the first with a fifth batch, is killed."""

    rows: object
    mark: str

    def __len__(self):
        return len(self.rows)

    @property
    def lengths(self):
        return self.rows.lengths

    def collate(self, indices):
        global served
        served = globals().get("served", 0) + 1
        if served == 5:
            with contextlib.suppress(FileExistsError), open(self.mark, "x"):
                os.kill(os.getpid(), signal.SIGKILL)
        return self.rows.collate(indices)


@dataclasses.dataclass(frozen=True)
class TroubledProblem(ToyProblem):
    """CLO-v2 can't be trained at 1e-2, has a bug at 1e-3; what trains after it is killed once."""

    mark: str = ""

    def rows(self):
        return DyingRows(toy_rows(self.size), self.mark)

    def model(self, config):
        if config.algorithm == "clo-v2" and config.lr_theta == 1e-2:
            raise DataError("rows.tsv, line 3: the text is empty")
        if config.algorithm == "clo-v2":
            raise RuntimeError("a bug of ours")
        return super().model(config)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory, by_value):
    """A sweep, two configurations at a time, whose workers meet all of that."""
    folder = tmp_path_factory.mktemp("troubled")
    d = toy_driver(folder, problem=TroubledProblem(mark=str(folder / "killed")))
    handler, d.lines = logging.Handler(), []
    handler.emit = lambda record: d.lines.append(record.getMessage())
    logging.getLogger("tune").addHandler(handler)
    try:
        assert session(d, 2) == "finished"
    finally:
        logging.getLogger("tune").removeHandler(handler)
    return d


@pytest.mark.slow
def test_a_worker_that_is_killed_resumes_from_its_checkpoint_in_another(troubled, undisturbed):
    d = troubled
    assert os.path.exists(d.study.problem.mark)
    attempts = {c: len(a) for c, a in d.state.attempts.items() if c.startswith("blo")}
    assert (set(attempts), sorted(attempts.values())) == ({"blo-0.01", "blo-0.001"}, [1, 2])
    (killed,) = d.state.failures[max(attempts, key=lambda config: attempts[config])]
    assert not killed["final"]
    assert {k: v for k, v in table(undisturbed).items() if k[0].startswith("blo")} == table(d)
    epochs = [
        (c, r["seed"], r["fold"], r["epoch"])
        for c, attempts in d.state.attempts.items()
        for a in attempts.values()
        for r in d.ledger.records_of(c, a)
        if r["kind"] == "epoch"
    ]
    assert len(epochs) == len(set(epochs)) == 8


@pytest.mark.slow
def test_a_users_error_ends_a_configuration_at_once_and_a_bug_after_two_more_tries(troubled):
    d = troubled
    assert {c.id: c.state for c in d.state.history()} == {
        "clo-v2-0.01": "failed", "clo-v2-0.001": "failed", "blo-0.01": "complete", "blo-0.001": "complete",
    }  # fmt: skip
    assert {c: len(a) for c, a in d.state.attempts.items() if c.startswith("clo")} == {
        "clo-v2-0.01": 1, "clo-v2-0.001": 3,
    }  # fmt: skip
    (refused,) = d.state.failures["clo-v2-0.01"]
    assert refused["message"] == "rows.tsv, line 3: the text is empty"
    assert all("a bug of ours" in f["message"] for f in d.state.failures["clo-v2-0.001"])
    assert any("rows.tsv, line 3: the text is empty; not tried again" in line for line in d.lines)
    assert sum(line.endswith("; tried again") for line in d.lines) == 3, "the bug twice, the killed worker once"


# Text, from the command line.


def space(path, place, **more):
    values = {
        "task": json.loads((place / "task.json").read_text()), "backbone": str(place / "backbone"), "max_length": 32,
        "algorithms": ["clo-v2", "blo"], "space": {"lr_theta": [1e-3]}, "folds": 2,
        "training": {"batch_size": 8, "max_epochs": 2, "precision": "fp32"},
    }  # fmt: skip
    path.write_text(dump_yaml(values | more))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A task whose development split can't be read, and a backbone of three layers."""
    folder = tmp_path_factory.mktemp("text")
    save_backbone(folder / "backbone", layers=3)
    (folder / "task.json").write_text(json.dumps(write_task(folder / "data", n=80)))
    (folder / "data" / "dev.jsonl").write_bytes(POISON)
    return folder


@pytest.fixture(scope="module")
def tuned(cli, mlflow_server, place):
    """`leebert-tune` on the module's storage and the test session's MLflow server."""
    return on_storage(cli, place, mlflow_server)


@pytest.fixture(scope="module")
def tuned_without_ray(cli_without_ray, mlflow_server, place):
    """The same, with trials in this process."""
    return on_storage(cli_without_ray, place, mlflow_server)


def on_storage(cli, place, mlflow_server):
    def run(command, *args, **options):
        where = ["--storage", place / "sweeps"]
        where += ["--tracking-uri", mlflow_server.url] if command == "sweep" else []
        return cli("leebert-tune", command, *args, *where, **options)

    return run


@pytest.fixture(scope="module")
def swept(tuned, place, ray_up):
    """A finished sweep: its folder, and what the command said."""
    path = space(place / "space.yaml", place, tracking={"system_metrics": True})
    ran = tuned("sweep", path, "--name", "whole", "--json")
    assert ran.code == 0, ran.err
    return SweepFolder(place / "sweeps" / "whole"), ran


def scores(folder):
    return {cell: (r["score"], r["exits"]["score"]) for cell, r in folder.ledger.read().cells.items()}


@pytest.mark.slow
def test_the_ledger_holds_every_cell_and_the_table_every_number(swept):
    import pyarrow.parquet as pq

    folder, ran = swept
    state = folder.ledger.read()
    assert [c.values["algorithm"] for c in state.history()] == ["clo-v2", "blo"]
    assert [c.state for c in state.history()] == ["complete", "complete"]
    assert {(s, f) for _, s, f in state.cells} == {(0, 0), (0, 1)}
    assert (state.fold_epochs, state.end["status"]) == (8, "finished")
    assert {len(attempts) for attempts in state.attempts.values()} == {1}
    # Ray's own files are gone, and nothing of the sweep is a pickle.
    assert not list(folder.path.glob(".ray-*"))
    assert {p.suffix for p in folder.path.rglob("*") if p.is_file()} <= {".jsonl", ".parquet", ".json", ".yaml"}
    (told,) = ran.json
    assert told["status"] == "finished"
    assert told["unsent"] == 0
    best = max(told["configurations"], key=lambda c: c["score_mean"])
    assert told["configurations"][0] == best

    assert COLUMNS == (
        "sweep", "task", "configuration", "algorithm", "seed", "fold", "epoch", "theta_updates", "exit", "metric",
        "value", "seconds",
    )  # fmt: skip
    results = pq.read_table(folder.path / "results.parquet")
    assert tuple(results.column_names) == COLUMNS
    rows = results.to_pylist()
    assert {r["exit"] for r in rows} == {1, 2, 3}
    assert {"score", "loss", "omega_ce", "omega_kd"} <= {r["metric"] for r in rows}
    assert (rows[0]["sweep"], rows[0]["task"]) == ("whole", "pairs")
    by_epoch = {(r["configuration"], r["fold"], r["epoch"]): [] for r in rows}
    for r in rows:
        if r["metric"] == "score":
            by_epoch[r["configuration"], r["fold"], r["epoch"]].append(r["value"])
    assert len(by_epoch) == 8
    for (config, fold, epoch), values in by_epoch.items():
        assert values == state.epochs[config, 0, fold][epoch]["exits"]["score"]


@pytest.mark.slow
def test_held_out_logits_of_every_cell_reproduce_its_scores(swept):
    folder, _ = swept
    for record in folder.ledger.read().cells.values():
        held_out, ids = load_held_out(held_out_path(folder.path, record))
        assert held_out.logits.shape[::2] == (3, 2)
        assert per_exit("accuracy", held_out.labels, held_out.logits)["score"].tolist() == record["exits"]["score"]
        assert len(set(ids.tolist())) == len(ids)
    assert not list((folder.path / "checkpoints").iterdir())


@pytest.mark.slow
def test_what_mlflow_holds(swept, mlflow_server):
    from mlflow import MlflowClient

    folder, ran = swept
    state = folder.ledger.read()
    client = MlflowClient(mlflow_server.url)
    experiment = client.get_experiment_by_name("leebert-pairs").experiment_id
    assert ran.json[0]["mlflow"].startswith(f"{mlflow_server.url}/#/experiments/{experiment}")
    views = [f"whole: {view}" for view in ("CLO vs BLO", "speed", "options", "summary")]
    assert list(ran.json[0]["views"]) == views
    tags = client.get_experiment(experiment).tags
    for address in ran.json[0]["views"].values():
        assert address.startswith(f"{mlflow_server.url}/#/experiments/{experiment}/runs?viewStateShareKey=whole.")
        assert "mlflow.sharedViewState." + address.split("ShareKey=")[1].split("&")[0] in tags
        assert address.split("/#")[1] in tags["mlflow.note.content"]
    runs = client.search_runs([experiment], "tags.sweep = 'whole'", max_results=1000)
    kinds = {}
    for run in runs:
        kinds.setdefault(run.data.tags["kind"], []).append(run)
    assert {kind: len(found) for kind, found in kinds.items()} == {"sweep": 1, "config": 2, "fold": 4, "summary": 3}
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["task"] for run in runs} == {"pairs"}

    (sweep,) = kinds["sweep"]
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
    assert parents[sweep.info.run_id] is None
    assert sweep.data.tags["mlflow.note.content"] == sweep.data.tags["verdict"]
    assert sweep.data.tags["verdict"].startswith("CLO-v2 and BLO: ")
    assert sweep.data.tags["verdict"] in client.get_experiment(experiment).tags["mlflow.note.content"]
    digest = folder.manifest["data_fingerprint"][:36]  # MLflow keeps no more
    for run in (sweep, *kinds["config"]):
        assert [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs] == [("pairs", digest)]
        assert run.data.tags["mlflow.source.name"] == "leebert-tune sweep"
    pictures = [client.list_artifacts(run.info.run_id, "images") for run in kinds["summary"]]
    assert sorted(len(files) for files in pictures) == [0, 0, 14], "seven pictures, each with its thumbnail"
    assert {parents[r.info.run_id] for r in kinds["config"] + kinds["summary"]} == {sweep.info.run_id}
    for run in kinds["fold"]:
        tags = run.data.tags
        above = client.get_run(parents[run.info.run_id])
        assert above.data.tags["config"] == tags["config"]
        assert tags["approach"] == {"clo-v2": "CLO-v2", "blo": "BLO"}[tags["algorithm"]]
        cell = state.cells[tags["config"], int(tags["seed"]), int(tags["fold"])]
        history = client.get_metric_history(run.info.run_id, "score/exit_03")
        assert [m.step for m in history] == [0, 1]
        assert history[cell["best_epoch"]].value == pytest.approx(cell["exits"]["score"][2])
        assert {"score/mean", "loss/exit_01", "omega_ce/exit_01", "theta_updates"} <= run.data.metrics.keys()
        assert {"system/cpu_utilization_percentage", "system/process_memory_megabytes"} <= run.data.metrics.keys()
    for run in kinds["config"]:
        values = state.configs[run.data.tags["config"]].scores
        assert run.data.metrics["cv/score_mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert run.data.metrics["cv/score_std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert [m.step for m in client.get_metric_history(run.info.run_id, "depth/score")] == [1, 2, 3]
        assert run.data.params["algorithm"] == run.data.tags["algorithm"]
        assert float(run.data.params["lr_theta"]) == 1e-3


@pytest.mark.slow
def test_list_and_status_from_another_terminal(swept, tuned):
    (told,) = [t for t in tuned("list", "--json").json if t["sweep"] == "whole"]
    assert told == tuned("status", "whole", "--json").json
    assert (told["state"], told["cells_done"], told["cells_left"]) == ("finished", 4, 0)
    assert told["configurations"]["complete"] == 2
    assert "whole" in tuned("list").out
    plain = tuned("status", "whole").out
    assert "finished" in plain
    assert "4 finished, 0 remaining" in plain
    by_path = tuned("status", swept[0].path).out
    assert by_path == plain
    nothing = tuned("stop", "whole")
    assert nothing.code == 1
    assert "is not running" in nothing.err


@pytest.mark.slow
def test_compare_states_what_two_cells_can_show(swept, tuned):
    ran = tuned("compare", "whole", "--a", "clo-v2", "--b", "blo", "--json")
    assert ran.code == 0, ran.err
    (line,) = ran.json["lines"]
    cells = scores(swept[0])
    configs = {c.values["algorithm"]: c.id for c in swept[0].ledger.read().history()}
    differences = [cells[configs["clo-v2"], 0, f][0] - cells[configs["blo"], 0, f][0] for f in (0, 1)]
    assert line["difference"]["mean"] == pytest.approx(np.mean(differences))
    printed = tuned("compare", "whole", "--a", "clo-v2", "--b", "blo")
    assert printed.code == 0
    assert "clo-v2" in printed.out.lower()
    unknown = tuned("compare", "whole", "--a", "clo-v2", "--b", "slo")
    assert unknown.code == 1
    assert "slo" in unknown.err


@pytest.mark.slow
def test_compare_and_best_at_a_speed_up_are_replayed_from_the_logits(swept, tuned, tmp_path):
    from tune.analysis.tradeoff import tradeoff

    folder, _ = swept
    at = {}
    for (config, _, fold), r in folder.ledger.read().cells.items():
        held_out = load_held_out(held_out_path(folder.path, r))[0]
        at[config, fold] = tradeoff(held_out, "accuracy", "confidence").at_speed_up(1.5)
    configs = {c.values["algorithm"]: c.id for c in folder.ledger.read().history()}
    ran = tuned(
        "compare", "whole", "--a", "clo-v2", "--b", "blo", "--speed-up", "1.5", "--criterion", "confidence", "--json"
    )
    assert ran.code == 0, ran.err
    (there,) = (at for at in ran.json["at_speed_ups"] if at["speed_up"] == 1.5)  # those of the verdict are beside it
    assert (there["speed_up"], there["criterion"]) == (1.5, "confidence")
    differences = [at[configs["clo-v2"], f] - at[configs["blo"], f] for f in (0, 1)]
    assert there["lines"][0]["difference"]["mean"] == pytest.approx(np.mean(differences))

    chosen = tuned(
        "best",
        "whole",
        "--objective",
        "speed-up=1.5",
        "--criterion",
        "confidence",
        "--out",
        tmp_path,
        "--json",
        "--anyway",
    )
    assert chosen.code == 0, chosen.err
    means = {config: np.mean([at[config, 0], at[config, 1]]) for config in configs.values()}
    assert chosen.json["found"]["objective"]["value"] == pytest.approx(max(means.values()), abs=1e-6)
    assert means[chosen.json["found"]["configuration"]] == max(means.values())
    assert chosen.json["found"]["pareto"]
    beyond = tuned("best", "whole", "--objective", "speed-up=4", "--out", tmp_path / "none", "--anyway")
    assert beyond.code == 1
    assert "from 1 to 3.00 on 3 exits" in beyond.err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_pages_are_in_one_file_and_beside_the_sweep_in_mlflow(swept, tuned, mlflow_server, tmp_path):
    from mlflow import MlflowClient

    folder, _ = swept
    compared = tuned("compare", "whole", "--a", "clo-v2", "--b", "blo", "--html", tmp_path / "compared.html")
    assert compared.code == 0, compared.err
    page = (tmp_path / "compared.html").read_text()
    assert page.count('class="chart"') == 10
    assert ">Learned weights over time</h2>" in page
    reported = tuned("report", "whole")
    assert reported.code == 0, reported.err
    whole = (folder.path / "report.html").read_text()
    assert whole.count('class="chart"') == 11  # two configurations are too few for importance
    assert "8 completed configurations" in whole
    for text in (page, whole):
        assert not re.search(r"""<link|<[a-z][^>]*(?:src|href)=(?!["']#)""", text), "nothing is fetched from anywhere"
    client = MlflowClient(mlflow_server.url)
    experiment = client.get_experiment_by_name("leebert-pairs").experiment_id
    (run,) = client.search_runs([experiment], "tags.sweep = 'whole' AND tags.kind = 'sweep'")
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "reports")}
    assert logged == {"reports/compared.html", "reports/report.html"}
    assert f"runs/{run.info.run_id}/artifacts/reports/report.html" in reported.err


@pytest.mark.slow
def test_sweeps_of_other_folds_are_not_compared(swept, tuned, place, tmp_path):
    refolded = SweepFolder(place / "sweeps" / "refolded")
    shutil.copytree(swept[0].path, refolded.path)
    same = tuned("best", "whole", "refolded", "--out", tmp_path, "--json", "--anyway")
    assert same.code == 0, same.err
    assert same.json["found"]["sweeps"].keys() == {"whole", "refolded"}
    twice = tuned("compare", "whole", "refolded", "--a", "clo-v2", "--b", "blo")
    assert twice.code == 1
    assert "whole and refolded hold the same runs of pairs" in twice.err
    manifest = json.loads((refolded.path / "manifest.json").read_text())
    manifest["folds"]["digest"] = "0" * 64
    (refolded.path / "manifest.json").write_text(json.dumps(manifest))
    other = tuned("best", "whole", "refolded", "--out", tmp_path / "none")
    assert other.code == 1
    assert "whole and refolded are sweeps of pairs with different folds" in other.err
    assert not (tmp_path / "none").exists()
    shutil.rmtree(refolded.path)


@pytest.mark.slow
def test_the_best_file_trains_exactly_its_updates_and_reads_no_development_data(swept, tuned, cli, place, tmp_path):
    folder, _ = swept
    ran = tuned("best", "whole", "--out", tmp_path / "best", "--anyway")
    assert ran.code == 0, ran.err
    path = tmp_path / "best" / "pairs.yaml"
    assert f"leebert train --config {path}" in ran.out
    values = load_yaml(path)
    state = folder.ledger.read()
    means = {c.id: np.mean(c.scores) for c in state.history()}
    found = values["found"]
    assert means[found["configuration"]] == max(means.values())
    assert found["score_mean"] == pytest.approx(max(means.values()), abs=1e-6)
    assert len(found["cells"]) == 2
    assert len(found["score_per_exit"]) == 3
    share = np.median([(c["best_epoch"] + 1) / 2 for c in found["cells"]])
    assert values["theta_updates"] == round(share * 2 * (80 // 16))
    assert {"data_fingerprint", "folds", "versions", "code", "runtime", "backbone", "seeds"} <= found.keys()

    assert (place / "data" / "dev.jsonl").read_bytes() == POISON
    trained = cli("leebert", "train", "--config", path, "--out", tmp_path / "m", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["theta_updates"] == values["theta_updates"]
    assert (trained.json["rows"], trained.json["held_out_rows"]) == (80, 0)
    assert trained.json["data_fingerprint"] == found["data_fingerprint"]
    refused = cli("leebert", "evaluate", tmp_path / "m")
    assert refused.code == 1, "the development file is still poisoned"
    assert "dev.jsonl" in refused.err


@pytest.mark.slow
def test_a_name_that_is_taken_is_refused_with_the_way_to_resume(swept, tuned, place):
    before = {p: p.read_bytes() for p in swept[0].path.rglob("*") if p.is_file()}
    ran = tuned("sweep", place / "space.yaml", "--name", "whole")
    assert ran.code == 1
    assert "leebert-tune resume whole" in ran.err
    assert {p: p.read_bytes() for p in swept[0].path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_budget_stops_in_the_middle_of_a_configuration_and_resuming_gives_the_same_scores(
    swept, tuned_without_ray, place, long
):
    tuned = tuned_without_ray
    ran = tuned(
        "sweep", place / "space.yaml", "--name", "short", "--json",
        "--set", "budget.fold_epochs=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json[0]["status"] == "stopped"
    assert "budget of 1 fold-epochs" in ran.err
    folder = SweepFolder(place / "sweeps" / "short")
    state = folder.ledger.read()
    assert state.fold_epochs == 1
    told = tuned("status", "short", "--json").json
    assert (told["state"], told["cells_left"]) == ("stopped", 4 - len(state.cells))
    assert told["configurations"]["unfinished"] == 1
    early = tuned("best", "short")
    assert early.code == 1
    assert "no configuration has finished" in early.err

    other = tuned("resume", "short", "--set", "max_length=16")
    assert other.code == 1
    assert "max_length: 32 → 16" in other.err

    again = tuned("resume", "short", "--json", "--set", "budget.fold_epochs=null")
    assert again.code == 0, again.err
    assert again.json[0]["status"] == "finished"
    assert scores(folder) == scores(swept[0])
    assert folder.ledger.read().fold_epochs == 8


@pytest.fixture(scope="module")
def long(place, mlflow_server):
    """A sweep of 2000 epochs in a process of its own, which starts while another test runs; its folder and process."""
    name = "long"
    path = space(
        place / f"{name}.yaml", place, algorithms=["blo"],
        training={"batch_size": 8, "max_epochs": 2000, "patience": 2000, "precision": "fp32"},
    )  # fmt: skip
    command = [sys.executable, in_process.__file__, "sweep", path, "--name", name, "--storage", place / "sweeps"]
    command += ["--tracking-uri", mlflow_server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield SweepFolder(place / "sweeps" / name), process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_stopped_from_another_process_it_can_be_resumed(long, tuned_without_ray):
    tuned = tuned_without_ray
    folder, process = long

    def begun():
        return (folder.path / "manifest.json").is_file() and folder.ledger.read().fold_epochs >= 2

    wait_until(lambda: begun() or process.poll() is not None)
    assert (
        wait_until(lambda: (told := tuned("status", folder.name, "--json").json)["running"] and told)["state"]
        == "running"
    )
    busy = tuned("resume", folder.name)
    assert busy.code == 1
    assert f"driven by process {process.pid} on {socket.gethostname()}" in busy.err
    stopped = tuned("stop", folder.name, "--wait", 90)
    assert stopped.out == f"{folder.name}: stopped\n"
    assert f"next: leebert-tune resume {folder.name}" in stopped.err
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "stopped on request" in err
    done = folder.ledger.read().fold_epochs
    assert 2 <= done < 2000
    again = tuned("resume", folder.name, "--json", "--set", f"budget.fold_epochs={done + 3}")
    assert again.code == 0, again.err
    state = folder.ledger.read()
    assert state.fold_epochs == done + 3
    (epochs,) = state.epochs.values()
    assert sorted(epochs) == list(range(state.fold_epochs)), "no epoch was repeated or left out"
    assert {len(attempts) for attempts in state.attempts.values()} == {2}


@pytest.mark.slow
def test_several_spaces_run_one_after_the_other_under_names_of_their_own(tuned_without_ray, place):
    tuned = tuned_without_ray
    task = json.loads((place / "task.json").read_text())
    small = {"algorithms": ["uniform"], "training": {"batch_size": 8, "max_epochs": 1, "precision": "fp32"}}
    paths = [space(place / f"{n}.yaml", place, task={**task, "name": n}, **small) for n in ("one", "two")]

    twice = tuned("sweep", paths[0], paths[0], "--name", "many")
    assert twice.code == 1
    assert "would have the same name" in twice.err
    (place / "wrong.yaml").write_text("task: one\n")
    wrong = tuned("sweep", *paths, place / "wrong.yaml", "--name", "many")
    assert wrong.code == 1
    assert "wrong.yaml" in wrong.err
    assert not list((place / "sweeps").glob("many*")), "every file is read before anything runs"

    ran = tuned("sweep", *paths, "--name", "many", "--json")
    assert ran.code == 0, ran.err
    assert [(t["sweep"], t["task"], t["status"]) for t in ran.json] == [
        ("many-one", "one", "finished"), ("many-two", "two", "finished"),
    ]  # fmt: skip


# What is refused before anything is created.


@pytest.mark.slow
def test_a_gpu_where_there_is_none_is_one_clear_message(cli, place, ray_up, mlflow_server, tmp_path):
    ran = cli(
        "leebert-tune", "sweep", space(tmp_path / "s.yaml", place), "--name", "g", "--set", "resources.gpus=1",
        "--tracking-uri", mlflow_server.url,
    )  # fmt: skip
    assert ran.code == 1
    error = ran.err[ran.err.index("error: ") :]
    assert len(error.splitlines()) == 1
    assert "1 GPUs, which no node has" in error
    assert "resources.gpus=0" in error
    assert not (tmp_path / "sweeps" / "g").exists()


@pytest.mark.slow
@pytest.mark.parametrize("listening", [False, True], ids=["nobody listens", "nobody answers"])
def test_a_tracking_server_that_does_not_answer_stops_the_sweep_before_it_begins(
    cli, place, tmp_path, monkeypatch, listening
):
    monkeypatch.setattr(Tracker, "check", functools.partialmethod(Tracker.check, 0.5))  # seconds
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        ran = cli("leebert-tune", "sweep", space(tmp_path / "s.yaml", place), "--name", "t", "--tracking-uri", url)
    assert ran.code == 1
    assert ran.err.startswith(f"error: MLflow can't be used at {url}")
    assert "mlflow/serve.sh" in ran.err
    assert "Traceback" not in ran.err
    assert {p.name for p in tmp_path.iterdir()} == {"s.yaml"}


@pytest.mark.slow
def test_a_dry_run_states_what_it_would_cost_and_writes_nothing(cli, place, tmp_path):
    path = space(tmp_path / "s.yaml", place)
    ran = cli("leebert-tune", "sweep", path, "--dry-run", "--json", "--storage", tmp_path / "sweeps")
    assert ran.code == 0, ran.err
    (plan,) = ran.json
    assert (plan["rows"], plan["configurations"], plan["cells"], plan["folds"]) == (80, 2, 4, 2)
    assert plan["theta_updates"] == 4 * 2 * (40 // 16)
    assert plan["estimated_hours"] >= 0
    assert 0.5e9 < plan["memory_bytes"] < 1.5e9  # a tiny encoder: little more than the process itself
    printed = cli("leebert-tune", "sweep", path, path, "--dry-run")
    assert printed.code == 0, printed.err
    assert printed.out.count("configurations  2") == 2
    assert [one["needed"] > one["lr_omega"] for one in plan["still_weights"]] == [True]
    assert printed.out.count("warning: λ2 (lr_omega) 0.0001 × ") == 2
    assert {p.name for p in tmp_path.iterdir()} == {"s.yaml"}
