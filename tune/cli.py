"""`leebert-tune`: run sweeps, choose the best configuration, compare methods, serve models.

Commands import Ray, MLflow and torch only when they need them, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from leebert import console, live
from leebert.cli_options import (
    BACKBONE,
    Backbone,
    BatchSize,
    Command,
    Criterion,
    DataDir,
    Device,
    Experiment,
    Json,
    Latency,
    MaxLoss,
    Patience,
    Pooling,
    Precision,
    Set,
    SpeedUp,
    Task,
    Texts,
    check_device,
)
from leebert.errors import ConfigError, SweepError, TrackingError
from tune.reproduce.paper import TABLE_3, TARGETS

app = typer.Typer(
    help="Cross-validated sweeps of early-exit models: Ray Tune runs the trials, a ledger (the sweep's event log) records "
    "them, MLflow displays them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Storage = Annotated[str | None, typer.Option(help="Folder of the sweeps; else LEEBERT_STORAGE, else ./sweeps.")]
Name = Annotated[str, typer.Argument(help="A sweep's name in the storage, or its folder.")]
Names = Annotated[list[str], typer.Argument(help="Names of sweeps in the storage, or their folders.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster (auto or HOST:PORT); by default this machine.")]
TrackingUri = Annotated[str | None, typer.Option(help="MLflow address; else MLFLOW_TRACKING_URI, else ./mlflow.db.")]
SweepsMlflow = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow address; by default the one that the sweep started with.")
]
TrialDevice = Annotated[
    str,
    typer.Option(
        callback=check_device, help="auto, cpu or cuda; auto takes a GPU if the trials request one, else the CPU."
    ),
]


#: What commands do first.
LOADING = "loading libraries"


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=console.print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


Power = Annotated[
    float | None,
    typer.Option(
        metavar="[POINTS]",
        help="Print the folds × seeds that detect a difference of so many points (by default 0.36, the paper's CLO-v2 minus "
        "BLO) with 80 % power; in sweep with --dry-run.",
    ),
]


class _WithPower(Command):
    """A command whose option `--power` may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give `--power` its default value where none follows it."""
        at = args.index("--power") + 1 if "--power" in args else 0
        if at and not (at < len(args) and _is_number(args[at])):
            from tune.analysis.power import DIFFERENCE

            args = [*args[:at], f"{100 * DIFFERENCE:g}", *args[at:]]
        return super().parse_args(ctx, args)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@app.command(cls=_WithPower)
def sweep(
    spaces: Annotated[
        list[Path],
        typer.Argument(help="Search spaces: YAML files or names from `spaces`; several run one after another."),
    ],
    data_dir: DataDir = None,
    backbone: Backbone = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; with several spaces, NAME-TASK.")] = None,
    address: Address = None,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    set_: Set = None,
    device: TrialDevice = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print configurations, estimated time, memory, disk and power; train nothing."),
    ] = False,
    power: Power = None,
    std: Annotated[
        float | None,
        typer.Option(
            help="With --dry-run: the standard deviation of single runs' differences between methods, in points."
        ),
    ] = None,
    std_from: Annotated[
        str | None,
        typer.Option(
            metavar="SWEEP",
            help="With --dry-run: take the variances of samples, folds and seeds from an earlier sweep.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Run one sweep per search space: trials on Ray, results in the ledger and in MLflow."""
    from tune.running.first_checks import check_first
    from tune.space import load_space
    from tune.store.folder import check_name

    for option, value in (("--power", power), ("--std", std), ("--std-from", std_from)):
        if value is not None and not dry_run:
            raise ConfigError(f"{option} belongs to --dry-run, which trains nothing; add --dry-run, or omit {option}")
    overrides = _overrides(data_dir, backbone, storage, tracking_uri, set_, experiment)
    if name is not None:
        check_name(name)
    # Read every file first: an error in the last one shows before the first sweep starts.
    loaded = [(path, load_space(path, overrides)) for path in spaces]
    if dry_run:
        _print_plans(loaded, device, json_, _difference(power), _variances(std, std_from, storage))
        return
    names = _names_of(loaded, name)
    for (_, spec), sweep_name in zip(loaded, names, strict=True):
        check_first(spec, name=sweep_name, address=address)
    outcomes = []
    with live.display(LOADING):
        console.quiet_transformers()
        from tune.running.sweep import new_sweep

        for (_, spec), sweep_name in zip(loaded, names, strict=True):
            outcomes.append(new_sweep(spec, sweep_name, address=address, device=device))
            if outcomes[-1].by_hand:
                break  # a used-up budget ends one sweep, a signal ends all
    _conclude(outcomes, json_)


