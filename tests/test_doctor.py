"""`leebert-tune doctor` and the refusal of unequal nodes: real Ray, real MLflow, and each kind of trouble made for real."""

import contextlib
import dataclasses
import json
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from ahead import ENVIRONMENT, prepared
from commands import commands
from encoders import save_backbone, write_task
from test_placement import Estimate

import leebert
from leebert.errors import SweepError
from leebert.provenance import LIBRARIES, backbone_identity
from leebert.yaml import dump_yaml
from tune.machines.nodes import NodeFacts, Query, Stamp, check_versions, marked, query_nodes
from tune.running.doctor import DriverFacts, gpu_memory, node_checks
from tune.running.prepare import prepare
from tune.space import load_space

#: A folder that nobody can write to, root included.
READ_ONLY = "/sys/kernel"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """./sweeps and ./mlflow.db would lie in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("LEEBERT_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_space(tmp_path_factory.mktemp("doctor"))


def make_space(folder):
    """A space of two batch sizes on a small task, and a backbone of two layers."""
    save_backbone(folder / "backbone", layers=2)
    values = {
        "task": write_task(folder / "data", n=60), "backbone": str(folder / "backbone"), "max_length": 24, "folds": 2,
        "space": {"batch_size": [4, 8]}, "training": {"max_epochs": 1, "precision": "fp32"},
    }  # fmt: skip
    (folder / "space.yaml").write_text(dump_yaml(values))
    return folder


@pytest.fixture
def doctor(cli, place, ray_up, tmp_path):
    """The command on the session's Ray → what it exited with, and its findings by name and place."""

    def run(*options):
        ran = cli("leebert-tune", "doctor", place / "space.yaml", "--storage", tmp_path / "sweeps", "--json", *options)
        return ran, by_place(ran.json)

    return run


def by_place(checks):
    """(name, driver | cluster | node) → status and detail; there is one node."""
    where = {c["where"] for c in checks} - {"driver", "cluster"}
    assert len(where) <= 1
    return {(c["name"], "node" if c["where"] in where else c["where"]): (c["status"], c["detail"]) for c in checks}


def failed(found):
    return {key for key, (status, _) in found.items() if status == "failed"}


@pytest.mark.slow
def test_a_sound_sweep_passes_and_nothing_is_left_behind(doctor, mlflow_server, tmp_path):
    import mlflow

    client = mlflow.MlflowClient(mlflow_server.url)
    before = [e.name for e in client.search_experiments()]
    ran, found = doctor("--tracking-uri", mlflow_server.url)
    assert ran.code == 0, ran.err
    assert {key for key, (status, _) in found.items() if status == "ok"} == {
        ("ray", "driver"), ("storage", "driver"), ("backbone", "driver"), ("data", "driver"),
        ("versions", "node"), ("storage", "node"), ("data", "node"), ("backbone", "node"),
        ("resources", "cluster"), ("disk", "driver"), ("mlflow", "driver"),
    }  # fmt: skip
    assert {key for key, (status, _) in found.items() if status == "skipped"} == {
        ("gpu memory", "cluster"), ("hub", "driver"),
    }  # fmt: skip
    assert "60 samples" in found["data", "driver"][1]
    assert found["omega", "driver"][0] == "warning", "three updates move nothing"
    assert found["omega", "driver"][1].startswith(
        "λ2 (lr_omega) 0.0001 × 1 updates moves weights by at most about 0.0002"
    )
    assert "2 trial(s) at once" in found["resources", "cluster"][1]
    assert not list(tmp_path.iterdir())
    assert [e.name for e in client.search_experiments()] == before


