"""The live display: what it shows while a command works, at every width, and that it leaves the terminal as it was."""

import contextlib
import dataclasses
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time

import pytest
from encoders import save_backbone, write_task
from in_process import without_ray
from scored_sweep import scored_sweep

from leebert import console, live
from leebert.yaml import dump_yaml
from tune import cli
from tune.analysis import overview
from tune.analysis.progress import Active, progress_of
from tune.analysis.progress_text import progress_lines
from tune.running.driver import Driver
from tune.running.live_sweep import STARTING, LiveSweep
from tune.store.folder import SweepFolder, spec_of
from tune.store.ledger import SweepState

NAMES = ["CLO-v2 λ1=1e-05 C=2", "CLO-v2 λ1=1e-05 C=4", "BLO λ1=1e-05"]


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self):
        return self.now


def test_where_nothing_is_drawn_each_long_phase_is_a_line_of_the_log(monkeypatch, caplog):
    monkeypatch.setattr(live, "LINE_AFTER", 3.0)
    clock = Clock()
    display = live.Display(clock)
    with caplog.at_level("INFO", "leebert.live"), live._logged(display, every=0.001):

        def after(seconds):
            """The log's lines once the thread has seen the clock."""
            clock.now += seconds
            time.sleep(0.03)
            return [record.message for record in caplog.records]

        display.phase("reading the ledger")
        assert after(2) == []
        assert after(2) == ["reading the ledger …"]
        assert after(100) == ["reading the ledger …"], "once"
        display.bar("runs", 0, 40)
        assert after(1) == ["reading the ledger …"]
        display.bar("runs", 10, 40)
        assert after(4)[1:] == ["runs: 10 of 40, about 15 s left"]
        display.bar("runs", 20, 40)
        assert len(after(30)) == 2
        assert after(40)[2:] == ["runs: 20 of 40, about 1 min 15 s left"]
        display.phase("")
        assert len(after(9)) == 3