def _variances(points: float | None, sweep: str | None, storage: str | None) -> Any:
    """Return the variances of differences that a dry run is given; None without any."""
    from tune.analysis.power import StatedVariances
    from tune.store.folder import SweepFolder

    if points is not None and sweep is not None:
        raise ConfigError("--std and --std-from: give one of them")
    if points is not None and not 0 < points <= 100:
        raise ConfigError(f"--std {points:g}: a number of points above 0 and at most 100, such as 0.5")
    if sweep is not None:
        folder = SweepFolder.find(sweep, storage)
        with live.display(f"reading the differences of {folder.name}"):
            from tune.analysis.compare_sweeps import variances_of

            return variances_of(folder)
    return None if points is None else StatedVariances(points / 100)


def _print_plans(loaded: list[tuple[Path, Any]], device: str, json_: bool, difference: float, variances: Any) -> None:
    """Print what each sweep would run and cost, and what it could detect; train nothing."""
    with live.display(LOADING):
        from tune.running.dry_run import plan, print_plan

        plans = [plan(spec, device, difference, variances) for _, spec in loaded]
    if json_:
        console.emit_json(plans)
        return
    for (path, _), one in zip(loaded, plans, strict=True):
        print_plan(str(path), one)


def _names_of(loaded: list[tuple[Path, Any]], name: str | None) -> list[str]:
    """Name each sweep: NAME, NAME-TASK if there are several, or the file's name and the time."""
    names = []
    for path, spec in loaded:
        several = len(loaded) > 1
        names.append(f"{name}-{spec.task_name}" if name and several else name or _default_name(path))
    if len(set(names)) < len(names):
        raise SweepError(
            f"two sweeps would have the same name: {', '.join(names)}; give one space at a time with --name"
        )
    return names