@pytest.mark.slow
def test_every_check_runs_although_others_fail(doctor, tmp_path):
    options = ["--storage", READ_ONLY + "/sweeps", "--tracking-uri", NOBODY, "--set", "resources.gpus=1"]
    ran, found = doctor(*options, "--backbone", "nobody/nothing")
    assert ran.code == 1
    assert failed(found) == {
        (name, "driver") for name in ("storage", "backbone", "mlflow", "hub")
    } | {("resources", "cluster")}  # fmt: skip
    assert ran.err.startswith("error: 5 check(s) failed")
    assert READ_ONLY in found["storage", "driver"][1]
    assert NOBODY in found["mlflow", "driver"][1]
    assert "nobody/nothing is not in the cache" in found["hub", "driver"][1]
    assert "1 GPUs, which no node has" in found["resources", "cluster"][1]
    assert found["versions", "node"][0] == "ok"
    assert {key for key, (status, _) in found.items() if status == "skipped"} == {
        ("data", "driver"), ("storage", "node"), ("data", "node"), ("backbone", "node"), ("disk", "driver"),
        ("gpu memory", "cluster"), ("omega", "driver"),
    }  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_wrong_data_and_a_full_disk_are_detected(doctor, tmp_path, monkeypatch):
    wrong = write_task(tmp_path / "wrong", n=20)
    rows = Path(wrong["files"]["train"]).read_text().replace('"no"', '"nope"', 1)
    Path(wrong["files"]["train"]).write_text(rows)
    ran, found = doctor("--set", f"task.files={json.dumps(wrong['files'])}")
    assert (ran.code, failed(found)) == (1, {("data", "driver")})
    assert "'nope' is not a label" in found["data", "driver"][1]

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("tune.running.doctor.shutil.disk_usage", lambda folder: usage(10**9, 10**9 - 1000, 1000))
    ran, found = doctor()
    assert (ran.code, failed(found)) == (1, {("disk", "driver")})
    assert "2 trial(s)" in found["disk", "driver"][1]


@pytest.mark.slow
def test_a_node_with_other_tokens_or_another_backbone_is_detected(place, ray_up, tmp_path):
    """What the node reads differs from what the driver read: as if its file system were behind, or another."""
    spec = load_space(place / "space.yaml")
    other = load_space(place / "space.yaml", ["max_length=12"])
    shutil.copytree(place / "backbone", tmp_path / "backbone")
    driver = DriverFacts(
        Stamp.local(), tmp_path, prepare(spec, tmp_path), backbone_identity(str(tmp_path / "backbone"))
    )
    save_backbone(tmp_path / "backbone", layers=2, seed=1)
    with marked(tmp_path / "storage") as mark:
        tokens = prepare(other, mark).facts["tokens"]
        (node,) = query_nodes(Query(str(mark.parent), mark.name, tokens, str(tmp_path / "backbone")))
        (mark / node.node_id).unlink()
        found = {c.name: (c.status, c.detail) for c in node_checks(node, dataclasses.replace(driver, mark=mark))}
    assert found["versions"][0] == "ok"
    assert found["storage"][0] == "failed"
    assert "the driver does not see a file" in found["storage"][1]
    assert found["data"] == ("failed", "its tokens differ from the driver's; mount the same storage on all nodes")
    assert found["backbone"] == ("failed", "its weights differ from the driver's; copy the driver's files")


@pytest.mark.slow
def test_the_largest_configuration_is_held_against_the_smallest_gpu(place):
    spec = load_space(place / "space.yaml", ["resources.gpus=0.5"])
    there = [NodeFacts(h, h * 6, {}, gpus=[(f"gpu of {h}", size * 10**9)]) for h, size in (("a", 24), ("b", 16))]

    def check(gigabytes):
        return gpu_memory(spec, there, lambda spec, device: ({"algorithm": "blo"}, Estimate(gigabytes * 10**9)))

    assert (check(8).status, check(9).status, check(17).status) == ("ok", "warning", "failed")
    assert "holds 2" in check(8).detail
    assert "gpu of b" in check(9).detail
    real = gpu_memory(spec, there)
    assert real.status == "ok", "an encoder of a few thousand parameters, by its real estimate"
    assert "batch=8: about" in real.detail


