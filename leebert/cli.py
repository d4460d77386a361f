"""The command line `leebert`: init, train, evaluate, predict, calibrate, and tables of methods, criteria and metrics.

Commands import torch and transformers inside their functions, so that `--help` is fast.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from leebert import console, live
from leebert.cli_options import (
    Backbone,
    BatchSize,
    Command,
    Criterion,
    DataDir,
    Device,
    ExportCommand,
    Exported,
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
    warn_of_former,
)
from leebert.errors import ConfigError, DataError
from leebert.files import check_file_writable, check_writable, write_atomically

app = typer.Typer(
    help="LeeBERT: early-exit encoders with learned loss weights.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=console.print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


@app.command(cls=Command)
def init(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Your labelled data: .csv, .tsv, .jsonl, .json or .parquet; or OWNER/NAME on the hub."
        ),
    ],
    text: Texts = None,
    label: Annotated[str | None, typer.Option(help="Name of the label column; by default guessed.")] = None,
    hub_config: Annotated[
        str | None, typer.Option("--hub-config", help="Configuration of a hub data set that has several.")
    ] = None,
    backbone: Backbone = None,
    out: Annotated[Path | None, typer.Option(help="File to write; NAME.yaml by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    json_: Json = False,
) -> None:
    """Write a task and a small search space for your own data, with comments, and print the next commands."""
    from leebert.starter import print_started, start

    started = start(
        source, texts=text or (), label=label, hub_config=hub_config, backbone=backbone, out=out, force=force
    )
    if json_:
        console.emit_json(started.as_dict())
    else:
        print_started(started)


@app.command(cls=Command)
def train(
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration of one run, such as best/mrpc.yaml; options override it.")
    ] = None,
    task: Task = None,
    data_dir: DataDir = None,
    backbone: Backbone = None,
    pooling: Pooling = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the model; runs/<task> by default.")] = None,
    set_: Set = None,
    hold_out: Annotated[
        bool, typer.Option(help="Keep a validation fold of the training split for early stopping.")
    ] = True,
    criterion: Criterion = None,
    max_loss: MaxLoss = None,
    speed_up: SpeedUp = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Train one early-exit model and save it."""
    from leebert.config import parse
    from leebert.outside import refuse_missing
    from leebert.recipe import RunConfig, check_options, is_unfinished, train_model
    from leebert.training_data import check_files, effective_task

    values = _file_of_a_run(config) if config else {}
    options = {
        "--data-dir": ("data.dir", data_dir), "--backbone": ("model.backbone", backbone),
        "--pooling": ("model.pooling", pooling), "--criterion": ("aim.criterion", criterion),
        "--max-loss": ("aim.max_loss", max_loss), "--speed-up": ("aim.speed_up", speed_up),
    }  # fmt: skip
    source = str(config or "options")
    sources: dict[str, str] = {}
    errors = _override(values, task, options, set_ or (), sources)
    if isinstance(search := values.get("found"), dict):  # first, since other keys may name options of a missing plugin
        refuse_missing(search.get("parts"), source)
    checked = parse(RunConfig, values, source, sources, errors)
    name = checked.task if isinstance(checked.task, str) else str(checked.task.get("name", "task"))
    out = out or Path("runs") / name
    if (out / "config.json").exists() and not is_unfinished(out):
        raise ConfigError(f"--out {out}: the folder already holds a model; choose another folder, or remove it")
    check_options(checked)
    check_writable(out, "--out")
    check_files(effective_task(checked.task, checked.data.group_by), checked.data, checked.model)

    with live.display("loading libraries"):
        console.quiet_transformers()
        summary = _with_progress(lambda **hooks: train_model(checked, out, device=device, hold_out=hold_out, **hooks))
    if json_:
        console.emit_json({**summary, "out": str(out)})
    else:
        _print_trained(checked, summary, out)


def _file_of_a_run(config: Path) -> dict[str, Any]:
    """Read the keys of a configuration file. Raises ConfigError unless it configures one run."""
    from leebert.exits.stored import FORMER, with_criterion
    from leebert.yaml import load_yaml

    values = load_yaml(config)
    if not isinstance(values, dict):
        raise ConfigError(f"{config}: expected a mapping of keys to values; see best/mrpc.yaml for an example")
    if "task" in values and "space" in values:
        raise ConfigError(
            f"{config}: this is a search space; run `leebert-tune sweep {config}`, or give the configuration of one run"
        )
    exits = values.get("exits")
    if isinstance(exits, dict) and FORMER in exits and "criterion" not in exits:  # both are an error of the section
        warn_of_former(f"{config}: exits.{FORMER}", "exits.criterion")
        values["exits"] = with_criterion(exits)
    return values


