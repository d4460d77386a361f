"""`leebert-tune`: launch sweeps, watch them, pick the best, compare. Ray, MLflow and torch are imported when needed."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from leebert import console
from leebert.cli_options import (
    BACKBONE,
    Backbone,
    Command,
    Criterion,
    DataDir,
    Device,
    Experiment,
    Json,
    MaxLoss,
    Patience,
    Pooling,
    Set,
    SpeedUp,
    Task,
)
from leebert.errors import ConfigError, SweepError, TrackingError
from tune.reproduce.paper import TARGETS

app = typer.Typer(
    help="Cross-validated sweeps of early-exit models: Ray Tune runs them, a ledger keeps them, MLflow shows them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Storage = Annotated[str | None, typer.Option(help="Where sweeps lie; else LEEBERT_STORAGE, else ./sweeps.")]
Name = Annotated[str, typer.Argument(help="A sweep's name in the storage, or its folder.")]
Names = Annotated[list[str], typer.Argument(help="Names of sweeps in the storage, or their folders.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster (auto, HOST:PORT); without it, this machine.")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow; else MLFLOW_TRACKING_URI, else ./mlflow.db.")]
SweepsMlflow = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow; else the sweep's own, as when it started.")
]
TrialDevice = Annotated[str, typer.Option(help="auto: a GPU where trials ask for one, else the CPU.")]


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=console.print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    pass


@app.command(cls=Command)
def sweep(
    spaces: Annotated[
        list[Path],
        typer.Argument(help="Search spaces: YAML files, or names from `spaces`; several run one after the other."),
    ],
    data_dir: DataDir = None,
    backbone: Backbone = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name; with several spaces, NAME-TASK.")] = None,
    address: Address = None,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    set_: Set = None,
    device: TrialDevice = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and what it would cost.")] = False,
    json_: Json = False,
) -> None:
    """Run one sweep per space: trials on Ray, results in the ledger and in MLflow, the best configuration as a file."""
    from tune.space import load_space
    from tune.store.folder import check_name

    overrides = _overrides(data_dir, backbone, storage, tracking_uri, set_, experiment)
    if name is not None:
        check_name(name)
    # Every file is read before anything runs, so that a mistake in the last one shows at once.
    loaded = [(path, load_space(path, overrides)) for path in spaces]
    if dry_run:
        from tune.running.dry_run import plan, print_plan

        plans = [plan(spec, device) for _, spec in loaded]
        if json_:
            console.emit_json(plans)
        else:
            for (path, _), p in zip(loaded, plans, strict=True):
                print_plan(str(path), p)
        return
    names = []
    for path, spec in loaded:
        several = len(loaded) > 1
        names.append(f"{name}-{spec.task_name}" if name and several else name or _default_name(path))
    if len(set(names)) < len(names):
        raise SweepError(f"two of the sweeps would be named alike: {', '.join(names)}")

    console.quiet_transformers()
    from tune.running.sweep import new_sweep

    outcomes = []
    for (_, spec), this in zip(loaded, names, strict=True):
        outcomes.append(new_sweep(spec, this, address=address, device=device, say=_say))
        if outcomes[-1].by_hand:
            break  # a budget ends only its own sweep
    _conclude(outcomes, json_)


def _overrides(
    data_dir: str | None,
    backbone: str | None,
    storage: str | None,
    tracking_uri: str | None,
    set_: list[str] | None,
    experiment: str | None = None,
) -> list[str]:
    """The options that stand for keys of the space file, as `--set` would write them."""
    options = {
        "data.dir": data_dir and str(Path(data_dir).expanduser().resolve()),
        "backbone": backbone,
        "storage": storage,
        "tracking.uri": tracking_uri,
        "tracking.experiment": experiment,
    }
    return [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None] + (set_ or [])


def _default_name(path: Path) -> str:
    return f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


@app.command(cls=Command)
def spaces(
    into: Annotated[Path, typer.Argument(help="The folder that --copy writes into.")] = Path("."),
    copy: Annotated[
        str | None,
        typer.Option(help="Copy this search space (or `cluster`: the files that start one) into the folder."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the search spaces that come with the package, or copy one to edit it."""
    from tune.space.shipped import CLUSTER, copy_shipped, shipped_spaces

    if copy is not None:
        written = [str(path) for path in copy_shipped(copy, into)]
        console.emit_json(written) if json_ else print("\n".join(written))
        return
    found = shipped_spaces()
    if json_:
        console.emit_json([{"name": space.name, "file": str(space.path), "title": space.title} for space in found])
        return
    width = max(len(space.name) for space in found)
    for space in found:
        print(f"{space.name:{width}}  {space.title}")
    print(f"\nleebert-tune sweep NAME runs one; leebert-tune spaces --copy NAME . (or {CLUSTER}) makes a copy to edit")


