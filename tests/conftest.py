"""What all tests share."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import gc
import io
import json
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Before torch is imported anywhere: two processes with two threads each on two cores take five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# A shell's background job ignores Ctrl-C, and the commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


from ahead import AHEAD, ahead, in_order  # noqa: F401
from best_files import best_place  # noqa: F401
from clusters import nodes  # noqa: F401
from hypothesis import settings
from mlflow_app import files_of_databases, mlflow_app, new_database  # noqa: F401
from mlflow_server import launched_server, mlflow_server  # noqa: F401

from leebert import live

# How long an example takes depends on the machine, not on the code. 25 examples, a quarter of Hypothesis' default.
settings.register_profile("suite", deadline=None, max_examples=25)
settings.load_profile("suite")


#: Where a crash is reported: standard error as it was before pytest caught it.
_STDERR = pytest.StashKey[int]()
_FSYNC = pytest.StashKey[Callable[[int], None]]()


def pytest_configure(config: pytest.Config) -> None:
    # A sweep of a test writes hundreds of small files, and waiting for the disk takes longer than everything else. Only a
    # lost disk shows the difference: tests of that use the fixture `synced`.
    config.stash[_FSYNC] = os.fsync
    os.fsync = lambda fd: None  # type: ignore[assignment]
    config.stash[_STDERR] = os.dup(2)
    live.LINE_AFTER = math.inf  # tests assert what a command prints, however slow the machine is
    # The collector would walk the same objects of torch, transformers and MLflow again and again: a quarter of the
    # time that imports take, and a tenth of the tests'. Before the tests nothing is garbage, and what is imported stays.
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    in_order(items)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before every test: Ray takes the handlers of crashes away when it shuts down, and enabling again alone does nothing."""
    faulthandler.disable()
    faulthandler.enable(file=item.config.stash[_STDERR])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    try:
        return (yield)
    finally:
        if (fixtures := item.config.stash.get(AHEAD, None)) is not None:
            fixtures.passed(item, nextitem)


@pytest.fixture
def synced(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this test `os.fsync` waits for the disk."""
    monkeypatch.setattr(os, "fsync", pytestconfig.stash[_FSYNC])


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def cli() -> Callable[..., Ran]:
    """`leebert` and `leebert-tune` in this process, as their console scripts run them; any other exception comes out."""

    @functools.cache
    def command(program: str) -> Any:
        """A program's commands, which Typer would make anew for every call: a third of a short call's time."""
        import typer

        from leebert import cli as leebert_cli
        from tune import cli as tune_cli

        return typer.main.get_command({"leebert": leebert_cli.app, "leebert-tune": tune_cli.app}[program])

    def run(program: str, *args: object, stdin: str = "") -> Ran:
        from leebert import console

        app = command(program)
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.filterwarnings("always", module=r"(leebert|tune)\b")  # ours are shown, others stay errors
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    console.run(lambda: app([str(a) for a in args]), timestamps=program == "leebert-tune")
                except SystemExit as end:
                    code = end.code or 0
        return Ran(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The messages that `leebert` and `tune` have logged in this test; `caplog.clear()` begins anew."""
    caplog.set_level(logging.INFO, "leebert")
    caplog.set_level(logging.INFO, "tune")
    return lambda: [r.getMessage() for r in caplog.records if r.name.split(".")[0] in ("leebert", "tune")]


@pytest.fixture(scope="session")
def cli_without_ray(cli: Callable[..., Ran]) -> Callable[..., Ran]:
    """The same, with configurations trained in this process: for tests of what a sweep leaves, not of where it trains."""
    from in_process import without_ray

    def run(program: str, *args: object, stdin: str = "") -> Ran:
        with without_ray():
            return cli(program, *args, stdin=stdin)

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the chart library, which takes most of a page's time: for tests of what they say."""
    monkeypatch.setattr("tune.analysis.html.library", lambda: "")


@pytest.fixture(scope="session")
def ray_up() -> Iterator[str]:
    """Ray with two CPUs and no GPU for the whole test session; its address, for other processes."""
    import ray

    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=200_000_000,
    )  # fmt: skip
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def glue() -> Path:
    """The folder of real GLUE data, named by LEEBERT_DATA."""
    root = os.environ.get("LEEBERT_DATA")
    if not root:
        pytest.skip("LEEBERT_DATA is not set: this test needs real GLUE data")
    folder = Path(root) / "glue"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: this test needs real GLUE data")
    return folder