def _override(
    values: dict[str, Any],
    task: str | None,
    options: dict[str, tuple[str, Any]],
    assignments: Sequence[str],
    sources: dict[str, str],
) -> list[str]:
    """Write options, then `--set` assignments, into the keys of a configuration.

    Args:
        values: The configuration; it is changed.
        task: The value of `--task`.
        options: Option → its dotted key and its value; None if it was not given.
        assignments: The values of `--set`.
        sources: Receives the option that set each key.

    Returns:
        A line for each error.

    Raises:
        ConfigError: No task or no backbone is given.
    """
    from leebert.data.tasks import OwnTask, named_or_declared
    from leebert.exits.stored import FORMER
    from leebert.findings import keys_below, lines
    from leebert.overrides import SET, key_of, override, put
    from leebert.recipe import RunConfig

    errors = []
    if task is not None:
        values["task"] = named_or_declared(task) if task else task
    for option, (key, value) in options.items():
        if value is not None:
            try:
                put(values, key, value)
            except TypeError as error:
                errors.append(f"{option}: {error}")
            sources[key] = option
    keys = {**keys_below(RunConfig), **keys_below(OwnTask, "task")}
    aliases = {f"exits.{FORMER}": "exits.criterion"}
    if any(assignment.partition("=")[0].strip() in aliases for assignment in assignments):
        warn_of_former(f"{SET} exits.{FORMER}", f"{SET} exits.criterion")
    errors += lines(override(values, assignments, keys, aliases=aliases), SET)
    sources |= {key_of(assignment.partition("=")[0], aliases): SET for assignment in assignments}
    if "task" not in values or "backbone" not in (values.get("model") or {}):
        raise ConfigError("train needs a task and a backbone: give --task and --backbone, or a --config with both")
    return errors


def _print_trained(checked: Any, summary: dict[str, Any], out: Path) -> None:
    """Print the results of a training run and the next command."""
    from leebert.data.tasks import any_task
    from leebert.majority import AgainstMajority, in_words
    from leebert.recipe import chooses_exits
    from leebert.report import print_chosen, print_stages

    print_stages(summary["stages"], summary["stages_length"])
    print_chosen(summary["chosen"], summary["held_out_rows"], summary["majority"])
    if not summary["chosen"] and chooses_exits(checked):
        console.sentence(
            f"exit criterion {checked.exits.criterion} (default: there is no validation fold to choose one on); to choose a "
            f"threshold: leebert calibrate {shlex.quote(str(out))} TEXTS --speed-up 2"
        )
    score = "" if summary["score"] is None else f", validation score {100 * summary['score']:.2f} (mean over exits)"
    updates = summary["epochs"][-1]["theta_updates"]  # of all stages
    console.sentence(f"{out}: {updates} updates on {summary['rows']} samples{score}")
    if summary["truncated_rows"]:
        console.sentence(f"{summary['truncated_rows']} samples were truncated to {checked.model.max_length} tokens")
    task = any_task(checked.task)
    if summary["majority"]:
        console.sentence(in_words(AgainstMajority.of(summary["majority"]), task.label_names))
    if task.eval_splits:
        where = f" --data-dir {shlex.quote(checked.data.dir)}" if checked.data.dir else ""
        console.next_step(f"leebert evaluate {shlex.quote(str(out))}{where}")
    else:
        console.next_step(f"leebert predict {shlex.quote(str(out))} FILE")


def _with_progress(work: Any) -> Any:
    """Run a training with a live display; a line on stderr for each epoch."""
    from leebert.majority import single_class

    warned: set[int] = set()

    def report(epoch: Any) -> None:
        loss = "" if epoch.train_loss is None else f"  loss {epoch.train_loss:.4f}"
        score = "" if epoch.score is None else f"  score {100 * epoch.score:.2f}"
        exits = " ".join(f"{100 * s:.1f}" for s in epoch.exits.get("score", []))
        print(f"epoch {epoch.epoch + 1}  {epoch.stage}{loss}{score}  {exits}", file=sys.stderr, flush=True)
        fresh = set(epoch.collapsed) - warned
        if fresh:
            warned.update(fresh)
            print(single_class(fresh, len(epoch.exits["score"])), file=sys.stderr, flush=True)

    on_plan, on_step = live.updates("training")
    return work(report=report, on_plan=on_plan, on_step=on_step)