@app.command(cls=Command)
def doctor(
    space: Annotated[Path, typer.Argument(help="A search space: a YAML file, or a name from `spaces`.")],
    data_dir: DataDir = None,
    backbone: Backbone = None,
    address: Address = None,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Look for what would make a sweep fail later: nodes, storage, disk, data, GPUs, MLflow, hub. Leaves nothing behind."""
    from tune.space import load_space

    spec = load_space(space, _overrides(data_dir, backbone, storage, tracking_uri, set_))
    console.quiet_transformers()
    from tune.running.doctor import examine, print_checks, verdict

    checks = examine(spec, address)
    if json_:
        console.emit_json([dataclasses.asdict(check) for check in checks])
    else:
        print_checks(checks)
    verdict(checks)


@app.command(cls=Command)
def resume(
    name: Name,
    space: Annotated[Path | None, typer.Argument(help="A space with more configurations or seeds.")] = None,
    data_dir: DataDir = None,
    backbone: Backbone = None,
    address: Address = None,
    storage: Storage = None,
    set_: Set = None,
    device: TrialDevice = "auto",
    take_over: Annotated[bool, typer.Option("--take-over", help="Even if another driver seems to live.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Train cells again whose held-out logits are missing or damaged.")
    ] = False,
    json_: Json = False,
) -> None:
    """Go on with a sweep that was stopped, ran out of budget, or died; or give it more configurations or seeds."""
    from tune.store.folder import SweepFolder

    folder = SweepFolder.find(name, storage)
    console.quiet_transformers()
    from tune.running.sweep import resume_sweep

    overrides = _overrides(data_dir, backbone, None, None, set_)
    outcome = resume_sweep(
        folder, space=space, overrides=overrides, take_over=take_over, repair=repair, address=address, device=device,
        say=_say,
    )  # fmt: skip
    _conclude([outcome], json_)


def _conclude(outcomes: list[Any], json_: bool) -> None:
    from tune.analysis.overview import print_table, print_views, summary
    from tune.store.folder import sweep_argument

    told = []
    for outcome in outcomes:
        state = outcome.folder.ledger.read()
        facts = summary(outcome.folder, outcome.spec, state)
        told.append(
            {
                **facts,
                "status": outcome.status,
                "mlflow": outcome.mlflow,
                "views": outcome.views,
                "unsent": outcome.unsent,
            }
        )
        if not json_:
            print_table(facts)
            print(f"MLflow: {outcome.mlflow}")
            print_views(outcome.views, outcome.views_note)
            print(f"best:   leebert-tune best {sweep_argument(outcome.folder)}")
    if json_:
        console.emit_json(told)
    if any(o.unsent for o in outcomes):
        raise SweepError(
            f"{sum(o.unsent for o in outcomes)} events did not reach MLflow; they stand in the ledger. When the server is "
            "back: "
            + "; ".join(f"leebert-tune rebuild-mlflow {sweep_argument(o.folder)}" for o in outcomes if o.unsent)
        )
    if all(not any(c["state"] == "complete" for c in t["configurations"]) for t in told) and all(
        o.status == "finished" for o in outcomes
    ):
        raise SweepError("no configuration was completed; see the messages above")
    _exit_by(outcomes[-1].signal)


def _exit_by(signal: int | None) -> None:
    """End as a command does that a signal has ended (130 after Ctrl-C), though what it did is in order."""
    if signal is not None:
        raise typer.Exit(128 + signal)


@app.command("list", cls=Command)
def list_(storage: Storage = None, json_: Json = False) -> None:
    """All sweeps of a storage."""
    from tune.analysis.overview import print_list, status_or_error
    from tune.store.folder import SweepFolder

    found = [status_or_error(folder) for folder in SweepFolder.all(storage)]
    console.emit_json(found) if json_ else print_list(found)


@app.command(cls=Command)
def status(name: Name, storage: Storage = None, json_: Json = False) -> None:
    """What a sweep has done, is doing and has left, from any terminal."""
    from tune.analysis.overview import print_status, status_of
    from tune.store.folder import SweepFolder

    told = status_of(SweepFolder.find(name, storage))
    console.emit_json(told) if json_ else print_status(told)


@app.command(cls=Command)
def stop(
    name: Name,
    storage: Storage = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the end.")] = 60.0,
) -> None:
    """Ask a running sweep to stop after the epochs that are under way; it can be resumed."""
    from tune.store.folder import SweepFolder

    folder = SweepFolder.find(name, storage)
    if folder.driver(certain=True) is None:
        end = folder.ledger.read(epochs=False).status(False)
        if end == "finished":
            raise SweepError(f"sweep {folder.name} is not running: it has finished")
        where = f" --storage {storage}" if storage else ""
        raise SweepError(f"sweep {folder.name} is not running; go on with it by: leebert-tune resume {name}{where}")
    folder.request_stop()
    deadline = time.time() + wait
    while (alive := folder.driver(certain=True)) is not None and time.time() < deadline:
        time.sleep(0.2)
    if alive is not None:
        print(f"{folder.name}: asked to stop; it is still finishing its epochs")
    else:
        print(f"{folder.name}: stopped; go on by: leebert-tune resume {name}")


@app.command(cls=Command)
def best(
    names: Names,
    out: Annotated[Path, typer.Option(help="Folder for <task>.yaml.")] = Path("best"),
    objective: Annotated[
        str, typer.Option(help="What is best: score (mean over exits), speed-up=2 (score at it) or area (over layers).")
    ] = "score",
    criterion: Criterion = None,
    patience: Patience = None,
    front: Annotated[
        bool, typer.Option("--front", help="Find the front of score against layers, however many cells there are.")
    ] = False,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Choose among those that aren't distinguishable from the majority class, too."),
    ] = False,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Write the best configuration per task, over one or several sweeps, as a file that `leebert train --config` takes.

    Exit code 1 if a sweep or task has none; the others' files are written all the same.
    """
    from tune.analysis.choose import choose_each
    from tune.analysis.tradeoff import RankingObjective
    from tune.models.write_best import print_best, write_best
    from tune.store.folder import SweepFolder

    folders = [SweepFolder.find(name, storage) for name in names]
    choices, errors = choose_each(
        folders, RankingObjective.of(objective, criterion, patience), front=front, anyway=anyway, say=_say
    )
    written = [(choice, *write_best(choice, out)) for choice in choices]
    if json_ and written:
        told = [{**values, "file": str(path)} for _, values, path in written]
        console.emit_json(told[0] if len(told) == 1 else told)
    elif not json_:
        for choice, values, path in written:
            print_best(choice, values, path)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise typer.Exit(1)


@app.command(cls=Command)
def verify(
    file: Annotated[Path, typer.Argument(help="A best file, such as best/mrpc.yaml.")],
    data_dir: DataDir = None,
    backbone: Backbone = None,
    device: Annotated[str | None, typer.Option(help="As recorded by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="As recorded by default.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; as recorded by default.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Train other data or code, too; claims nothing.")] = False,
    json_: Json = False,
) -> None:
    """Train a best file's cells again: does its score come out? Exit code 0 if it does, else 1."""
    from tune.models.best_file import read_best

    best = read_best(file).moved(data_dir, backbone)
    if precision not in (None, "fp32", "bf16"):
        raise ConfigError(f"--precision {precision}: fp32 or bf16")
    console.quiet_transformers()
    from tune.models.verify import claim, print_verdict
    from tune.models.verify import verify as verify_

    verdict = verify_(best, device=device, threads=threads, precision=precision, anyway=anyway, say=_say)  # type: ignore[arg-type]
    console.emit_json(verdict.as_dict()) if json_ else print_verdict(verdict)
    claim(verdict)


@app.command(cls=Command)
def refit(
    file: Annotated[Path, typer.Argument(help="A best file, such as best/mrpc.yaml.")],
    seeds: Annotated[int, typer.Option(min=1, help="How many models; the sweep's seeds first.")] = 1,
    first_seed: Annotated[int | None, typer.Option(min=0, help="Seeds from here on; the first is registered.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the models go; refits/TASK by default.")] = None,
    criterion: Criterion = None,
    patience: Patience = None,
    speed_up: SpeedUp = None,
    max_loss: MaxLoss = None,
    data_dir: DataDir = None,
    backbone: Backbone = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    name: Annotated[str | None, typer.Option(help="Registered model; leebert-TASK by default.")] = None,
    alias: Annotated[str, typer.Option(help="Alias of the registered version.")] = "champion",
    device: Device = "auto",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Register what isn't distinguishable from the majority class, too.")
    ] = False,
    json_: Json = False,
) -> None:
    """Train a best file's configuration on the whole training split, evaluate it, and register it to be served."""
    from tune.models.best_file import read_best

    best = read_best(file).moved(data_dir, backbone)
    console.quiet_transformers()
    from tune.models.refit import Plan, claimed, finish, prepare, print_refit, seeds_of
    from tune.models.refit import refit as refit_
    from tune.models.register import Target, check_names, check_server, log_refit, model_name
    from tune.tracking.server import resolve_uri

    plan = Plan(seeds_of(best, seeds, first_seed), criterion, speed_up, patience, device, max_loss=max_loss)
    out = out or Path("refits") / best.task_name
    experiment = experiment or f"leebert-{best.task_name}"
    to = Target(resolve_uri(tracking_uri), experiment, name or model_name(best.task_name), alias)
    check_names(to, best.task_name)
    ready = prepare(best, out, plan, anyway=anyway)
    check_server(to)
    with claimed(ready):
        told = refit_(ready, served_as=to.address, anyway=anyway, say=_say)
        told["mlflow"] = log_refit(best, out, told, to, say=_say)
        finish(out, told)
    console.emit_json(told) if json_ else print_refit(told, out)


@app.command("rebuild-mlflow", cls=Command)
def rebuild_mlflow(
    name: Name,
    storage: Storage = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; else the sweep's own, as when it started.")] = None,
    experiment: Experiment = None,
    json_: Json = False,
) -> None:
    """Write to MLflow what it lacks of a sweep: on a new server everything, after an outage what was not sent."""
    from tune.analysis.overview import print_views
    from tune.store.folder import SweepFolder
    from tune.tracking.rebuild import rebuild

    folder = SweepFolder.find(name, storage)
    told = rebuild(folder, tracking_uri=tracking_uri, experiment=experiment, say=_say)
    if json_:
        console.emit_json(told)
    else:
        mended = f", {told['mended']} run(s) mended" if told["mended"] else ""
        print(f"{folder.name}: {told['reports']} reports of {told['cells']} cells, {told['seconds']:.1f} s{mended}")
        print(f"MLflow: {told['mlflow']}")
        print_views(told["views"])
    if told["unsent"]:
        raise TrackingError(f"{told['unsent']} events did not reach MLflow; give the same command again")
    if differences := told["differences"]:
        shown = [*differences[:5], *([f"and {len(differences) - 5} more"] if len(differences) > 5 else [])]
        raise TrackingError(
            f"MLflow still differs from the sweep's record in {len(differences)} place(s):\n  "
            + "\n  ".join(shown)
            + "\nCheck what answers between this machine and the server, then give the same command again"
        )


@app.command(cls=Command)
def views(
    name: Name,
    storage: Storage = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; else the sweep's own, as when it started.")] = None,
    experiment: Experiment = None,
    json_: Json = False,
) -> None:
    """Make the sweep's saved views in MLflow again, from what it has found by now, and print their addresses."""
    from tune.analysis.overview import print_views
    from tune.store.folder import SweepFolder
    from tune.tracking.publish import show

    told = show(SweepFolder.find(name, storage), tracking_uri=tracking_uri, experiment=experiment)
    if json_:
        console.emit_json(told)
        return
    print_views(told["views"], told["note"])
    if told["running"]:
        print(
            f"the sweep is still running: the views show its {told['complete']} complete configurations, and more by and by"
        )


@app.command(cls=Command)
def compare(
    names: Names,
    a: Annotated[str, typer.Option(help="One value of the option, such as clo-v2.")],
    b: Annotated[str, typer.Option(help="The other value, such as blo.")],
    option: Annotated[str, typer.Option(help="The swept option whose values are compared.")] = "algorithm",
    where: Annotated[list[str] | None, typer.Option(help="option=value that narrows a side, such as c=4.")] = None,
    speed_up: Annotated[
        list[float] | None, typer.Option(help="Compare the score at this speed-up as well; repeatable. [default: 2]")
    ] = None,
    criterion: Criterion = None,
    patience: Patience = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with figures here, and log it to MLflow.")] = None,
    tracking_uri: SweepsMlflow = None,
    experiment: Experiment = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """A minus B, paired on configurations and cells, with corrected intervals; says when the data cannot tell."""
    from leebert.tradeoff import SPEED_UP
    from tune.analysis.compare_sweeps import across, compare_sweeps, print_comparisons
    from tune.analysis.tradeoff import RankingObjective
    from tune.store.folder import SweepFolder

    objectives = [
        RankingObjective.of(f"speed-up={s}", criterion, patience, option="--speed-up") for s in speed_up or [SPEED_UP]
    ]
    picked = _picked(where or [])
    folders = [SweepFolder.find(name, storage) for name in names]
    found = compare_sweeps(
        folders, a, b, option=_option(option), where=picked, objectives=objectives, epochs=html is not None
    )
    if html is not None:
        from tune.analysis.compare_html import comparison_page
        from tune.tracking.artifacts import deliver

        deliver(comparison_page(found), html, folders, tracking_uri=tracking_uri, experiment=experiment, say=_say)
    if not json_:
        print_comparisons(found)
        return
    told = [one.as_dict() for one in found]
    together = [one.as_dict() for one in across(found)]
    console.emit_json({"sweeps": told, "across": together} if together else told[0])


def _option(name: str) -> str:
    """An option by its name, or by its letter in the paper."""
    letters = {"c": "cycle_length", "lambda1": "lr_theta", "lambda2": "lr_omega", "b": "batch_size"}
    return letters.get(name.lower(), name)


def _picked(where: list[str]) -> dict[str, str]:
    """What `--where` says, by option."""
    picked: dict[str, str] = {}
    for assignment in where:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--where {assignment}: expected option=value, such as c=4")
        if _option(key) in picked:
            raise ConfigError(f"--where {assignment}: {_option(key)} is picked already; one value of an option")
        picked[_option(key)] = value
    return picked


@app.command(cls=Command)
def report(
    name: Name,
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the sweep's folder by default.")] = None,
    tracking_uri: SweepsMlflow = None,
    experiment: Experiment = None,
    storage: Storage = None,
) -> None:
    """Write a page on a whole sweep, and log it to MLflow: searched, best, front, importance, comparisons, failures."""
    from tune.analysis.report import sweep_page
    from tune.store.folder import SweepFolder
    from tune.tracking.artifacts import deliver

    folder = SweepFolder.find(name, storage)
    page, path = sweep_page(folder), out or folder.path / "report.html"
    print(deliver(page, path, [folder], tracking_uri=tracking_uri, experiment=experiment, say=_say))


@app.command(cls=Command)
def simulate(
    name: Annotated[str, typer.Argument(help="A sweep that was run with `pruner: none`, or a copy of its scores.")],
    pruner: Annotated[
        str, typer.Option(help="none, racing or halving; its options by --set pruner.KEY=VALUE.")
    ] = "racing",
    searcher: Annotated[
        str, typer.Option(help="grid or random: random orders of what was recorded; or tpe.")
    ] = "random",
    orders: Annotated[int, typer.Option(min=1, help="How many sweeps to simulate.")] = 200,
    concurrent: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the orders.")] = 0,
    set_: Set = None,
    save: Annotated[Path | None, typer.Option(help="Keep a small copy of the scores in this folder.")] = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """What a pruner would have saved, and lost, on a sweep that has run without one."""
    from tune.running.recording import Recording
    from tune.running.simulate import print_simulation
    from tune.running.simulate import simulate as simulate_

    recording = Recording.find(name, storage)
    spec = recording.spec([f"pruner.name={pruner}", f"searcher.name={searcher}", *(set_ or [])])
    told = simulate_(recording, spec, orders=orders, concurrent=concurrent, seed=seed).as_dict()
    if save is not None:
        recording.save(save)
    console.emit_json(told) if json_ else print_simulation(told)


@app.command(cls=Command)
def reproduce(
    target: Annotated[str, typer.Argument(help=f"One of {', '.join(TARGETS)}.")],
    backbone: Annotated[str, typer.Option(help=BACKBONE)],
    task: Task = None,
    pooling: Pooling = None,
    methods: Annotated[
        str | None, typer.Option(help="Only these, by commas; methods that the table lacks get a row.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Per method; as many as are there by default, else 5.")] = None,
    budget: Annotated[str | None, typer.Option(help="Stop after 90m, 1.5h or fold_epochs=40 of this run.")] = None,
    best_file: Annotated[
        Path | None, typer.Option("--best", help="A best file whose training options all methods take.")
    ] = None,
    set_: Set = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of results, tables and figures.")] = Path("reproduced"),
    name: Annotated[str | None, typer.Option(help="Of the sweep; reproduce-TASK-BACKBONE by default.")] = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Train nothing, show what the results file holds.")] = False,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    device: TrialDevice = "auto",
    json_: Json = False,
) -> None:
    """Make one of the paper's tables or figures anew: run what is missing, reuse what is there, render all of it."""
    console.quiet_transformers()
    from tune.reproduce.command import reproduce as reproduce_
    from tune.reproduce.plan import Request

    request = Request(
        target, task, backbone, pooling or "pooler", () if methods is None else tuple(m.strip() for m in methods.split(",")), seeds, budget,
        tuple(set_ or ()), best_file, data_dir, out, name, storage, tracking_uri, address, device,
    )  # fmt: skip
    made = reproduce_(request, train=not no_run, say=_say)
    if json_:
        console.emit_json(made.as_dict())
    else:
        print(made.text)
        for path in made.files:
            print(path)
        if made.missing:
            print("not whole; " + "; ".join(made.missing))
        if made.again:
            print(f"go on by: {made.again}")
    _exit_by(made.signal)
    if made.failed:
        raise typer.Exit(1)


def main() -> None:
    """The console script."""
    console.run(app)