def _overrides(
    data_dir: str | None,
    backbone: str | None,
    storage: str | None,
    tracking_uri: str | None,
    set_: list[str] | None,
    experiment: str | None = None,
) -> list[str]:
    """Write the options that replace keys of the space file as `--set` does; `--set` itself comes last and wins."""
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
    into: Annotated[
        Path | None, typer.Argument(help="The folder that --copy writes into; by default the working directory.")
    ] = None,
    copy: Annotated[
        str | None,
        typer.Option(help="Copy this search space (or `cluster`: the files that start a cluster) into the folder."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the search spaces that come with the package, or copy one to edit it."""
    from tune.space.shipped import CLUSTER, copy_shipped, shipped_spaces

    if copy is not None:
        written = [str(path) for path in copy_shipped(copy, into or Path("."))]
        if json_:
            console.emit_json(written)
            return
        print("\n".join(written))
        if copy != CLUSTER:
            console.next_step(f"leebert-tune doctor {shlex.quote(written[0])}")
        return
    if into is not None:
        raise ConfigError(
            f"spaces {into}: only --copy takes a folder; copy a space by: leebert-tune spaces --copy {into} ."
        )
    available = shipped_spaces()
    if json_:
        console.emit_json([{"name": space.name, "file": str(space.path), "title": space.title} for space in available])
        return
    console.listing([(space.name, space.title) for space in available])
    console.sentence(f"\nleebert-tune spaces --copy NAME . copies one (or {CLUSTER}) to edit")
    console.next_step("leebert-tune sweep NAME")


@app.command(cls=Command)
def doctor(
    space: Annotated[Path, typer.Argument(help="Search space: a YAML file or a name from `spaces`.")],
    data_dir: DataDir = None,
    backbone: Backbone = None,
    address: Address = None,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Check nodes, storage, disk, data, GPU memory, MLflow and hub before a sweep. Exit code 1 if a check fails."""
    from tune.space import load_space

    spec = load_space(space, _overrides(data_dir, backbone, storage, tracking_uri, set_))
    with live.display(LOADING):
        console.quiet_transformers()
        from tune.running.doctor import examine, print_checks, verdict

        checks = examine(spec, address)
    if json_:
        console.emit_json([dataclasses.asdict(check) for check in checks])
    else:
        print_checks(checks)
    verdict(checks)
    if not json_:
        options = {"data-dir": data_dir, "backbone": backbone, "address": address, "storage": storage}
        words = [(f"--{name}", value) for name, value in (*options.items(), ("tracking-uri", tracking_uri)) if value]
        words += [("--set", assignment) for assignment in set_ or ()]
        console.next_step(shlex.join(["leebert-tune", "sweep", str(space), *itertools.chain(*words)]))


@app.command(cls=Command)
def resume(
    name: Name,
    space: Annotated[Path | None, typer.Argument(help="Search space with more configurations or seeds.")] = None,
    data_dir: DataDir = None,
    backbone: Backbone = None,
    address: Address = None,
    storage: Storage = None,
    set_: Set = None,
    device: TrialDevice = "auto",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Resume even if another driver still seems to run the sweep.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repeat the runs whose validation logits are missing or damaged.")
    ] = False,
    json_: Json = False,
) -> None:
    """Resume a sweep that was stopped, used up its budget or crashed; or add configurations or seeds to it."""
    from tune.running.first_checks import check_resumed
    from tune.store.folder import SweepFolder

    folder = SweepFolder.find(name, storage)
    overrides = _overrides(data_dir, backbone, None, None, set_)
    check_resumed(folder, space, overrides, address)
    with live.display(LOADING):
        console.quiet_transformers()
        from tune.running.sweep import resume_sweep

        outcome = resume_sweep(
            folder, space=space, overrides=overrides, take_over=take_over, repair=repair, address=address, device=device
        )  # fmt: skip
    _conclude([outcome], json_)


def _conclude(outcomes: list[Any], json_: bool) -> None:
    """Print each sweep's results, and exit by how the last one ended."""
    from tune.analysis.overview import print_table, print_views, summary
    from tune.store.folder import sweep_argument

    summaries = []
    for outcome in outcomes:
        state = outcome.folder.ledger.read()
        facts = summary(outcome.folder, outcome.spec, state)
        ending = {key: getattr(outcome, key) for key in ("status", "mlflow", "views", "unsent")}
        summaries.append({**facts, **ending})
        if not json_:
            print_table(facts)
            print(f"MLflow: {outcome.mlflow}")
            print_views(outcome.views, outcome.views_note)
            console.next_step(f"leebert-tune {_after(outcome, facts)} {sweep_argument(outcome.folder)}")
    if json_:
        console.emit_json(summaries)
    if any(o.unsent for o in outcomes):
        raise SweepError(
            f"{sum(o.unsent for o in outcomes)} events did not reach MLflow; the ledger has them. When the server "
            "responds again: "
            + "; ".join(f"leebert-tune rebuild-mlflow {sweep_argument(o.folder)}" for o in outcomes if o.unsent)
        )
    completed = any(c["state"] == "complete" for summary in summaries for c in summary["configurations"])
    if not completed and all(o.status == "finished" for o in outcomes):
        raise SweepError("no configuration completed; the messages above say why each one failed")
    _exit_by(outcomes[-1].signal)


def _after(outcome: Any, facts: dict[str, Any]) -> str:
    """Return the command that follows a session of a sweep."""
    if outcome.status == "stopped":
        return "resume"
    return "best" if any(c["state"] == "complete" for c in facts["configurations"]) else "report"


def _exit_by(signal: int | None) -> None:
    """Exit with 128 + the signal's number (130 after Ctrl-C), as shells expect; return if there was no signal."""
    if signal is not None:
        raise typer.Exit(128 + signal)


@app.command("list", cls=Command)
def list_(storage: Storage = None, json_: Json = False) -> None:
    """List all sweeps of a storage folder."""
    from tune.analysis.overview import print_list, status_or_error
    from tune.store.folder import SweepFolder

    sweeps = [status_or_error(folder) for folder in SweepFolder.all(storage)]
    if json_:
        console.emit_json(sweeps)
        return
    print_list(sweeps)
    _next("status NAME", storage) if sweeps else console.next_step("leebert-tune spaces")


@app.command(cls=Command)
def status(
    name: Name,
    storage: Storage = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing it until the sweep ends; Ctrl-C leaves.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show a sweep's configurations, what is running (fold, epoch, elapsed and remaining time), and the best so far."""
    from tune.analysis.overview import print_status, status_of
    from tune.analysis.overview import watch as watch_
    from tune.store.folder import SweepFolder

    if watch and json_:
        raise ConfigError("--watch shows a display, and --json prints one: leave out one of the two")
    if watch:
        watch_(SweepFolder.find(name, storage))
        return
    status_now = status_of(SweepFolder.find(name, storage))
    if json_:
        console.emit_json(status_now)
        return
    print_status(status_now)
    command = {"running": "status --watch", "finished": "best" if status_now["best"] else "report"}
    _next(f"{command.get(status_now['state'], 'resume')} {shlex.quote(name)}", storage)


@app.command(cls=Command)
def stop(
    name: Name,
    storage: Storage = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait until the sweep has stopped.")] = 60.0,
) -> None:
    """Stop a running sweep after the current epochs; `resume` continues it."""
    from tune.store.folder import SweepFolder

    folder = SweepFolder.find(name, storage)
    if folder.driver(certain=True) is None:
        end = folder.ledger.read(epochs=False).status(False)
        if end == "finished":
            raise SweepError(f"sweep {folder.name} is not running: it has finished")
        where = f" --storage {storage}" if storage else ""
        raise SweepError(f"sweep {folder.name} is not running; resume it by: leebert-tune resume {name}{where}")
    folder.request_stop()
    deadline = time.time() + wait
    while (alive := folder.driver(certain=True)) is not None and time.time() < deadline:
        time.sleep(0.2)
    if alive is not None:
        print(f"{folder.name}: stop requested; the current epochs are still running")
    else:
        print(f"{folder.name}: stopped")
        _next(f"resume {shlex.quote(name)}", storage)


@app.command(cls=Command)
def best(
    names: Names,
    out: Annotated[Path, typer.Option(help="Folder for <task>.yaml.")] = Path("best"),
    objective: Annotated[
        str,
        typer.Option(
            help="What is maximised: score (validation score, mean over exits), speed-up=2 (score at that layer speed-up), "
            "latency=5ms (score within that mean time per sample, which is measured on this machine) or area (under the "
            "curve of score against mean exit layer)."
        ),
    ] = "score",
    criterion: Criterion = None,
    patience: Patience = None,
    pareto: Annotated[
        bool,
        typer.Option(
            "--pareto", help="Compute the Pareto front of score against mean exit layer, even with more than 100 runs."
        ),
    ] = False,
    milliseconds: Annotated[
        bool,
        typer.Option(
            "--milliseconds",
            help="Measure the networks on this machine, in the form of `leebert export`, and add milliseconds to the tables.",
        ),
    ] = False,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway", help="Include configurations whose score is not significantly above that of the majority class."
        ),
    ] = False,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Write the best configuration of each task as a file for `leebert train --config`, from one or several sweeps.

    Exit code 1 if a sweep or task has no best configuration; the other files are still written.
    """
    with live.display(LOADING):
        from tune.analysis.tradeoff import RankingObjective
        from tune.store.folder import SweepFolder

        folders = [SweepFolder.find(name, storage) for name in names]
        aim = RankingObjective.of(objective, criterion, patience)
        from tune.analysis.choose import choose_each
        from tune.models.write_best import print_best, write_best

        live.phase("reading the sweeps")
        choices, errors = choose_each(folders, aim, front=pareto, timed=milliseconds, anyway=anyway)
        written = [(choice, *write_best(choice, out)) for choice in choices]
    if json_ and written:
        contents = [{**values, "file": str(path)} for _, values, path in written]
        console.emit_json(contents[0] if len(contents) == 1 else contents)
    elif not json_:
        for choice, values, path in written:
            print_best(choice, values, path)
        if written:
            console.next_step(f"leebert-tune refit {shlex.quote(str(written[0][2]))}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise typer.Exit(1)


@app.command(cls=Command)
def verify(
    file: Annotated[Path, typer.Argument(help="A best file, such as best/mrpc.yaml.")],
    data_dir: DataDir = None,
    backbone: Backbone = None,
    device: Annotated[
        str | None, typer.Option(callback=check_device, help="auto, cpu, cuda or cuda:N; by default as recorded.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default as recorded.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; by default as recorded.")] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Run despite mismatched data or code; never reports success.")
    ] = False,
    json_: Json = False,
) -> None:
    """Re-run a best file's cross-validation and check its score. Exit code 0 if it is reproduced, else 1."""
    from tune.models.best_file import read_best

    best = read_best(file).moved(data_dir, backbone)
    if precision not in (None, "fp32", "bf16"):
        raise ConfigError(f"--precision {precision}: not fp32 or bf16; give one of the two")
    with live.display(LOADING):
        console.quiet_transformers()
        from tune.models.verify import claim, print_verdict
        from tune.models.verify import verify as verify_

        verdict = verify_(best, device=device, threads=threads, precision=precision, anyway=anyway)  # type: ignore[arg-type]
    console.emit_json(verdict.as_dict()) if json_ else print_verdict(verdict)
    claim(verdict)
    if not json_:
        console.next_step(f"leebert-tune refit {shlex.quote(str(file))}")


@app.command(cls=Command)
def refit(
    file: Annotated[Path, typer.Argument(help="A best file, such as best/mrpc.yaml.")],
    seeds: Annotated[int, typer.Option(min=1, help="Number of models, one per seed; the sweep's seeds first.")] = 1,
    first_seed: Annotated[
        int | None, typer.Option(min=0, help="First seed, whose model is registered; by default the sweep's first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the models; refits/TASK by default.")] = None,
    criterion: Criterion = None,
    patience: Patience = None,
    speed_up: SpeedUp = None,
    max_loss: MaxLoss = None,
    latency: Latency = None,
    export: Annotated[
        str | None,
        typer.Option(
            metavar="int8|fp32|none",
            help="Form of the registered model: exported for ONNX Runtime in int8 (default) or fp32, or in PyTorch (none).",
        ),
    ] = None,
    data_dir: DataDir = None,
    backbone: Backbone = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    name: Annotated[str | None, typer.Option(help="Name of the registered model; leebert-TASK by default.")] = None,
    alias: Annotated[str, typer.Option(help="Alias of the registered version.")] = "champion",
    device: Device = "auto",
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="Train and register even if the score is not significantly above that of the majority class.",
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Train a best file's configuration on the whole training split, evaluate it, export it and register it for serving."""
    from leebert.milliseconds import parse_milliseconds
    from tune.models.best_file import read_best

    best = read_best(file).moved(data_dir, backbone)
    milliseconds = None if latency is None else parse_milliseconds(latency, "--latency")
    out = out or Path("refits") / best.task_name
    experiment = experiment or f"leebert-{best.task_name}"
    with live.display(LOADING):
        console.quiet_transformers()
        from tune.models.refit import RefitPlan, claimed, finish, prepare, print_refit, seeds_of
        from tune.models.refit import refit as refit_
        from tune.models.register import RegistryTarget, check_names, check_server, log_refit, model_name
        from tune.tracking.server import resolve_uri

        plan = RefitPlan(
            seeds_of(best, seeds, first_seed), criterion, speed_up, patience, device, max_loss=max_loss,
            latency=milliseconds, export=export,
        )  # fmt: skip
        to = RegistryTarget(resolve_uri(tracking_uri), experiment, name or model_name(best.task_name), alias)
        check_names(to, best.task_name)
        live.phase("checking data and backbone, and choosing the thresholds")
        ready = prepare(best, out, plan, anyway=anyway)
        live.phase("connecting to MLflow")
        check_server(to)
        with claimed(ready):
            outcome = refit_(ready, name=to.name, served_as=to.address, anyway=anyway)
            live.phase("registering the model in MLflow")
            outcome["mlflow"] = log_refit(best, out, outcome, to)
            finish(out, outcome)
    console.emit_json(outcome) if json_ else print_refit(outcome, out)


@app.command(cls=Command)
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model, on storage that all nodes share.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Input files as for `leebert predict`, on shared storage.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the shards, on shared storage; a second run resumes.")],
    form: Annotated[str, typer.Option("--format", help="parquet, jsonl or csv.")] = "parquet",
    address: Address = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Most copies of the model; by default as many as fit the cluster.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each copy.")] = 1,
    text: Texts = None,
    criterion: Criterion = None,
    threshold: Annotated[float | None, typer.Option(help="The criterion's threshold.")] = None,
    patience: Patience = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    precision: Precision = None,
    json_: Json = False,
) -> None:
    """Predict large files on a Ray cluster: one copy of the model per actor, one output shard per 4096 rows."""
    from leebert.prediction_files import format_of
    from leebert.predictor_options import PredictorOptions
    from tune.models.predict import ClusterPrediction, check, print_predicted
    from tune.models.predict import predict as predict_

    options = PredictorOptions(model, criterion, threshold, patience, batch_size, device, precision, threads)
    request = ClusterPrediction(options, tuple(files), tuple(text or ()), out, format_of(out / "shard", form))
    check(request)
    with live.display(LOADING):
        predicted = predict_(request, address, actors)
    console.emit_json(predicted.as_dict()) if json_ else print_predicted(predicted)


@app.command("rebuild-mlflow", cls=Command)
def rebuild_mlflow(
    name: Name,
    storage: Storage = None,
    tracking_uri: SweepsMlflow = None,
    experiment: Experiment = None,
    json_: Json = False,
) -> None:
    """Write the missing part of a sweep to MLflow: everything on a new server, missing events after an outage."""
    with live.display(LOADING):
        from tune.analysis.overview import print_views
        from tune.store.folder import SweepFolder
        from tune.tracking.rebuild import rebuild

        folder = SweepFolder.find(name, storage)
        live.phase("comparing MLflow with the sweep's ledger")
        rebuilt = rebuild(folder, tracking_uri=tracking_uri, experiment=experiment)
    if json_:
        console.emit_json(rebuilt)
    else:
        mended = f", {rebuilt['mended']} run(s) corrected" if rebuilt["mended"] else ""
        print(
            f"{folder.name}: {rebuilt['reports']} reports of {rebuilt['cells']} runs, {rebuilt['seconds']:.1f} s{mended}"
        )
        print(f"MLflow: {rebuilt['mlflow']}")
        print_views(rebuilt["views"])
        if not rebuilt["unsent"] and not rebuilt["differences"]:
            _next(f"report {shlex.quote(name)}", storage)
    if rebuilt["unsent"]:
        raise TrackingError(f"{rebuilt['unsent']} events did not reach MLflow; run the same command again")
    if differences := rebuilt["differences"]:
        shown = [*differences[:5], *([f"and {len(differences) - 5} more"] if len(differences) > 5 else [])]
        raise TrackingError(
            f"MLflow still differs from the sweep's ledger in {len(differences)} place(s):\n  "
            + "\n  ".join(shown)
            + "\nCheck any proxy between this machine and the server, then run the same command again"
        )


@app.command(cls=Command)
def views(
    name: Name,
    storage: Storage = None,
    tracking_uri: SweepsMlflow = None,
    experiment: Experiment = None,
    json_: Json = False,
) -> None:
    """Write the sweep's saved views to MLflow from its current results, and print their addresses."""
    with live.display(LOADING):
        from tune.analysis.overview import print_views
        from tune.store.folder import SweepFolder
        from tune.tracking.publish import show

        folder = SweepFolder.find(name, storage)
        live.phase("comparing the methods, and writing the views to MLflow")
        published = show(folder, tracking_uri=tracking_uri, experiment=experiment)
    if json_:
        console.emit_json(published)
        return
    print_views(published["views"], published["note"])
    if published["running"]:
        print(f"the sweep is still running: the views show its {published['complete']} completed configurations so far")
    _next(f"{'status' if published['running'] else 'report'} {shlex.quote(name)}", storage)


@app.command(cls=_WithPower)
def compare(
    names: Names,
    a: Annotated[
        str | None, typer.Option(help="First value of the option; by default clo-v2, or the sweep's first method.")
    ] = None,
    b: Annotated[str | None, typer.Option(help="Second value; by default blo, or the sweep's second method.")] = None,
    option: Annotated[
        str, typer.Option(help="The searched option whose values are compared; algorithm compares methods.")
    ] = "algorithm",
    where: Annotated[
        list[str] | None,
        typer.Option(help="option=value: compare only configurations with this value, such as c=4; repeatable."),
    ] = None,
    speed_up: Annotated[
        list[float] | None,
        typer.Option(help="Also compare the score at this layer speed-up, beside 1.5, 2 and 3; repeatable."),
    ] = None,
    criterion: Criterion = None,
    patience: Patience = None,
    power: Power = None,
    html: Annotated[
        Path | None, typer.Option(help="Write an HTML page with figures to this file, and log it to MLflow.")
    ] = None,
    tracking_uri: SweepsMlflow = None,
    experiment: Experiment = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Compare two methods, or two values of another option: A minus B, paired by configuration, seed and fold."""
    with live.display(LOADING):
        from tune.analysis.compare_sweeps import across, at_speed_ups, compare_sweeps
        from tune.analysis.compare_text import print_comparisons
        from tune.analysis.verdict import choose_sides
        from tune.store.folder import SweepFolder

        objectives = at_speed_ups(speed_up or (), criterion, patience)
        picked = _picked(where or [])
        folders = [SweepFolder.find(name, storage) for name in names]
        sides, difference = choose_sides(folders, _option(option), a, b), _difference(power)
        live.phase("reading the ledger")
        comparisons = compare_sweeps(
            folders,
            *sides,
            option=_option(option),
            where=picked,
            objectives=objectives,
            epochs=html is not None,
            difference=difference,
        )
        if html is not None:
            live.phase("drawing the page, and logging it to MLflow")
            from tune.analysis.compare_html import comparison_page
            from tune.tracking.artifacts import deliver

            deliver(comparison_page(comparisons), html, folders, tracking_uri=tracking_uri, experiment=experiment)
    if not json_:
        print_comparisons(comparisons, power=power is not None)
        where_stored = ["--storage", storage] if storage else []
        plain = html is None and option == "algorithm" and not (where or speed_up or criterion or patience)
        following = ["compare", *names, "--a", sides[0], "--b", sides[1]] if plain else ["best", *names]
        figures = ["--html", "compare.html"] if plain else []
        console.next_step(shlex.join(["leebert-tune", *following, *where_stored, *figures]))
        return
    results = [one.as_dict() for one in comparisons]
    together = [one.as_dict() for one in across(comparisons)]
    console.emit_json({"sweeps": results, "across": together} if together else results[0])


def _difference(points: float | None) -> float:
    """Return the difference of `--power` as a fraction; None: the default."""
    from tune.analysis.power import DIFFERENCE

    if points is not None and not 0 < points <= 100:
        raise ConfigError(f"--power {points:g}: a difference in points above 0 and at most 100, such as 0.36")
    return DIFFERENCE if points is None else points / 100


def _next(command: str, storage: str | None) -> None:
    """Print the command of this program to run next, on the same storage."""
    where = f" --storage {shlex.quote(storage)}" if storage else ""
    console.next_step(f"leebert-tune {command}{where}")


def _option(name: str) -> str:
    """Translate an option's letter in the paper (c, lambda1, lambda2, b) to its name; names are unchanged."""
    letters = {"c": "cycle_length", "lambda1": "lr_theta", "lambda2": "lr_omega", "b": "batch_size"}
    return letters.get(name.lower(), name)


def _picked(where: list[str]) -> dict[str, str]:
    """Parse `--where` into values by option."""
    picked: dict[str, str] = {}
    for assignment in where:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--where {assignment}: not option=value; write, for example, --where c=4")
        if _option(key) in picked:
            raise ConfigError(f"--where {assignment}: {_option(key)} has a value already; give one value per option")
        picked[_option(key)] = value
    return picked


@app.command(cls=Command)
def report(
    name: Name,
    out: Annotated[Path | None, typer.Option(help="HTML file; report.html in the sweep's folder by default.")] = None,
    tracking_uri: SweepsMlflow = None,
    experiment: Experiment = None,
    storage: Storage = None,
) -> None:
    """Write an HTML report of a sweep and log it to MLflow: space, best, front, importance, comparisons, failures."""
    with live.display(LOADING):
        from tune.store.folder import SweepFolder

        folder = SweepFolder.find(name, storage)
        from tune.analysis.report import sweep_page
        from tune.tracking.artifacts import deliver

        live.phase("reading the ledger")
        page, path = sweep_page(folder), out or folder.path / "report.html"
        live.phase("logging the page to MLflow")
        written = deliver(page, path, [folder], tracking_uri=tracking_uri, experiment=experiment)
    print(written)
    _next(f"best {shlex.quote(name)}", storage)


@app.command(cls=Command)
def simulate(
    name: Annotated[str, typer.Argument(help="A sweep that ran with `pruner: none`, or a copy of its scores.")],
    pruner: Annotated[
        str,
        typer.Option(help="The pruner, such as halving; none: no pruning. Set its options by --set pruner.KEY=VALUE."),
    ] = "racing",
    searcher: Annotated[
        str, typer.Option(help="grid or random (the recorded configurations in random order), or tpe.")
    ] = "random",
    orders: Annotated[int, typer.Option(min=1, help="Number of simulated sweeps, each in another order.")] = 200,
    concurrent: Annotated[int, typer.Option(min=1, help="Number of concurrent trials.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed of the orders.")] = 0,
    set_: Set = None,
    save: Annotated[Path | None, typer.Option(help="Write a small copy of the scores to this folder.")] = None,
    storage: Storage = None,
    json_: Json = False,
) -> None:
    """Estimate the cost and the drop in score under a pruner, from a sweep that ran without one."""
    from tune.running.recording import Recording

    recording = Recording.find(name, storage)
    spec = recording.spec_with(pruner, searcher, set_ or ())
    with live.display(LOADING):
        from tune.running.simulate import print_simulation
        from tune.running.simulate import simulate as simulate_

        summary = simulate_(recording, spec, orders=orders, concurrent=concurrent, seed=seed).as_dict()
    if save is not None:
        recording.save(save)
    if json_:
        console.emit_json(summary)
        return
    print_simulation(summary)
    console.next_step(f"leebert-tune sweep SPACE --set pruner={pruner}")


@app.command(cls=Command)
def reproduce(
    target: Annotated[str, typer.Argument(help=f"One of {', '.join([*TARGETS, TABLE_3])}.")],
    backbone: Annotated[str | None, typer.Option(help=BACKBONE)] = None,
    task: Task = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="One table over several tasks: all, or names separated by commas (table1, 4, 5 and 6)."),
    ] = None,
    pooling: Pooling = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Only these methods, separated by commas; methods that are not in the table get their own rows."
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds per method; by default as many as the results have, else 5.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop this command after 90m (minutes), 1.5h (hours) or fold_epochs=40.")
    ] = None,
    best_file: Annotated[
        Path | None,
        typer.Option(
            "--best",
            help="A best file whose training options apply to all methods; for table3 the folder of best files, best by "
            "default.",
        ),
    ] = None,
    set_: Set = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of results, tables and figures.")] = Path("reproduced"),
    name: Annotated[str | None, typer.Option(help="Name of the sweep; reproduce-TASK-BACKBONE by default.")] = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Train nothing; render the results file.")] = False,
    storage: Storage = None,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    device: TrialDevice = "auto",
    json_: Json = False,
) -> None:
    """Reproduce one of the paper's tables or figures: train missing runs, reuse finished ones, render the result."""
    if target == TABLE_3:
        given = {"--backbone": backbone, "--tasks": tasks, "--pooling": pooling, "--methods": methods, "--seeds": seeds,
                 "--budget": budget, "--set": set_, "--data-dir": data_dir, "--name": name}  # fmt: skip
        _print_selected_options(task, best_file or Path("best"), out, given, json_)
        return
    if backbone is None:
        raise ConfigError(f"reproduce {target}: --backbone is missing; {BACKBONE[0].lower()}{BACKBONE[1:]}")
    if task and tasks:
        raise ConfigError("--task and --tasks: give one of the two")
    from tune.reproduce.plan import ReproductionRequest, make_plan, tasks_of
    from tune.running.first_checks import check_first

    several = tasks_of(target, tasks) if tasks else ()
    selected = () if methods is None else tuple(method.strip() for method in methods.split(","))
    request = ReproductionRequest(
        target, task, backbone, pooling or "pooler", selected, seeds, budget,
        tuple(set_ or ()), best_file, data_dir, out, name, storage, tracking_uri, address, device, several,
    )  # fmt: skip
    if not several and not no_run:
        check_first(make_plan(request).any_spec(), address=address)
    with live.display(LOADING):
        console.quiet_transformers()
        from tune.reproduce.all_tasks import reproduce_tasks
        from tune.reproduce.command import reproduce as reproduce_

        made = reproduce_tasks(request, train=not no_run) if several else reproduce_(request, train=not no_run)
    _print_reproduced(made, json_)
    _exit_by(made.signal)
    if made.failed:
        raise typer.Exit(1)