@app.command(cls=Command)
def evaluate(
    model: Annotated[Path, typer.Argument(help="A folder written by `leebert train` or `leebert export`.")],
    data_dir: DataDir = None,
    task: Task = None,
    split: Annotated[str | None, typer.Option(help="Split to evaluate; by default the development split(s).")] = None,
    thresholds: Annotated[int | None, typer.Option(hidden=True)] = None,  # tables are in steps of layers now
    out: Annotated[Path | None, typer.Option(help="Also write the JSON result to this file.")] = None,
    batch_size: BatchSize = 64,
    timed_rows: Annotated[
        int, typer.Option(min=0, help="Samples for wall-clock timing at batch size 1; 0: no timing.")
    ] = 50,
    exported: Exported = False,
    device: Device = "auto",
    precision: Precision = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Print every exit criterion; by default at most 8 points of the one in use.")
    ] = False,
    json_: Json = False,
) -> None:
    """Score every exit, and every exit criterion at a range of thresholds, in one pass over the data."""
    if thresholds is not None:
        print("warning: --thresholds has no effect: the table is in steps of layers; leave it out", file=sys.stderr)
    if out:
        check_file_writable(out, "--out")
    from leebert.exported.manifest import is_exported
    from leebert.kinds import kind_of

    written = is_exported(model)
    if task is not None and not written:
        raise ConfigError("--task: is for exported models; a saved model knows its task, so leave it out")
    of = _task_of_exported(model, task) if written else _task_of(model)
    splits = [split] if split else list(of.eval_splits)
    if not splits:
        raise DataError(f"task {of.name}: no development split is declared; name a split with --split")
    for name in splits:
        kind_of(of).check_files(of, None, data_dir, name)
    with live.display("loading the model"):
        if written:
            one = _exported_evaluation(model, of, batch_size, timed_rows)
        else:
            one = _saved_evaluation(model, of, batch_size, timed_rows, precision, device, exported=exported)
        from leebert.report import print_evaluation

        results = {}
        for name in splits:
            live.phase(f"{name}: reading the samples")
            results[name] = one(kind_of(of).read(of, name, data_dir), partial(live.track, what=name))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, json.dumps(results, indent=1))
    if json_:
        console.emit_json(results)
    else:
        for name, result in results.items():
            print_evaluation(name, result, of.label_names, every=all_)
        if not all_:
            print("other exit criteria, and all thresholds: leebert evaluate --all")
        console.next_step(f"leebert predict {shlex.quote(str(model))} FILE")


def _saved_evaluation(
    folder: Path, task: Any, batch_size: int, timed_rows: int, precision: str | None, device: str, *, exported: bool
) -> Callable[..., dict[str, Any]]:
    """Load a saved model; return its evaluation of samples, for which a second argument wraps the iteration."""
    time_exits = _time_exits(exported, device)
    loaded, tokenizer = _load(folder)
    runtime = _runtime(loaded, precision, device)
    loaded.to(runtime.device)
    from leebert.report import evaluate_split

    return lambda examples, progress: evaluate_split(
        loaded, tokenizer, examples, task.metric, runtime, batch_size=batch_size, timed_rows=timed_rows,
        time_exits=time_exits, progress=progress,
    )  # fmt: skip


def _time_exits(exported: bool, device: str) -> Callable[..., Any]:
    """The measurement of milliseconds that `--exported` selects."""
    if not exported:
        from leebert.latency import exit_milliseconds

        return exit_milliseconds
    if device not in ("auto", "cpu"):
        raise ConfigError(f"--exported --device {device}: the exported form runs on the CPU; leave out one of the two")
    console.require_packages("export", *console.EXPORT_PACKAGES)
    from leebert.export.network_times import network_times

    return network_times


