"""How commands end after Ctrl-C and SIGTERM, and by which word a sweep's configurations are called when nobody drives it."""

import logging
import re
import signal
import subprocess
import sys

import pytest
import typer
from made_sweep import SPEC, made_sweep

from leebert import console
from tune.analysis.overview import status_of, summary
from tune.analysis.report import sweep_page
from tune.running.sweep import SweepOutcome
from tune.space import SweepSpec
from tune.store.folder import SweepFolder
from tune.store.lease import Lease

pytestmark = pytest.mark.usefixtures("undrawn")


def test_ctrl_c_ends_any_command_with_130_and_without_a_traceback(capsys):
    def command():
        raise KeyboardInterrupt

    app = typer.Typer()
    app.command()(command)
    for run in (command, lambda: app([])):
        with pytest.raises(SystemExit) as end:
            console.run(run)
        assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


QUICK_END = """
import atexit, sys, threading, time
from leebert.console import quick_end
with quick_end():
    atexit.register(print, "exit function")
    threading.Thread(target=lambda: (time.sleep(0.05), print("thread"))).start()
    sys.exit(3)
"""


def test_a_quick_end_keeps_the_exit_code_waits_for_threads_and_runs_exit_functions():
    done = subprocess.run([sys.executable, "-c", QUICK_END], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (3, ["thread", "exit function"], "")


@pytest.fixture
def left(tmp_path):
    """A sweep in which one configuration was begun and not completed, and no driver is at work."""
    folder = made_sweep(tmp_path / "s", "sqlite:///nowhere.db", configs=4, end=False)
    path = folder.path / "ledger" / "driver" / "0001" / "00000000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))  # without the last one's conclusion
    return folder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 0)], ids=["ctrl-c", "sigterm", "stop"]
)
@pytest.mark.parametrize("command", ["sweep", "resume"])
def test_a_sweep_that_a_signal_stopped_ends_with_the_signals_code(
    left, cli, monkeypatch, tmp_path, command, number, code
):
    from tune.running import sweep

    spec = SweepSpec.model_validate(SPEC)
    outcome = SweepOutcome(left, spec, "stopped", True, number, 0, "mlflow", {}, "")
    monkeypatch.setattr(sweep, "new_sweep", lambda *args, **options: outcome)
    monkeypatch.setattr(sweep, "resume_sweep", lambda *args, **options: outcome)
    space = tmp_path / "space.yaml"
    space.write_text("task: mrpc\nbackbone: b\nspace: {lr_theta: [1e-5]}\n")
    ran = cli("leebert-tune", command, *([space, "--name", "s"] if command == "sweep" else [left.path]))
    assert ran.code == code
    assert "unfinished" in ran.out
    assert "running" not in ran.out


def words(folder):
    """By which word each place calls the configuration that was begun and not completed, and the sweep's page."""
    state, spec = folder.ledger.read(), SweepSpec.model_validate(folder.manifest["spec"])
    counts = status_of(folder)["configurations"]
    listed = [c["state"] for c in summary(folder, spec, state)["configurations"]]
    page = str(sweep_page(folder))
    places = {
        word: (counts.get(word, 0), listed.count(word), f"1 {word}" in page) for word in ("running", "unfinished")
    }
    return places, page


def test_one_word_for_one_state_in_every_table(left, cli):
    unfinished = {"running": (0, 0, False), "unfinished": (1, 1, True)}
    places, page = words(left)
    assert places == unfinished
    assert "sweep s has died" in page.lower()
    storage = ["--storage", left.path.parent]
    assert cli("leebert-tune", "list", *storage, "--json").json[0]["state"] == "died"
    assert "1 unfinished" in cli("leebert-tune", "status", "s", *storage).out
    lease = Lease.take(left.path)
    try:
        places, _ = words(SweepFolder(left.path))
        assert places == {"running": (1, 1, True), "unfinished": (0, 0, False)}
    finally:
        lease.release()
    assert status_of(left)["configurations"].get("running", 0) == 0


def test_only_the_command_lines_print_what_is_logged(capsys):
    log, other = logging.getLogger("tune.running.sweep"), logging.getLogger("leebert.checkpoint")
    for timestamps, time_of_day in ((True, r"\d\d:\d\d:\d\d  "), (False, "")):
        with console.log_to_stderr(timestamps):
            log.info("100 % of it")
            other.warning("warning: b")
        ran = capsys.readouterr()
        assert re.fullmatch(f"{time_of_day}100 % of it\n{time_of_day}warning: b\n", ran.err)
        assert ran.out == ""
    assert not log.isEnabledFor(logging.INFO)  # a program that configures nothing sees warnings alone
    assert log.isEnabledFor(logging.WARNING)
    assert [logging.getLogger(name).handlers for name in ("tune", "leebert")] == [[], []]


def test_a_configuration_that_ended_since_the_last_heartbeat_is_not_counted_as_queued(left, monkeypatch):
    history = left.ledger.read().history()
    ended = [c.id for c in history if c.state != "running"]
    assert ended
    monkeypatch.setattr(SweepFolder, "driver", lambda self: {"running": ended, "queued": ended})
    status = status_of(left)
    assert (status["running"], status["queued"]) == ([], [])
    assert all(count >= 0 for count in status["configurations"].values())