def _print_selected_options(task: str | None, best: Path, out: Path, given: dict[str, Any], json_: bool) -> None:
    """Print the options that the paper selected beside those of best files; refuse options that train."""
    if needless := [option for option, value in given.items() if value]:
        raise ConfigError(
            f"reproduce {TABLE_3}: it reads best files and trains nothing; leave out {', '.join(needless)}"
        )
    from leebert.data.tasks import canonical_name
    from tune.reproduce.settings import reproduce_settings

    _print_reproduced(reproduce_settings(best, (canonical_name(task),) if task else (), out), json_)


def _print_reproduced(made: Any, json_: bool) -> None:
    """Print a table or a figure's description, the written files, what is missing, and the command that continues."""
    if json_:
        console.emit_json(made.as_dict())
        return
    print(made.text)
    for path in made.files:
        print(path)
    if made.missing:
        print("incomplete: " + "; ".join(made.missing))
    if made.again:
        console.next_step(made.again)


@app.command(cls=Command)
def serve(
    model: Annotated[
        str, typer.Argument(help="Folder that `leebert export` wrote, or models:/NAME@ALIAS of a model that holds one.")
    ],
    p99_ms: Annotated[
        float | None,
        typer.Option(
            "--p99-ms",
            help="Target of the 99th percentile of latencies in ms: the server exits earlier as the load grows. Without it, the "
            "threshold is fixed.",
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(help="Largest drop in score against the full model, in points: with --p99-ms 1 by default."),
    ] = None,
    criterion: Criterion = None,
    threshold: Annotated[float | None, typer.Option(help="Fixed threshold, instead of --p99-ms.")] = None,
    patience: Patience = None,
    speed_up: SpeedUp = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Number of replicas, each with a copy of the model.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Largest number of replicas: Ray Serve starts more while they are busy.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime per replica.")] = 1,
    max_body_kb: Annotated[int, typer.Option(min=1, help="Largest body of a request, in KiB.")] = 1024,
    max_texts: Annotated[int, typer.Option(min=1, help="Most rows per request.")] = 1000,
    max_wait_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Longest expected wait; beyond it requests are refused with status 429. By default 5 times the target, else 1000.",
        ),
    ] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serve an exported model over HTTP with Ray Serve: dynamic batching, and exits that adapt to the load."""
    from tune.serve.command import ServeRequest
    from tune.serve.command import serve as serve_

    request = ServeRequest(
        model, p99_ms, max_loss, criterion, threshold, patience, speed_up, host, port, replicas, max_replicas, threads,
        max_body_kb, max_texts, max_wait_ms, address, tracking_uri,
    )  # fmt: skip
    _exit_by(serve_(request))


@app.command(cls=Command)
def load(
    address: Annotated[str, typer.Argument(help="A server of `leebert-tune serve`, such as http://127.0.0.1:8000.")],
    data: Annotated[Path, typer.Argument(help="File with the columns of texts and, if known, of labels.")],
    rate: Annotated[float, typer.Option(help="Requests per second, at random times.")] = 10.0,
    surge: Annotated[float, typer.Option(min=1, help="Times that rate during a surge in the middle.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=1, help="Duration; half of it is the surge.")] = 60.0,
    label: Annotated[str | None, typer.Option(help="Column of labels; by default label or Quality.")] = None,
    p99_ms: Annotated[float | None, typer.Option("--p99-ms", help="Target, for the summary.")] = None,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="Measure requests per second at saturation instead.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of arrivals and texts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write every request to this Parquet file.")] = None,
    json_: Json = False,
) -> None:
    """Send requests to a server at random times, with a surge, and summarise latencies, exits and scores."""
    from tune.serve.command import print_load
    from tune.serve.load import Surge, about_server, measure_capacity, read_samples, run_load, save, summary

    samples = read_samples(data, about_server(address.rstrip("/")), label)
    if capacity:
        console.emit_json({"requests_per_second": round(measure_capacity(address, samples), 1)})
        return
    shape = Surge(rate, surge, seconds / 4, seconds / 2, seconds / 4, ramp=min(2.0, seconds / 10))
    rows = run_load(address, samples, shape, seed)
    if out is not None:
        save(rows, out)
    phases = summary(rows, shape, p99_ms)
    if json_:
        console.emit_json(phases)
        return
    print_load(phases)


def main() -> None:
    """Run the console script."""
    with console.quick_end():
        try:
            console.run(app, timestamps=True, extra="sweep")
        finally:
            _stop_ray()


def _stop_ray() -> None:
    """Stop Ray where a terminal shows it: at the end of the process, Ray would stop silently, which takes seconds."""
    ray = sys.modules.get("ray")
    if ray is not None and getattr(ray, "is_initialized", bool)():
        with live.display("stopping Ray"):
            ray.shutdown()