def _exported_evaluation(folder: Path, task: Any, batch_size: int, timed_rows: int) -> Callable[..., dict[str, Any]]:
    """Load an exported model on one thread; return its evaluation as :func:`_saved_evaluation` does."""
    console.require_packages("export", "torch", "onnx", "onnxruntime")
    from leebert.export.evaluation import evaluate_exported
    from leebert.exported.model import ExportedModel

    model = ExportedModel.load(folder)
    if model.manifest.labels != tuple(task.label_names):
        raise ConfigError(
            f"{folder}: its labels are {', '.join(model.manifest.labels)}, those of task {task.name} "
            f"{', '.join(task.label_names)}; give the model's task as --task"
        )
    return lambda examples, progress: evaluate_exported(
        model, examples, task.metric, batch_size=batch_size, timed_rows=timed_rows, progress=progress
    )


def _task_of_exported(folder: Path, task: str | None) -> Any:
    """The task of an exported model of texts, which has only the name of a declared one."""
    from leebert.data.tasks import any_task, named_or_declared
    from leebert.exported.manifest import read_manifest

    manifest = read_manifest(folder)
    if manifest.kind != "texts":
        raise ConfigError(f"{folder}: an exported model of images; evaluate the model that it was exported from")
    try:
        return any_task(named_or_declared(task) if task else manifest.task)
    except ConfigError:
        if task:
            raise
        raise ConfigError(
            f"{folder}: its task {manifest.task} is declared in a file; give the file as --task"
        ) from None


@app.command(cls=Command)
def predict(
    model: Annotated[Path, typer.Argument(help="A folder written by `leebert train` or `leebert export`.")],
    input_: Annotated[
        str,
        typer.Argument(
            metavar="[FILE]",
            help="CSV, TSV, JSONL, JSON, Parquet or text file; for images a folder, Parquet or a list of paths; - is "
            "stdin.",
        ),
    ] = "-",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output file, .jsonl, .csv or .parquet; stdout by default.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="jsonl, csv or parquet; by default the ending of --out, else jsonl."),
    ] = None,
    text: Texts = None,
    glue: Annotated[
        Path | None,
        typer.Option(help="Write GLUE test-set predictions for submission into this folder, instead of reading FILE."),
    ] = None,
    data_dir: DataDir = None,
    any_rows: Annotated[bool, typer.Option("--any-rows", help="With --glue: skip the row-count check.")] = False,
    fill: Annotated[
        bool, typer.Option("--fill", help="With --glue: fill missing files with a constant prediction.")
    ] = False,
    criterion: Criterion = None,
    threshold: Annotated[float | None, typer.Option(help="The criterion's threshold.")] = None,
    patience: Patience = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    precision: Precision = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads of each process; by default all cores, shared by --processes."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that predict, each with a copy of the model.")] = 1,
) -> None:
    """Predict label, probability and exit layer for each input."""
    if glue and (input_ != "-" or out or form or text):
        raise ConfigError("--glue reads the test split and names its files: leave out FILE, --out, --format and --text")
    if not glue and (data_dir or any_rows or fill):
        raise ConfigError("--data-dir, --any-rows and --fill need --glue FOLDER: add it, or leave them out")
    if glue and processes > 1:
        raise ConfigError(f"--processes {processes}: --glue predicts in one process; leave out --processes")
    from leebert.prediction_files import format_of
    from leebert.predictor import threads_each
    from leebert.predictor_options import PredictorOptions

    form = format_of(out, form)
    if glue:
        check_writable(glue, "--glue")
    elif out:
        check_file_writable(out, "--out")
    if not glue:
        _check_input(input_)
    options = PredictorOptions(
        model, criterion, threshold, patience, batch_size, device, precision, threads_each(threads, processes)
    )
    if glue:
        _submit(options, glue, data_dir, any_rows=any_rows, fill=fill)
    else:
        _predict(options, input_, out, form, text or (), processes)


def _predictor(options: Any) -> Any:
    """Load the model of `predict`."""
    from leebert.predictor import load_predictor

    with live.display("loading the model"):
        return load_predictor(options)


def _submit(options: Any, folder: Path, data_dir: str | None, *, any_rows: bool, fill: bool) -> None:
    """Write the files of a GLUE submission."""
    predictor = _predictor(options)
    from leebert import submission
    from leebert.predict import majority_warning

    written = submission.submit(
        predictor.model, predictor.tokenizer, folder, predictor.criterion, predictor.runtime, source=data_dir,
        any_rows=any_rows, batch_size=options.batch_size, progress=partial(live.track, what="samples"),
    )  # fmt: skip
    _warn(majority_warning(options.folder))
    filled = submission.fill(folder) if fill else []
    submission.print_submission(folder, written, predictor.model.depth, filled)


