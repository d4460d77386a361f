"""Search spaces and cluster files come with the package: by name, as copies, and in a wheel without a checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import leebert
from leebert.errors import ConfigError
from tune.space import load_space
from tune.space.shipped import SHIPPED, copy_shipped, find_space, shipped_spaces

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml"))


def test_every_search_space_of_the_repository_is_listed_with_what_it_is():
    spaces = shipped_spaces()
    assert [space.name for space in spaces] == NAMES
    assert all(re.fullmatch(r"[A-Z].*\.", space.title) for space in spaces)


def test_a_space_is_found_by_its_name_in_any_case_and_the_users_own_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MRPC_small").mkdir()  # a folder of the user's is no search space
    assert load_space("MRPC_small") == load_space(ROOT / "search_spaces" / "mrpc_small.yaml")
    (tmp_path / "mrpc_small").write_text("task: mrpc\nbackbone: x\nspace: {batch_size: 8}\n")
    assert find_space("mrpc_small") == Path("mrpc_small")
    assert find_space("other.yaml") == Path("other.yaml")
    with pytest.raises(
        ConfigError, match=r"mrpc_smal: neither a file .*did you mean 'mrpc_small'.*leebert-tune spaces"
    ):
        find_space("mrpc_smal")


def test_a_folder_without_copy_is_refused(cli):
    ran = cli("leebert-tune", "spaces", "mrpc")
    assert ran.code == 1
    assert "spaces mrpc: only --copy takes a folder" in ran.err


def test_copies_are_the_files_and_overwrite_nothing(tmp_path, cli):
    ran = cli("leebert-tune", "spaces", "--copy", "mrpc", tmp_path / "new")
    assert ran.code == 0, ran.err
    copy = tmp_path / "new" / "mrpc.yaml"
    assert (ran.out, ran.err) == (f"{copy}\n", f"next: leebert-tune doctor {copy}\n")
    assert copy.read_text() == (ROOT / "search_spaces" / "mrpc.yaml").read_text()
    copy.write_text("mine")
    ran = cli("leebert-tune", "spaces", "--copy", "mrpc", tmp_path / "new")
    assert ran.code == 1
    assert str(copy) in ran.err
    assert copy.read_text() == "mine"
    copy_shipped("cluster", tmp_path)
    assert os.access(tmp_path / "cluster" / "start.sh", os.X_OK)
    assert os.access(tmp_path / "mlflow" / "serve.sh", os.X_OK)
    assert (tmp_path / "cluster.yaml").read_text() == (ROOT / "cluster.yaml").read_text()
    with pytest.raises(ConfigError, match=r"--copy mprc: no search space .*did you mean 'mrpc'"):
        copy_shipped("mprc", tmp_path)


def test_a_dangling_link_is_not_written_through(tmp_path, cli):
    (tmp_path / "mrpc.yaml").symlink_to(tmp_path / "elsewhere" / "mrpc.yaml")
    ran = cli("leebert-tune", "spaces", "--copy", "mrpc", tmp_path)
    assert ran.code == 1
    assert f"{tmp_path / 'mrpc.yaml'} exists already" in ran.err


@pytest.mark.parametrize("program", ["leebert", "leebert-tune"])
def test_both_programs_print_the_version_of_the_package(cli, program):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert leebert.__version__ == declared
    ran = cli(program, "--version")
    assert (ran.code, ran.out) == (0, f"leebert-sweep {declared}\n")


def test_a_clusters_machines_install_the_wheel_where_there_is_no_checkout(tmp_path):
    """install.sh with a pip that only tells what it is given."""
    copy_shipped("cluster", tmp_path / "there")
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\necho "$@"\n')
    pip.chmod(0o755)
    shutil.copy(pip, pip.with_name("python"))

    def install():
        script = tmp_path / "there" / "cluster" / "install.sh"
        env = {**os.environ, "HOME": str(tmp_path)}
        return subprocess.run(["bash", script], env=env, capture_output=True, text=True, timeout=60)

    done = install()
    assert done.returncode == 1
    assert "neither a checkout nor a wheel" in done.stderr
    (tmp_path / "there" / "leebert_sweep-0.1.0-py3-none-any.whl").touch()
    assert install().stdout.split()[-1] == "leebert_sweep-0.1.0-py3-none-any.whl[cluster]"
    (tmp_path / "there" / "leebert_sweep-0.2.0-py3-none-any.whl").touch()
    assert "several wheels" in install().stderr
    (tmp_path / "there" / "pyproject.toml").touch()
    assert install().stdout.split()[-1] == ".[cluster]"


@pytest.mark.slow
def test_a_wheel_is_usable_without_a_checkout(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("leebert", "tune", "search_spaces", "cluster", "mlflow", "examples", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "cluster.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    built = done.stdout.split()[-1]
    named = "-".join(built.split("-")[:2])
    with zipfile.ZipFile(tmp_path / built) as wheel:
        wheel.extractall(site)
        assert {name.partition("/")[0] for name in wheel.namelist()} == {"leebert", "tune", f"{named}.dist-info"}
        modes = {info.filename: info.external_attr >> 16 for info in wheel.infolist()}
    files = [path for path in (*SHIPPED.glob("*"), *SHIPPED.glob("*/*")) if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert (site / "tune" / "shipped" / path.relative_to(SHIPPED)).read_bytes() == path.read_bytes(), path
    assert modes["tune/shipped/cluster/start.sh"] & 0o100

    def tune(*words):
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tune.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, site, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    listed = json.loads(tune("spaces", "--json").stdout)
    assert [space["name"] for space in listed] == NAMES
    assert all(Path(space["file"]).is_relative_to(site) for space in listed)
    # As far as a sweep gets without the data: the space was found by its name and read.
    assert "glue" in tune("sweep", "mrpc_small", "--data-dir", "nowhere/glue", "--dry-run").stderr
