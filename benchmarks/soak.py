"""Kill sweeps again and again and count what is lost; the exit code is 1 unless it is nothing.

Small sweeps of text run through `leebert-tune`, Ray and a real MLflow server, first undisturbed, then with faults at
seeded random moments: the driver killed (alone, with its process group, during start-up), a trial's process killed,
SIGTERM, Ctrl-C, a driver paused while another takes over, MLflow killed or paused for up to a minute, a checkpoint
cut in half before the sweep is resumed.

After each recovery, the ledger must still hold all earlier decisions and epochs in the same order. At the end, each
epoch is recorded once and equals the undisturbed sweep's bit for bit. The decisions are equal where this is promised:
the best configuration for grid and random search, every decision for TPE and for a pruner with one concurrent trial.
MLflow has one run per entry of the ledger, no duplicate metric steps, no run that is still RUNNING, and KILLED runs
exactly for pruned entries. No process or checkpoint is left behind.

The time to recover runs from the start of the resuming command (or from the fault, if the driver survived) to the
first epoch recorded by a trial granted afterwards.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from common import scratch, stop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from encoders import save_backbone, write_task  # noqa: E402
from mlflow_server import MlflowServer  # noqa: E402

from tune.store.folder import SweepFolder  # noqa: E402
from tune.store.held_out import cell_logits  # noqa: E402
from tune.store.ledger import LedgerRecord, SweepState  # noqa: E402
from tune.store.ranking import ranking  # noqa: E402

STANDSTILL = 40.0  # seconds that a driver is stopped while another takes over
AWAY = (5.0, 60.0)  # seconds without MLflow, at least and at most
PATIENCE = 400.0  # seconds for anything to happen
NOT_STARTED = "Ray could not be started"  # in its 30 seconds, on a very busy machine: begun again
DRAWN = {"lr_theta": {"log_range": [1e-3, 1e-2]}}


@dataclasses.dataclass(frozen=True)
class Case:
    """A sweep and its faults. `same`: what must equal the undisturbed sweep."""

    name: str
    change: dict[str, Any]
    faults: tuple[str, ...]
    same: str  # "best", "decisions" or ""
    scores_of: str = ""  # the case whose undisturbed sweep has the scores, if not its own


HALVING: dict[str, Any] = {
    "space": DRAWN,
    "searcher": {"name": "random", "configurations": 8},
    "pruner": {"name": "halving", "eta": 2, "min_epochs": 1},
}
CASES = (
    Case(
        "grid",
        {"resources": {"cpus": 1, "concurrent": 2}},
        ("driver at start-up", "driver", "process group", "worker", "SIGTERM", "MLflow killed"),
        "best",
    ),
    Case(
        "random",
        {
            "space": DRAWN,
            "searcher": {"name": "random", "configurations": 8},
            "resources": {"cpus": 1, "concurrent": 2},
        },
        ("Ctrl-C", "driver", "standstill", "checkpoint", "driver at start-up"),
        "best",
    ),
    Case(
        "tpe",
        {"space": DRAWN, "searcher": {"name": "tpe", "configurations": 14}},
        ("driver", "SIGTERM", "worker", "process group"),
        "decisions",
    ),
    Case(
        "halving",
        HALVING,
        ("driver", "Ctrl-C", "MLflow paused", "process group", "checkpoint"),
        "decisions",
        "random",
    ),
    Case(
        "halving-2",
        {**HALVING, "resources": {"cpus": 1, "concurrent": 2}},
        ("driver", "worker", "standstill", "SIGTERM", "process group"),
        "",
        "random",
    ),
)


class Lost(Exception):
    """A sweep did not continue as expected; the message says why."""


class Bench:
    """A server, a task and a storage, and the commands that run in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, uuid.uuid4().hex
        self.server = MlflowServer(folder / "mlflow")
        save_backbone(folder / "backbone", layers=3)
        self.task = write_task(folder / "data", n=360)
        self.commands = 0

    def sweep(self, case: Case, name: str) -> Sweep:
        described = {
            "task": self.task, "backbone": str(self.folder / "backbone"), "max_length": 32,
            "algorithms": ["clo-v2", "blo"], "space": {"lr_theta": [2e-3, 4e-3, 8e-3]}, "folds": 2,
            "training": {"batch_size": 4, "max_epochs": 3, "precision": "fp32"},
            "resources": {"cpus": 1, "concurrent": 1}, **case.change,
        }  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(described))  # JSON is YAML
        return Sweep(self, name, path)

    def start(self, *arguments: str) -> Command:
        self.commands += 1
        log = self.folder / f"{self.commands:03d}-{arguments[0]}.log"
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(paths), "LEEBERT_STORAGE": str(self.folder / "sweeps"),
            "MLFLOW_TRACKING_URI": self.server.url, "LEEBERT_SOAK": self.marker, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", "from tune.cli import main; main()", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return Command(process, log, time.monotonic())

    def processes(self) -> list[psutil.Process]:
        """Processes that our commands started and that still run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("LEEBERT_SOAK") == self.marker and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@dataclasses.dataclass
class Command:
    """A started `leebert-tune`."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def signal(self, number: int, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Lost(f"the command did not end: {self.said()}") from None

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