def _predict(options: Any, input_: str, out: Path | None, form: str, columns: Sequence[str], processes: int) -> None:
    """Predict a file or stdin window by window, into a file or stdout."""
    predictor = _predictor(options)
    from leebert.predict import majority_warning
    from leebert.prediction_files import save_predictions, write_predictions
    from leebert.predictor import predict_in_processes, predict_windows
    from leebert.windows import Windows, arriving_lines

    streams = input_ == "-"
    source = arriving_lines(_source(input_)) if streams else Path(input_)
    keys = predictor.columns
    windows = Windows(predictor.inputs(source, columns), predictor.weight, rows=predictor.rows, streams=streams)
    flush = sys.stdout.flush if out is None else lambda: None
    if processes > 1:
        del predictor  # each process loads its own
        rows = predict_in_processes(options, windows, processes, flush)
    else:
        rows = predict_windows(predictor, windows, flush)
    warning = majority_warning(options.folder)
    if out is None:
        if not write_predictions(_warned(rows, warning), sys.stdout, form, keys):
            print("0 predictions: no rows (the first line of a .csv or .tsv file is its header)", file=sys.stderr)
        if sys.stdout.isatty():
            _after_predictions(options.folder)
        return
    if count := save_predictions(rows, out, form, keys):
        _warn(warning)
    print(f"{out}: {count} predictions", file=sys.stderr)
    _after_predictions(options.folder)


def _after_predictions(model: Path) -> None:
    from leebert.exported.manifest import is_exported

    if is_exported(model):
        return
    console.next_step(f"leebert calibrate {shlex.quote(str(model))} TEXTS --speed-up 2")


def _warn(warning: str | None) -> None:
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def _warned(rows: Iterable[dict[str, Any]], warning: str | None) -> Iterator[dict[str, Any]]:
    """Print the warning before the first prediction: input that ends without one is refused by its error alone."""
    for number, row in enumerate(rows):
        if not number:
            _warn(warning)
        yield row


@app.command(cls=Command)
def methods(json_: Json = False) -> None:
    """List the methods: source, what is trained, exit criterion, cost of a training step, and options."""
    from leebert.methods import METHODS

    if json_:
        console.emit_json([m.as_dict() for m in METHODS.values()])
        return
    from rich.console import Console

    out = Console()
    # One column of prose, so that no cell is truncated at 80 columns.
    table = console.table(
        ("algorithm", "exit criterion", "method, what is trained, cost"),
        [(m.name, m.exits, f"{m.title} ({m.source})\n{m.trains}\n[dim]cost {m.cost}[/dim]") for m in METHODS.values()],
        left=3, whole=2, lines=True,
    )  # fmt: skip
    out.print(table)
    out.print(
        "cost: of a training step, by stage, relative to plain fine-tuning of the whole network. --json adds the differences "
        "from the publication and the options of each method."
    )
    console.next_step("leebert train --task TASK --set training.algorithm=NAME --out FOLDER")


@app.command(cls=Command)
def criteria(json_: Json = False) -> None:
    """List the exit criteria: when a sample exits, the range of the threshold, and the source."""
    from leebert.exits import CRITERIA

    rows = [row.as_dict() for row in CRITERIA.values()]
    _print_rows(rows, json_, "criterion", lambda row: f"threshold {row['thresholds']}\n{row['source']}")
    if not json_:
        console.next_step("leebert predict MODEL FILE --criterion NAME --threshold NUMBER")


@app.command(cls=Command)
def metrics(json_: Json = False) -> None:
    """List the metrics: definition of the score, and the tasks that use it."""
    from leebert.metrics import METRICS

    _print_rows([row.as_dict() for row in METRICS.values()], json_, "metric", lambda row: row["source"])
    if not json_:
        console.next_step("leebert init FILE")


def _print_rows(rows: list[dict[str, str]], json_: bool, title: str, more: Callable[[dict[str, str]], str]) -> None:
    """Print rows with a name and a title as a table that fits 80 columns, or as JSON."""
    from rich.console import Console

    if json_:
        console.emit_json(rows)
        return
    cells = [(row["name"], f"{row['title']}\n{more(row)}") for row in rows]
    Console().print(console.table((title, "definition"), cells, left=2, whole=1, framed=False))


