"""The example package: its wheel meets its contracts, and a sweep with one plugin of each kind runs in Ray's processes."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ahead import ENVIRONMENT, prepared

from tune.store.folder import SweepFolder

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "extension"


def installed(root):
    """A folder with the installed package."""
    source = shutil.copytree(EXAMPLE, root / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", "site"]
    built = subprocess.run(
        [sys.executable, "-c", build, root], cwd=source, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    install = [sys.executable, *pip, built.stdout.split()[-1]]
    done = subprocess.run(install, cwd=root, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "site"


def started(site, cwd, *words):
    """A command with the package installed."""
    env = {**ENVIRONMENT, "PYTHONPATH": str(site), "LEEBERT_STORAGE": str(cwd / "sweeps")}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def printed(process):
    """What it printed, once it has ended well."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    return out


#: In a process of its own: a backbone takes random numbers, which other tests take meanwhile.
MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from encoders import save_backbone, write_task
from leebert.yaml import dump_yaml
folder = Path(sys.argv[1])
Path("space.yaml").write_text(dump_yaml({
    "task": {**write_task(folder / "task", 60), "metric": "balanced_accuracy"},
    "backbone": str(save_backbone(folder / "backbone")), "max_length": 32,
    "algorithms": ["sparse-slo", "uniform"], "space": {"lr_theta": [1e-3, 3e-3]},
    "training": {"batch_size": 8, "max_epochs": 1, "precision": "fp32", "every": 3}, "folds": 2,
    "searcher": {"name": "shuffled", "seed": 1}, "pruner": {"name": "median", "others": 3},
    "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
}))
"""
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


@dataclasses.dataclass(frozen=True)
class Outside:
    """What a sweep with the package's parts printed and left, and what the package's own tests printed."""

    folder: Path
    shown: str
    contracts: str


@prepared()
def outside(folder):
    """The package's own tests run while its sweep waits for Ray's processes."""
    site = installed(folder)
    (elsewhere := folder / "contracts").mkdir()
    tests = started(site, elsewhere, "-m", "pytest", "-p", "no:cacheprovider", EXAMPLE / "tests")
    try:
        printed(started(site, folder, "-c", MAKE, folder, Path(__file__).parent))
        shown = printed(started(site, folder, "-c", LOOK, f"sqlite:///{folder}/mlflow.db"))
        yield Outside(folder, shown, printed(tests))
    finally:
        tests.kill()


def test_a_sweep_with_all_five(outside, monkeypatch, cli):
    shown = outside.shown
    folder = SweepFolder(outside.folder / "sweeps" / "outside")
    came_from = {key: f"leebert-extension 1.0 (leebert_extension.{module})" for key, module in {
        "method sparse-slo": "sparse_slo", "exit criterion ratio": "ratio", "metric balanced_accuracy": "balanced_accuracy",
        "searcher shuffled": "shuffled", "pruner median": "median",
    }.items()}  # fmt: skip
    first = next(record for record in folder.ledger.in_order() if record["kind"] == "sweep")
    assert first["parts"] == came_from
    assert "Sparse SLO" in shown.partition("runs:")[2]
    assert "#aa3377" in shown.partition("colours:")[2]

    monkeypatch.setenv("LEEBERT_STORAGE", str(outside.folder / "sweeps"))
    best = next((outside.folder / "best").glob("*.yaml"))
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


def test_its_parts_meet_their_contracts(outside):
    assert " passed" in outside.contracts