@dataclasses.dataclass
class Snapshot:
    """A snapshot of the ledger: the drivers' decisions in order, and every epoch's numbers."""

    decisions: list[LedgerRecord]
    epochs: dict[tuple[str, int, int, int], LedgerRecord]
    finished: set[tuple[str, int, int]]


class Sweep:
    """A sweep and its folder, which may not exist yet."""

    def __init__(self, bench: Bench, name: str, space: Path) -> None:
        self.bench, self.name, self.space = bench, name, space
        self.folder = SweepFolder(bench.folder / "sweeps" / name)

    def begin(self, *options: str) -> Command:
        """Start the sweep, or resume it if it exists."""
        if (self.folder.path / "manifest.json").is_file():
            return self.bench.start("resume", self.name, *options)
        return self.bench.start("sweep", str(self.space), "--name", self.name)

    def state(self) -> SweepState:
        return self.folder.ledger.read() if (self.folder.path / "manifest.json").is_file() else SweepState()

    def snapshot(self) -> Snapshot:
        if not (self.folder.path / "manifest.json").is_file():
            return Snapshot([], {}, set())
        state = self.folder.ledger.read()
        epochs = {(*cell, epoch): record for cell, known in state.epochs.items() for epoch, record in known.items()}
        return Snapshot([r for r in self.folder.ledger.in_order() if "attempt" not in r or r["kind"] in DECISIONS],
                        epochs, set(state.cells))  # fmt: skip

    def attempts(self) -> set[tuple[str, str]]:
        """Return every granted attempt as (configuration, name)."""
        return {(config, name) for config, names in self.state().attempts.items() for name in names.values()}

    def epochs(self, attempt: tuple[str, str]) -> int:
        return sum(r["kind"] == "epoch" for r in self.folder.ledger.records_of(*attempt))

    def wait_for_epochs(self, command: Command, epochs: int) -> bool:
        """Wait until this many epochs are recorded; return False if the command ends first."""
        return self.wait(command, lambda: self.state().fold_epochs >= epochs)

    def wait(self, command: Command, reached: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if command.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise Lost(f"{self.name}: nothing is recorded any more: {command.said()}")
            time.sleep(0.1)
        return True


DECISIONS = ("grant", "fail")


@dataclasses.dataclass
class Found:
    """The result of one case."""

    name: str
    faults: list[str] = dataclasses.field(default_factory=list)
    recovered: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    lost: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    notes: list[str] = dataclasses.field(default_factory=list)

    def count(self, what: str, number: int, note: str = "") -> None:
        self.lost[what] += number
        if number:
            self.notes.append(f"{what}: {note}" if note else what)


# The faults. Each is given the command that runs and returns the one that runs after it.


class Fault:
    """Faults by name, applied to a running sweep."""

    def __init__(self, bench: Bench, sweep: Sweep, found: Found, rng: random.Random) -> None:
        self.bench, self.sweep, self.found, self.rng = bench, sweep, found, rng

    def apply(self, kind: str, command: Command) -> Command:
        self.found.faults.append(kind)
        actions: dict[str, Callable[[Command], Command]] = {
            "driver": self.driver, "driver at start-up": self.driver, "process group": self.group,
            "worker": self.worker, "SIGTERM": self.term, "Ctrl-C": self.interrupt, "standstill": self.standstill,
            "MLflow killed": self.server_killed, "MLflow paused": self.server_paused, "checkpoint": self.checkpoint,
        }  # fmt: skip
        return actions[kind](command)

    def driver(self, command: Command) -> Command:
        command.signal(signal.SIGKILL)
        return self._again(command)

    def group(self, command: Command) -> Command:
        command.signal(signal.SIGKILL, group=True)
        return self._again(command)

    def checkpoint(self, command: Command) -> Command:
        folder = self.sweep.folder.path / "checkpoints"
        self.sweep.wait(command, lambda: any(folder.glob("*/*/epoch-*")))
        command.signal(signal.SIGKILL, group=True)
        command.end()
        time.sleep(1)  # a trial that is just writing one dies with its Ray
        if there := sorted(folder.glob("*/*/epoch-*")):
            path = self.rng.choice(there) / self.rng.choice(["state.json", "state.safetensors"])
            os.truncate(path, path.stat().st_size // 2)
        else:
            self.found.faults[-1] = "process group"
        return self._again(command)

    def term(self, command: Command) -> Command:
        return self._clean(command, signal.SIGTERM, group=False)

    def interrupt(self, command: Command) -> Command:
        return self._clean(command, signal.SIGINT, group=True)  # as a terminal does

    def _clean(self, command: Command, number: int, group: bool) -> Command:
        before = len(command.said())  # which may hold what Ray says of a process that was killed
        command.signal(number, group)
        code, said = command.end(), command.said()[before:]
        # 128 + the signal, as shells report it; 0 if the sweep completed before the signal arrived.
        stopped = code == 128 + number and f"leebert-tune resume {self.sweep.name}" in said
        completed = code in (0, 128 + number) and "complete" in said
        if "Traceback" in said or not (stopped or completed):
            self.found.count("unclean ends", 1, f"code {code}: {said}")
        return self._again(command)

    def worker(self, command: Command) -> Command:
        trials = [p for p in psutil.Process(command.process.pid).children(recursive=True) if _is_trial(p)]
        if not trials:
            self.found.faults.pop()
            return command
        before = self.sweep.attempts()
        self.rng.choice(trials).kill()
        self._recovered(command, time.monotonic(), before)
        return command

    def standstill(self, command: Command) -> Command:
        command.signal(signal.SIGSTOP)
        since = time.monotonic()
        other = self._again(command, "--take-over")
        time.sleep(max(0.0, STANDSTILL - (time.monotonic() - since)))
        before = len(command.said())
        command.signal(signal.SIGCONT)
        code, said = command.end(), command.said()[before:]
        if code != 1 or "was taken over by" not in said or "Traceback" in said:
            self.found.count("unclean ends", 1, f"code {code}: {said}")
        return other

    def server_killed(self, command: Command) -> Command:
        self.bench.server.kill()
        time.sleep(self.rng.uniform(*AWAY))
        self.bench.server.start(PATIENCE)
        return command

    def server_paused(self, command: Command) -> Command:
        self.bench.server.pause()
        time.sleep(self.rng.uniform(*AWAY))
        self.bench.server.resume()
        return command

    def _again(self, old: Command, *options: str) -> Command:
        if not options:
            old.end()
        before = self.sweep.attempts()
        new = first = self.sweep.begin(*options)
        while not self._recovered(new, first.started, before) and NOT_STARTED in new.said():
            new = self.sweep.begin(*options)
        return new

    def _recovered(self, command: Command, since: float, before: set[tuple[str, str]]) -> bool:
        done = self.sweep.wait(command, lambda: any(self.sweep.epochs(a) for a in self.sweep.attempts() - before))
        if done:
            self.found.recovered.append((self.found.faults[-1], time.monotonic() - since))
        return done


def _is_trial(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(w.startswith("ray::") and "Trainable" in w for w in process.cmdline())
    return False


# What is checked.


def unchanged(before: Snapshot, after: Snapshot, found: Found) -> None:
    """Check that the ledger still holds everything recorded before a fault."""
    kept = after.decisions[: len(before.decisions)]
    found.count("decisions changed", sum(a != b for a, b in zip(before.decisions, kept, strict=False)))
    found.count("decisions changed", len(before.decisions) - len(kept))
    gone = [identity for identity, record in before.epochs.items() if after.epochs.get(identity) != record]
    found.count("epochs lost", len(gone), str(gone))
    found.count("folds lost", len(before.finished - after.finished))


def trained_once(sweep: Sweep, found: Found) -> None:
    """Check that counted records have unique identities and that no cell has records after its end."""
    ledger = sweep.folder.ledger
    fences = ledger.fences()
    seen: collections.Counter[tuple[Any, ...]] = collections.Counter()
    ended: set[tuple[str, int, int]] = set()
    for r in ledger.in_order():
        if r["kind"] not in ("epoch", "cell_end", "checkpoint"):
            continue
        if r["seq"] >= fences.get(r["config"], {}).get(r["attempt"], r["seq"] + 1):
            continue
        cell = (r["config"], r["seed"], r["fold"])
        found.count("folds lost", int(cell in ended), f"{cell} was trained after its end")
        seen[(r["kind"], *cell, r.get("epoch"))] += r["kind"] != "checkpoint"
        if r["kind"] == "cell_end":
            ended.add(cell)
    twice = [identity for identity, number in seen.items() if number > 1]
    found.count("epochs twice", len(twice), str(twice))


VOLATILE = {"seq", "time", "seconds", "wall_seconds", "attempt", "checkpoint", "runtime", "held_out", "digests"}


def same_scores(sweep: Sweep, undisturbed: Sweep, found: Found) -> None:
    """Check that all numbers except times, and all logits, equal those of the undisturbed sweep."""
    state, reference, other = sweep.state(), undisturbed.state(), []
    for cell, epochs in state.epochs.items():
        for epoch, record in epochs.items():
            expected = reference.epochs.get(cell, {}).get(epoch)
            if expected is None or _plain(record) != _plain(expected):
                other.append((*cell, epoch))
    other += [(*c, "end") for c, r in state.cells.items() if _plain(r) != _plain(reference.cells.get(c, {}))]
    for cell, record in state.cells.items():
        if "held_out" in record:
            ours = cell_logits(sweep.folder.path, record)[0]
            theirs = cell_logits(undisturbed.folder.path, reference.cells[cell])[0]
            other += [] if (ours.logits == theirs.logits).all() else [(*cell, "logits")]
    found.count("scores changed", len(other), str(other))


def _plain(record: LedgerRecord) -> LedgerRecord:
    return {k: v for k, v in record.items() if k not in VOLATILE}


def same_decisions(case: Case, sweep: Sweep, reference: Sweep, found: Found) -> None:
    state, expected = sweep.state(), reference.state()
    best = ranking(state.history())[0].configuration
    found.count("pruned is best", int(best.state != "complete"))
    if not case.same:
        return
    found.count("best changed", int(best.id != ranking(expected.history())[0].configuration.id))
    complete = [{c.id for c in s.history() if c.state == "complete"} for s in (state, expected)]
    found.count("decisions changed", len(complete[0] ^ complete[1]))
    if case.same == "decisions":
        ours, theirs = _course(sweep), _course(reference)
        found.count("decisions changed", int(ours != theirs), f"{ours}\n instead of {theirs}")


def _course(sweep: Sweep) -> list[tuple[Any, ...]]:
    records = (r for r in sweep.folder.ledger.in_order() if r["kind"] in ("suggest", "prune", "complete"))
    return [(r["kind"], r["config"], r.get("seed"), r.get("fold"), r.get("epoch")) for r in records]


STATUS = {"complete": "FINISHED", "finished": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "diverged": "FAILED"}


def tracked(bench: Bench, sweep: Sweep, found: Found) -> None:
    """Check that MLflow holds every entry of the ledger exactly once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{bench.folder / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name.startswith("leebert-")]
    state, wanted = sweep.state(), {("sweep", "", "", ""): "FINISHED"}
    for c in state.history():
        wanted["config", c.id, "", ""] = STATUS[c.state]
        for cell in c.cells:
            ended = cell.state if cell.state != "running" else c.state
            wanted["fold", c.id, str(cell.seed), str(cell.fold)] = STATUS[ended]
    keys: collections.Counter[tuple[str, ...]] = collections.Counter()
    for run in client.search_runs([experiment.experiment_id], f"tags.sweep = '{sweep.name}'", max_results=5000):
        tags, status = run.data.tags, run.info.status
        place = [tags.get(name, "") for name in ("config", "seed", "fold")]
        key = (tags["kind"], *(place if tags["kind"] != "summary" else (tags["label"], "", "")))
        keys[key] += 1
        found.count("runs left RUNNING", int(status == "RUNNING"), str(key))
        found.count("wrong status", int(wanted.get(key, "FINISHED") != status), f"{key}: {status}")
        for name in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            found.count("steps twice", len(steps) - len(set(steps)), f"{key} {name} {steps}")
            if key[0] == "fold" and name == "score/mean":
                known = sorted(state.epochs[key[1], int(key[2]), int(key[3])])
                found.count("epochs not in MLflow", len(set(known) ^ set(steps)), f"{key}: {steps}, not {known}")
    found.count("runs twice", sum(number - 1 for number in keys.values()))
    found.count("runs missing", len(wanted.keys() - keys.keys()), str(wanted.keys() - keys.keys()))
    surplus = {key for key in keys if key[0] != "summary"} - wanted.keys()
    found.count("runs twice", len(surplus), str(surplus))


def left_behind(bench: Bench, sweep: Sweep, found: Found) -> None:
    """Check that all processes end within 30 seconds of their parent."""
    deadline = time.monotonic() + 30
    while (alive := bench.processes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    found.count("processes left", len(alive), str(alive))
    files = [*(sweep.folder.path / "checkpoints").iterdir(), *sweep.folder.path.glob(".ray-*")]
    found.count("checkpoints left", len(files), str(files))


# One case after the other.


def undisturbed(bench: Bench, case: Case) -> tuple[Sweep, float]:
    """Run the undisturbed sweep and time its first epoch."""
    sweep = bench.sweep(case, f"{case.name}-whole")
    command = sweep.begin()
    while not sweep.wait_for_epochs(command, 1) and NOT_STARTED in command.said():
        command = sweep.begin()
    first = time.monotonic() - command.started
    if command.end() != 0:
        raise Lost(f"the sweep without faults failed: {command.said()}")
    took = time.monotonic() - command.started
    print(f"{sweep.name}: {sweep.state().fold_epochs} epochs, {first:.0f} s to the first, {took:.0f} s", flush=True)
    return sweep, first


def moments(case: Case, epochs: int, rng: random.Random) -> Iterator[tuple[str, int]]:
    """Return each fault with the number of new epochs before it, such that all hit a running sweep."""
    most = max(1, epochs // (len(case.faults) + 1))
    for kind in case.faults:
        yield kind, 0 if kind == "driver at start-up" else rng.randint(1, most)


def disturbed(bench: Bench, case: Case, reference: Sweep, start_up: float, scores: Sweep, seed: int) -> Found:
    """Run the same sweep with all its faults."""
    found, sweep, rng = Found(case.name), bench.sweep(case, case.name), random.Random(f"{seed}/{case.name}")
    command = sweep.begin()
    state = reference.state()
    pause = 2 * statistics.median(r["seconds"] for epochs in state.epochs.values() for r in epochs.values())
    fault = Fault(bench, sweep, found, rng)
    for kind, epochs in moments(case, state.fold_epochs, rng):
        if kind == "driver at start-up":
            if sweep.state().fold_epochs:  # a start-up to disturb
                command.signal(signal.SIGKILL)
                command.end()
                command = sweep.begin()
            time.sleep(rng.uniform(0.05, 1.0) * start_up)
        while kind != "driver at start-up" and not sweep.wait_for_epochs(command, sweep.state().fold_epochs + epochs):
            if NOT_STARTED not in command.said():
                break
            command = sweep.begin()
        time.sleep(rng.uniform(0.0, pause))
        before = sweep.snapshot()
        if command.process.poll() is not None:
            break
        command = fault.apply(kind, command)
        unchanged(before, sweep.snapshot(), found)
        print(f"{case.name}: {kind} at {len(before.epochs)} epochs, {found.recovered[-1:]}", flush=True)
    for _ in range(6):  # MLflow may have been away at the end
        if command.end() == 0 and (sweep.state().end or {}).get("status") == "finished":
            break
        command = sweep.begin()
    else:
        found.count("unfinished", 1, command.said())
    trained_once(sweep, found)
    same_scores(sweep, scores, found)
    same_decisions(case, sweep, reference, found)
    tracked(bench, sweep, found)
    left_behind(bench, sweep, found)
    return found


COLUMNS = ("folds lost", "epochs twice", "decisions changed", "scores changed", "runs twice", "steps twice",
           "runs left RUNNING", "processes left", "checkpoints left")  # fmt: skip


def report(results: list[Found]) -> str:
    """Return two Markdown tables: losses per sweep, and recovery times per kind of fault."""
    lines = [f"| sweep | faults | {' | '.join(COLUMNS)} | other |", "| --- " * (len(COLUMNS) + 3) + "|"]
    for f in results:
        other = {what: n for what, n in f.lost.items() if n and what not in COLUMNS}
        cells = [f.name, len(f.faults), *(f.lost[c] for c in COLUMNS), ", ".join(f"{n} {w}" for w, n in other.items())]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    totals = [sum(f.lost[c] for f in results) for c in COLUMNS]
    lines.append("| " + " | ".join(map(str, ["all", sum(len(f.faults) for f in results), *totals, ""])) + " |")
    lines += ["", "| fault | times | seconds to recover: median | most |", "| --- | --- | --- | --- |"]
    times = collections.Counter(kind for f in results for kind in f.faults)
    for kind, number in times.items():
        seconds = [s for f in results for k, s in f.recovered if k == kind]
        shown = f"{statistics.median(seconds):.0f} | {max(seconds):.0f}" if seconds else "| "
        lines.append(f"| {kind} | {number} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    made.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    made.add_argument("--only", nargs="*", choices=names, default=names, help="these sweeps (all)")
    made.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this new folder, and leave it there")
    options = made.parse_args()
    if options.keep and options.keep.exists():
        stop(f"{options.keep} exists already")
    # A shell that starts this in the background has it ignore Ctrl-C, and so would everything that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cases = [case for case in CASES if case.name in options.only]
    results: list[Found] = []
    with contextlib.nullcontext(options.keep) if options.keep else scratch() as folder:
        bench = Bench(folder)
        bench.server.start(PATIENCE)
        try:
            references: dict[str, tuple[Sweep, float]] = {}
            for case in cases:
                for name in {case.name if case.same else "", case.scores_of} - {""}:
                    if name not in references:
                        references[name] = undisturbed(bench, next(c for c in CASES if c.name == name))
            for case in cases:
                reference, start_up = references[case.name if case.same else case.scores_of]
                scores = references[case.scores_of or case.name][0]
                results.append(disturbed(bench, case, reference, start_up, scores, options.seed))
                for note in results[-1].notes:
                    print(f"LOST  {case.name}: {note}", flush=True)
        except Lost as error:
            stop(str(error))
        finally:
            for process in bench.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            bench.server.kill()
    print(report(results))
    if any(f.lost.total() for f in results):
        stop("something was lost")


if __name__ == "__main__":
    main()