def test_a_phase_shows_its_seconds_and_a_bar_the_remaining_time():
    clock = Clock()
    display = live.Display(clock, unicode=False)
    assert display.lines(80) == []
    display.phase("starting Ray")
    assert display.lines(80)[0][2:] == "starting Ray"
    clock.now += 65
    display.phase("starting Ray")  # the same phase goes on
    assert display.lines(80)[0][2:] == "starting Ray  1 min 5 s"
    display.bar("training", 0, 40)
    clock.now += 10
    display.bar("training", 10, 40)
    assert display.lines(80)[0][2:] == "training  ######..................  10 of 40, about 30 s left"
    display.phase("saving the model")
    assert display.lines(80)[0][2:] == "saving the model"
    display.body(lambda width, height: [f"{width} x {height}"])
    display.phase("")
    assert display.lines(80, 20) == ["80 x 20"]
    display.body(lambda width, height: [str(1 // 0)])
    assert display.lines(80) == ["can't show the progress: ZeroDivisionError: integer division or modulo by zero"]


def test_a_phase_that_begins_while_a_bar_is_drawn_changes_the_next_picture():
    def clock():
        display.phase("")  # between the test for a bar and its line, as another thread may
        return 0.0

    display = live.Display(Clock(), unicode=False)
    display.bar("training", 10, 40)
    display._clock = clock
    assert "10 of 40" in display.lines(80)[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (1201, "20 min"), (7500, "2 h 5 min"), (3 * 86400, "3 d")],
)
def test_durations_are_in_words(seconds, words):
    assert live.duration(seconds) == words


def test_without_a_terminal_nothing_is_drawn_and_an_exception_closes_the_display(capsys):
    def command():
        live.phase("unheard")
        with live.display("loading") as display, live.display("inner") as inner:
            assert inner is display
            assert (display.drawn, live.is_drawn()) == (False, False)
            assert list(live.track([1, 2], "samples")) == [1, 2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command()
    assert live._open is None
    assert capsys.readouterr() == ("", "")


def folder_of(tmp_path, **change):
    """A sweep in which one configuration is complete, the others have finished one of three runs."""
    done = {"lr_theta": 1e-05, "cycle_length": 4}
    return scored_sweep(
        tmp_path / "s",
        lambda values, seed, fold: 0.8 + 0.01 * fold,
        state=lambda values: "complete" if done.items() <= values.items() else "running",
        cells=lambda values: 3 if done.items() <= values.items() else 1,
        status=None,
        **change,
    )


def test_the_display_of_a_sweep_follows_its_records(tmp_path):
    """Fed record by record, as the driver is, with a clock of the test."""
    folder = folder_of(tmp_path)
    spec, records = spec_of(folder), folder.ledger.in_order()
    state, start = SweepState(), records[0]["time"]
    seen = []
    for record in records:
        state.apply(record)
        active = [c.id for c in state.history() if c.state == "running"]
        progress = progress_of("s", spec, folder.manifest, state, Active(active[:2], active[2:], start), start + 60.0)
        seen.append("\n".join(progress_lines(progress, 200)))
    assert "0 of 18 runs" in seen[0]
    assert seen[0].splitlines()[1] == "configurations: none yet; 1 min so far"
    first = next(text for text in seen if "epoch" in text)
    assert f"[0] {NAMES[0]}: run 1 of 3 (seed 0, fold 0), epoch 1 of 10" in first
    assert any(f"[0] {NAMES[0]}: run 1 of 3 (seed 0, fold 0), epoch 2 of 10, score 78.00" in text for text in seen)
    assert any(f"best so far: {NAMES[0]}: 80.00 (1 of 3 runs)" in text for text in seen)
    assert f"best so far: {NAMES[1]}: 81.00 (3 runs)" in seen[-1]
    assert "8 of 18 runs" in seen[-1]
    assert "1 completed, 2 running, 3 queued; 1 min so far; about 1 min 15 s left" in seen[-1]
    assert "waits for a free CPU or GPU" in seen[-1]
    later = progress.later(30)
    assert (later.seconds, later.seconds_left) == (progress.seconds + 30, progress.seconds_left - 30)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_longer_than_the_terminal_and_no_number_is_broken(tmp_path, width):
    folder = folder_of(tmp_path, task={
        "name": "customers", "files": {"train": "a.csv", "dev": "b.csv"}, "text": ["s"], "label": "y",
        "labels": ["l" * 80, "m" * 80], "metric": "accuracy",
    })  # fmt: skip
    state = folder.ledger.read()
    ids = [c.id for c in state.history() if c.state == "running"]
    progress = progress_of("s", spec_of(folder), folder.manifest, state, Active(ids, (), 0.0), 5e9, "interrupted")
    wide = progress_lines(progress, 10_000, 100)
    lines = progress_lines(progress, width, 100)
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(wide).split())
    low = progress_lines(progress, width, 12)
    assert len(low) < len(lines) or width == 200
    assert re.search(r"and \d more", "".join(progress_lines(progress, width, 9)))


def test_the_driver_shows_when_it_waits_for_the_first_epoch(tmp_path, monkeypatch):
    folder, clock = folder_of(tmp_path), Clock()
    driver = object.__new__(Driver)
    state = folder.ledger.read()
    driver.__dict__ |= {
        "records": type("Records", (), {"state": state}), "running": {"t": state.history()[0].id},
        "started_trials": lambda: {"t"}, "started": 900.0, "stopping": type("Stopping", (), {"reason": lambda: None}),
    }  # fmt: skip
    display = live.Display(clock)
    display.drawn = True
    monkeypatch.setattr(live, "_open", display)
    shown = LiveSweep("s", spec_of(folder), folder.manifest, driver, now=clock)
    assert display.lines(80)[-1].endswith(STARTING)
    shown.update()
    assert display.lines(80)[0].startswith("s (mrpc)")
    assert display.lines(80)[-1].endswith(STARTING)
    state.fold_epochs += 1
    clock.now += 5
    shown.update()
    clock.now += 2  # the display counts on between two updates
    assert "1 min 47 s so far" in display.lines(80)[1]
    assert not display.lines(80)[-1].endswith(STARTING)


def test_watch_prints_lines_where_no_display_can_be_until_the_driver_ends(tmp_path, monkeypatch, capsys):
    folder = folder_of(tmp_path)
    running = [c.id for c in folder.ledger.read().history() if c.state == "running"]
    beats = [
        {"running": running[:1], "queued": running[1:], "started": time.time() - 100},
        {"started": None},
        None,
        None,
        None,
    ]
    monkeypatch.setattr(SweepFolder, "driver", lambda self: beats.pop(0))
    monkeypatch.setattr(overview.time, "sleep", lambda seconds: None)
    overview.watch(folder)
    first, second, *status = capsys.readouterr().out.splitlines()
    assert "8 of 18 runs" in first
    assert "run 2 of 3 (seed 0, fold 1), epoch 1 of 10" in first
    assert "8 of 18 runs" in second
    assert status[0].startswith("s (mrpc): died")


def test_watch_says_what_a_driver_does_that_trains_nothing(tmp_path):
    folder = folder_of(tmp_path)
    begun = progress_of("s", spec_of(folder), folder.manifest, folder.ledger.read(), Active(), 0.0)
    begun = dataclasses.replace(begun, running=())
    assert overview._idle_phase(begun) == "the driver prepares its work"
    assert "MLflow" in overview._idle_phase(dataclasses.replace(begun, done=begun.planned))


#: A command with a display, a log and an interruption, as the console scripts run it.
INTERRUPTED = """
import logging, time
from leebert import console, live
def command():
    with live.display("phase one"):
        for number in range(12):
            logging.getLogger("tune.x").info(f"record {number} of a log, with words enough for a line that is wrapped at forty columns")
            live.phase(f"phase {number}")
            time.sleep(0.1)
        raise KeyboardInterrupt
console.run(command)
"""


def on_a_terminal(command, columns, seconds=120, **environment):
    """Run a command on a terminal; its exit code and all that it wrote, without the codes that move the cursor."""
    pid, fd = pty.fork()
    if not pid:
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": str(columns), **environment})
        os.environ.pop("NO_COLOR", None)
        os.execv(command[0], command)
    written, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 0.5)[0]:
            try:
                written += os.read(fd, 65536)
            except OSError:  # the end of the process
                break
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(fd)
    return code, written.decode().replace("\r", "")


def plain(text):
    """What a terminal got: a line for each that was drawn over, without codes."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.replace("\x1b[2K", "\n"))


@pytest.mark.slow
def test_on_a_terminal_the_log_stays_whole_and_ctrl_c_restores_the_cursor():
    code, text = on_a_terminal([sys.executable, "-c", INTERRUPTED], 40)
    assert code == 130
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    assert "Traceback" not in text
    printed = plain(text)
    assert "phase one" in printed
    for number in range(12):
        assert f"record {number} of a log, with words enough" in printed
    assert all(len(line) <= 40 for line in printed.splitlines())
    dumb = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert dumb.returncode == 130
    assert dumb.stderr.splitlines()[0].startswith("record 0 of a log")
    assert "phase" not in dumb.stderr
    assert len(dumb.stderr.splitlines()) == 13
    code, text = on_a_terminal([sys.executable, "-c", INTERRUPTED], 80, TERM="dumb")
    assert "phase" not in text
    assert text.count("record") == 12


@contextlib.contextmanager
def terminal(columns):
    """A terminal as stderr of this process; a list that holds what was written to it, at the end."""
    master, slave = pty.openpty()
    written = []

    def read():
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                return
            written.append(chunk.decode(errors="replace"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(slave, "w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stderr", file)
        yield written
    reader.join(10)
    os.close(master)


@pytest.mark.slow
def test_a_real_sweep_shows_phases_epochs_and_the_next_command(tmp_path, monkeypatch, capsys):
    save_backbone(tmp_path / "backbone", layers=2)
    space = {
        "task": write_task(tmp_path / "data", n=60), "backbone": str(tmp_path / "backbone"), "max_length": 16, "folds": 2,
        "algorithms": ["clo-v2", "uniform"], "training": {"max_epochs": 2, "batch_size": 8}, "space": {"lr_theta": [1e-3]},
        "storage": str(tmp_path / "sweeps"), "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }  # fmt: skip
    (tmp_path / "space.yaml").write_text(dump_yaml(space))
    monkeypatch.setenv("LEEBERT_STORAGE", str(tmp_path / "sweeps"))
    monkeypatch.setattr(sys, "argv", ["leebert-tune", "sweep", str(tmp_path / "space.yaml"), "--name", "s"])
    with without_ray(), terminal(80) as written, pytest.raises(SystemExit) as end:
        console.run(cli.app, timestamps=True)
    assert not end.value.code
    shown = plain("".join(written).replace("\r", ""))
    for part in (
        "loading libraries",
        "reading and preparing the training split",
        STARTING[:30],
        "of 4 runs",
        "epoch 1 of 2",
    ):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert plain(shown).rstrip().endswith("next: leebert-tune best s")