def test_versions_differ_by_what_changes_results_not_by_builds():
    here = Stamp.local()
    assert set(here.versions) <= {"python", *LIBRARIES}
    assert here.differences(here.versions, here.code) == []
    here.require()
    same = {**here.versions, "torch": here.versions["torch"].split("+")[0] + "+cu999", "optuna": "0"}
    assert here.differences(same, here.code) == []
    other = {**here.versions, "torch": "1.0", "python": "2.7"}
    assert [row[0] for row in here.differences(other, "0+0")] == ["python", "torch", "leebert"]
    with pytest.raises(SweepError, match=r"torch +\S+ +1\.0"):
        Stamp(other | {"python": here.versions["python"]}, here.code).require()


# A cluster whose head is like the driver. First a node lacks a package; later one has another checkout, cache and storage,
# and the package of one is broken.

REGISTERS = """import dataclasses
from leebert.methods import METHODS
METHODS.register(dataclasses.replace(METHODS["slo"], name="mine", label="Mine"))
"""


def hub_cache(folder, backbone):
    """A cache of the hub that holds the model toys/bert."""
    model = folder / "hub" / "models--toys--bert"
    shutil.copytree(backbone, model / "snapshots" / "c0ffee")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("c0ffee")


def package(folder):
    """An installed package with the method `theirs`."""
    (folder / "their_package.py").write_text(
        "import dataclasses\nfrom leebert.methods import METHODS\n"
        'METHOD = dataclasses.replace(METHODS["slo"], name="theirs", label="Theirs")\n'
    )
    (about := folder / "their_package-1.0.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[leebert.methods]\ntheirs = their_package:METHOD\n")


def checkout(folder):
    """A copy of the packages, of another version."""
    root = Path(leebert.__file__).parent
    for copied in (root, root.parent / "tune"):
        shutil.copytree(copied, folder / copied.name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "leebert" / "__init__.py").open("a") as f:
        f.write('\n__version__ = "0.0.7"\n')
    return folder


def may_mount():
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


