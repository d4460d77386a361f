"""The example package: its wheel meets its contracts, and a sweep with one plugin of each kind runs in Ray's processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from encoders import save_backbone, write_task

from leebert.yaml import dump_yaml
from tune.store.folder import SweepFolder

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "extension"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package."""
    root = tmp_path_factory.mktemp("extension")
    source = shutil.copytree(EXAMPLE, root / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", "site"]
    built = subprocess.run([sys.executable, "-c", build, root], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([sys.executable, *pip, built.stdout.split()[-1]], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "site"


def started(site, cwd, *words):
    """A command with the package installed."""
    env = {**os.environ, "PYTHONPATH": str(site), "LEEBERT_STORAGE": str(cwd / "sweeps")}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def printed(process):
    """What it printed, once it has ended well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    return out


@pytest.fixture(scope="module")
def contracts(site, tmp_path_factory):
    """The package's own tests, which run while its sweep waits for Ray's processes."""
    process = started(
        site, tmp_path_factory.mktemp("contracts"), "-m", "pytest", "-p", "no:cacheprovider", EXAMPLE / "tests"
    )
    yield process
    process.kill()
    process.communicate()


LOOK = """
import sys
from typer.testing import CliRunner
from tune.cli import app
for line in (
    "sweep space.yaml --name outside",
    "status outside",
    "compare outside --a sparse-slo --b uniform",
    "best outside --out best --anyway",
):
    done = CliRunner().invoke(app, line.split(), catch_exceptions=False)
    print(line, done.exit_code, done.output)
    assert done.exit_code == 0
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
print("runs:", sorted(run.info.run_name for run in runs))
print("colours:", {run.data.tags.get("mlflow.runColor") for run in runs})
"""


def test_a_sweep_with_all_five(site, contracts, tmp_path, monkeypatch, cli):
    task = {**write_task(tmp_path / "task", 60), "metric": "balanced_accuracy"}
    space = {
        "task": task, "backbone": str(save_backbone(tmp_path / "backbone")), "max_length": 32,
        "algorithms": ["sparse-slo", "uniform"], "space": {"lr_theta": [1e-3, 3e-3]},
        "training": {"batch_size": 8, "max_epochs": 1, "precision": "fp32", "every": 3}, "folds": 2,
        "searcher": {"name": "shuffled", "seed": 1}, "pruner": {"name": "median", "others": 3},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }  # fmt: skip
    (tmp_path / "space.yaml").write_text(dump_yaml(space))
    shown = printed(started(site, tmp_path, "-c", LOOK, space["tracking"]["uri"]))
    folder = SweepFolder(tmp_path / "sweeps" / "outside")
    came_from = {key: f"leebert-extension 1.0 (leebert_extension.{module})" for key, module in {
        "method sparse-slo": "sparse_slo", "exit criterion ratio": "ratio", "metric balanced_accuracy": "balanced_accuracy",
        "searcher shuffled": "shuffled", "pruner median": "median",
    }.items()}  # fmt: skip
    first = next(record for record in folder.ledger.in_order() if record["kind"] == "sweep")
    assert first["parts"] == came_from
    assert "Sparse SLO" in shown.partition("runs:")[2]
    assert "#aa3377" in shown.partition("colours:")[2]

    monkeypatch.setenv("LEEBERT_STORAGE", str(tmp_path / "sweeps"))
    best = next((tmp_path / "best").glob("*.yaml"))
    for words in (
        ("leebert-tune", "resume", "outside"),
        ("leebert", "train", "--config", best),
        ("leebert-tune", "verify", best),
    ):
        ran = cli(*words)
        assert ran.code != 0
        assert len(ran.err.splitlines()) == 1
        assert "method 'sparse-slo' is not known here" in ran.err
        assert "it came from leebert-extension 1.0 (leebert_extension." in ran.err


def test_its_parts_meet_their_contracts(contracts):
    assert " passed" in printed(contracts)