@app.command(cls=Command)
def calibrate(
    model: Annotated[
        Path, typer.Argument(help="Folder of the saved or exported model; the command updates its thresholds.")
    ],
    texts: Annotated[
        str, typer.Argument(help="Unlabelled production texts, in a format that `predict` reads; - is stdin.")
    ],
    speed_up: SpeedUp = None,
    max_loss: MaxLoss = None,
    latency: Latency = None,
    exported: Exported = False,
    criterion: Criterion = None,
    text: Texts = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Calibrate the thresholds of a model on unlabelled texts, to hit a layer speed-up, drop in score or time per text."""
    if [speed_up, max_loss, latency].count(None) != 2:
        raise ConfigError("calibrate needs one target: give --speed-up RATIO, --max-loss POINTS or --latency 5ms")
    from leebert.milliseconds import parse_milliseconds

    milliseconds = None if latency is None else parse_milliseconds(latency, "--latency")
    if exported and latency is None:
        raise ConfigError("--exported: says how --latency is measured; add --latency, or leave it out")
    _check_input(texts)
    check_writable(model, "model")
    from leebert.exported.manifest import is_exported

    if runs_exported := is_exported(model):
        if exported or device not in ("auto", "cpu"):
            raise ConfigError(f"{model} is exported, and runs on the CPU: leave out --exported and --device")
    else:
        _check_saved(model)
    from leebert.operating_point import Aim

    source = "stdin" if texts == "-" else Path(texts).name
    aim = Aim.of(max_loss, speed_up, milliseconds)
    if runs_exported:
        calibration, before = _calibrate_exported(model, _source(texts), text or (), source, aim, criterion, batch_size)
    else:
        time_exits = _time_exits(exported, device)
        calibration, before = _calibrate_saved(
            model, _source(texts), text or (), source, aim, criterion, batch_size, device, time_exits
        )
    from leebert.calibration import print_calibration

    if json_:
        console.emit_json(calibration.as_dict())
    else:
        print_calibration(model, calibration, before)
        console.next_step(f"leebert predict {shlex.quote(str(model))} FILE")


def _calibrate_saved(
    folder: Path, texts: Any, columns: Sequence[str], source: str, aim: Any, criterion: str | None, batch_size: int,
    device: str, time_exits: Callable[..., Any],
) -> tuple[Any, str]:  # fmt: skip
    """Calibrate a saved model; returns also the samples of the former thresholds, in words."""
    loaded, tokenizer = _load(folder)
    runtime = _runtime(loaded, None, device)
    loaded.to(runtime.device)
    from leebert.calibration import calibrate, save_calibration, saved_subject
    from leebert.operating_point import saved_tradeoffs
    from leebert.predict import texts_for
    from leebert.thresholds import read_curves

    subject = saved_subject(
        loaded, tokenizer, source, runtime, batch_size=batch_size, time_exits=time_exits,
        progress=partial(live.track, what="samples"),
    )  # fmt: skip
    validated = saved_tradeoffs(read_curves(folder, validated=True), loaded.exit_layers, loaded.depth)
    values = [row.values for row in texts_for(loaded.config.task, texts, columns)]
    calibration = calibrate(
        subject, values, source, aim, criterion or loaded.config.exit_strategy, validated=validated
    )  # fmt: skip
    return calibration, save_calibration(folder, calibration)


def _calibrate_exported(
    folder: Path, texts: Any, columns: Sequence[str], source: str, aim: Any, criterion: str | None, batch_size: int
) -> tuple[Any, str]:
    """Calibrate an exported model as :func:`_calibrate_saved` does a saved one."""
    console.require_packages("export", "torch", "onnx", "onnxruntime")
    from leebert.calibration import calibrate
    from leebert.data.texts import texts_of
    from leebert.export.calibration import exported_subject, load, save_exported_calibration, validated_tradeoffs

    model = load(folder)
    manifest = model.manifest
    if manifest.kind != "texts":
        raise ConfigError(f"{folder}: an exported model of images; calibrate the model that it was exported from")
    values = [row.values for row in texts_of(manifest.text_columns, texts, columns)]
    calibration = calibrate(
        exported_subject(model, batch_size, partial(live.track, what="samples")), values, source, aim,
        criterion or manifest.exits.criterion, validated=validated_tradeoffs(manifest), always_timed=True,
    )  # fmt: skip
    save_exported_calibration(folder, manifest, calibration)
    return calibration, ""


@app.command(cls=ExportCommand)
def export(
    model: Annotated[Path, typer.Argument(help="A folder written by `leebert train`.")],
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier export in it is replaced.")],
    to: Annotated[str, typer.Option(metavar="TARGET", help="The runtime: onnx.")] = "onnx",
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="[dynamic|static]",
            help="Quantise the layers to 8 bits, per channel; the ranges of activations are measured on samples (static, "
            "the default) or, for texts, computed for each batch (dynamic).",
        ),
    ] = None,
    exits: Annotated[
        str, typer.Option(metavar="auto|all", help="auto: leave out exits that cost more time than they save.")
    ] = "auto",
    calibration: Annotated[
        Path | None, typer.Option(help="File of texts for --int8 static; by default training samples.")
    ] = None,
    data_dir: DataDir = None,
    criterion: Criterion = None,
    max_loss: MaxLoss = None,
    speed_up: SpeedUp = None,
    latency: Latency = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of ONNX Runtime in measurements.")] = 1,
    json_: Json = False,
) -> None:
    """Export a model as ONNX graphs between its exits, with thresholds and times measured on the exported model."""
    for option, value, valid in (("--to", to, ("onnx",)), ("--int8", int8, (None, "dynamic", "static")),
                                 ("--exits", exits, ("auto", "all"))):  # fmt: skip
        if value not in valid:
            raise ConfigError(f"{option} {value}: should be {' or '.join(v for v in valid if v)}")
    _check_saved(model)
    from leebert.milliseconds import parse_milliseconds

    milliseconds = None if latency is None else parse_milliseconds(latency, "--latency")
    if calibration is not None:
        _check_input(str(calibration))
    console.require_packages("export", *console.EXPORT_PACKAGES)
    with live.display("loading libraries"):
        console.quiet_transformers()
        from leebert.export.command import Options, export_model
        from leebert.operating_point import Aim

        aim = None if [max_loss, speed_up, latency].count(None) == 3 else Aim.of(max_loss, speed_up, milliseconds)
        options = Options(int8, exits == "all", threads, calibration, data_dir, criterion, aim)
        exported = export_model(model, out, options, partial(live.track, what="samples"))
    from leebert.export.summary import print_exported

    if json_:
        console.emit_json(exported.as_dict())
    else:
        print_exported(out, exported)


def _source(input_: str) -> Any:
    """The input file, or the lines of stdin for `-`: as bytes where possible, which the reader decodes."""
    return getattr(sys.stdin, "buffer", sys.stdin) if input_ == "-" else Path(input_)


def _task_of(folder: Path) -> Any:
    """Read the task of a saved model, without loading it."""
    from leebert.data.tasks import any_task
    from leebert.files import parse_json

    _check_saved(folder)
    file = folder / "config.json"
    try:
        task = parse_json(file.read_text(encoding="utf-8")).get("task")
    except (ValueError, AttributeError, OSError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from None
    if task is None:
        raise ConfigError(f"{file}: task is missing; evaluate a model that `leebert train` has written")
    return any_task(task)


def _check_saved(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: no config.json; give the folder of a model that `leebert train` has written")


def _check_input(input_: str) -> None:
    """Raise DataError for a missing input file, before the model is loaded."""
    if input_ != "-" and not Path(input_).exists():
        raise DataError(f"{input_}: no such file or folder; give a file with the inputs, or - for stdin")


def _load(folder: Path) -> tuple[Any, Any]:
    """Load a saved early-exit model in evaluation mode, and its tokenizer (None for images)."""
    _check_saved(folder)
    from leebert.kinds import kind_of_saved

    with live.display("loading the model"):
        console.quiet_transformers()
        return kind_of_saved(folder).load(folder)


def _runtime(model: Any, precision: str | None, device: str) -> Any:
    """Device and precision of a saved model: the precision of its training, unless another is given."""
    from leebert.runtime import Runtime

    chosen: Any = precision or model.config.precision
    return Runtime.of(chosen, device)


def main() -> None:
    """Run the console script `leebert`."""
    with console.quick_end():
        console.run(app)