#: In a process of its own: a backbone takes random numbers, which other tests take meanwhile.
MAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_doctor import make_space
make_space(Path(sys.argv[1]))
"""


@dataclasses.dataclass(frozen=True)
class Unequal:
    """What three commands did on clusters whose nodes differ: exit codes and output, and the storage around the second."""

    lacking: subprocess.CompletedProcess
    doctor: subprocess.CompletedProcess
    sweep: subprocess.CompletedProcess
    storage: list[list[str]]  # before and after `doctor`, and at the end


@prepared(using=("nodes",))
def unequal(folder, nodes):
    make = [sys.executable, "-c", MAKE, folder, Path(__file__).parent]
    subprocess.run(make, check=True, env=ENVIRONMENT, capture_output=True)
    (storage := folder / "sweeps").mkdir()
    hub_cache(nodes.hub, folder / "backbone")
    (nodes.packages / "my_parts.py").write_text(REGISTERS)
    package(nodes.packages)
    for name in ("lacks", "other", "broken/leebert"):
        (folder / name).mkdir(parents=True)
    (folder / "lacks" / "my_parts.py").write_text(REGISTERS)
    (folder / "broken" / "leebert" / "__init__.py").write_text("raise ImportError('broken')\n")
    other = {"HF_HOME": str(folder / "empty"), "PYTHONPATH": str(checkout(folder / "other"))}
    environment = {"HF_HOME": str(nodes.hub), "PYTHONPATH": str(nodes.packages), "LEEBERT_PLUGINS": "my_parts"}
    with nodes.alone, commands(folder, **environment) as tune:

        def run(command, *options):
            where = ["--address", nodes.address, "--storage", storage, "--backbone", "toys/bert"]
            return tune(command, folder / "space.yaml", *where, *options)

        with added(nodes, {"env": {"PYTHONPATH": str(folder / "lacks")}}):
            lacking = run("sweep", "--name", "never", "--set", "algorithms=[theirs]")
        differing = {"env": other, "hidden": storage if may_mount() else None}
        with added(nodes, differing, {"env": {"PYTHONPATH": str(folder / "broken")}}):
            listed = [sorted(path.name for path in storage.iterdir())]
            doctor = run("doctor", "--json", "--set", "algorithms=[mine]")
            listed.append(sorted(path.name for path in storage.iterdir()))
            sweep = run("sweep", "--name", "never")
            listed.append(sorted(path.name for path in storage.iterdir()))
    yield Unequal(lacking, doctor, sweep, listed)


@contextlib.contextmanager
def added(nodes, *options):
    """The shared cluster with further nodes of one CPU."""
    with contextlib.ExitStack() as up:
        for one in options:
            up.callback(nodes.remove, nodes.add(cpus=1, **one))
        yield


@pytest.mark.slow
def test_a_sweep_whose_package_a_node_lacks_ends_before_its_folder_is_made(unequal):
    ran = unequal.lacking
    assert ran.returncode == 1
    line = "method theirs of their-package 1.0 is missing; install it there"
    assert ran.stderr[ran.stderr.index("error: ") :] == f"error: node {socket.gethostname()}: {line}\n"
    assert "never" not in unequal.storage[0]


@pytest.mark.slow
def test_each_nodes_errors_are_reported(unequal):
    ran = unequal.doctor
    assert ran.returncode == 1, ran.stderr
    nodes = {}
    for c in json.loads(ran.stdout):
        nodes.setdefault(c["where"], {})[c["name"]] = (c["status"], c["detail"])
    assert nodes.pop("driver")["hub"] == ("ok", "not reached, but toys/bert is in the cache")
    assert nodes.pop("cluster")["resources"][0] == "ok"
    (sound,) = (n for n in nodes.values() if n["versions"][0] == "ok")
    other, broken = sorted((n for n in nodes.values() if n is not sound), key=lambda n: "broken" in n["versions"][1])
    assert {status for status, _ in sound.values()} == {"ok"}
    assert "leebert 0.0.7+" in other["versions"][1]
    assert "not in the local cache" in other["backbone"][1]
    assert "broken" in broken["versions"][1]
    assert broken["storage"][0] == "ok"
    assert sound["plugins"][1].startswith("the driver's: method mine of my_parts (code ")
    assert other["plugins"][0] == "failed"
    assert other["plugins"][1].startswith("LEEBERT_PLUGINS: module my_parts can't be imported (ModuleNotFoundError")
    assert "\n" not in other["plugins"][1]
    assert "plugins" not in broken
    before, after, _ = unequal.storage
    assert before == after
    if not may_mount():
        pytest.skip("another file system on one node takes the right to mount")
    assert other["storage"][0] == "failed"
    assert "another folder than the driver's" in other["storage"][1]
    assert "no such file of tokens or pixels" in other["data"][1]


@pytest.mark.slow
def test_a_sweep_on_unequal_nodes_is_refused_before_its_folder_is_made(unequal):
    ran = unequal.sweep
    assert ran.returncode == 1
    table = ran.stderr[ran.stderr.index("error: nodes differ from the driver") :].splitlines()
    assert table[1].split() == ["node", "library", "on", "the", "node", "on", "the", "driver"]
    assert any("0.0.7+" in line and f"{leebert.__version__}+" in line for line in table[2:])
    assert any("broken" in line for line in table[2:])
    assert len(table) == 4
    assert "never" not in unequal.storage[-1]


@pytest.mark.slow
def test_equal_nodes_pass_also_while_all_their_cpus_are_taken(ray_up):
    from ray.util import placement_group, remove_placement_group

    group = placement_group([{"CPU": 2}])
    try:
        assert group.wait(30)
        check_versions(ray_up)
    finally:
        remove_placement_group(group)


@pytest.mark.slow
def test_a_node_that_does_not_answer_in_time_is_refused(ray_up):
    with pytest.raises(SweepError, match="no response within 0 s"):
        check_versions(ray_up, timeout=0)
    check_versions(None, timeout=0)  # this machine alone is not asked
