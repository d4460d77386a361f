"""Refit a best file's configuration: train one model per seed on the whole training split, evaluate and describe each.

No choice depends on the development split: thresholds are chosen on the validation logits of cross-validation, training
takes the recorded number of updates, and the seed to register is fixed before any labelled sample of another split is
read. A refit is prepared (all checks, nothing written), then claims its folder, then runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert import live
from leebert.card import CardFacts, write_card
from leebert.config import Subset
from leebert.console import next_step, sentence
from leebert.errors import ConfigError, DataError, DivergedError, SweepError
from leebert.evaluate import RecordedLogits
from leebert.exits import named
from leebert.exits.stored import with_criterion
from leebert.files import parse_json, write_atomically
from leebert.majority import AgainstMajority, in_words
from leebert.methods import METHODS
from leebert.milliseconds import ExitMilliseconds
from leebert.operating_point import Aim, choose_exits, choose_in_time, choose_point, points
from leebert.outside import origins
from leebert.provenance import backbone_differences, backbone_identity, code_version, differences, versions
from leebert.recipe import RunConfig, train_model
from leebert.report import claims_speed_up, print_evaluation, score_loss, speed_up_counts
from leebert.runtime import Runtime
from leebert.serving import text_columns
from leebert.thresholds import FILE, MISSED, Chosen, check_speed_up, curves, curves_as_json
from leebert.tradeoff import tradeoffs
from leebert.training_data import effective_task
from tune.analysis.learned import ADVICE, ConfigurationMargin, of_cells, of_logits
from tune.analysis.stats import fold_ratio
from tune.models.best_file import BestFile, CellLogits, pooled
from tune.models.exporting import evaluate_export, export_model, form_of, time_network
from tune.models.serving import EXPORTED
from tune.models.shipping import backbone_name
from tune.tracking.server import is_server

log = logging.getLogger(__name__)


#: Files of a refit's folder: the request, written first, and the results, written last.
PLAN, DONE = ".refit.json", "refit.json"


@dataclasses.dataclass(frozen=True)
class RefitPlan:
    """The requested seeds, exit criterion and aims of a refit.

    Attributes:
        seeds: One model per seed; the first is registered.
        criterion: The models' exit criterion; None for the one that the method was published with, else the best for the aim.
        speed_up: The aim of the thresholds, a layer speed-up (:meth:`leebert.operating_point.Aim.of`).
        patience: The criterion's patience, for criteria with a second parameter.
        device: auto, cpu, cuda or cuda:N.
        timed_rows: How many samples the wall-clock speed-up is measured on.
        max_loss: The aim of the thresholds, a largest drop in score, in points.
        latency: The aim of the thresholds, a largest mean time per sample in the registered form, in milliseconds.
        export: The registered form, one of :data:`tune.models.exporting.FORMS`; None: int8 if that is possible.
    """

    seeds: tuple[int, ...]
    criterion: str | None = None
    speed_up: float | None = None
    patience: int | None = None
    device: str = "auto"
    timed_rows: int = 50
    max_loss: float | None = None
    latency: float | None = None
    export: str | None = None

    @property
    def aim(self) -> Aim:
        """The aim of the thresholds."""
        return Aim.of(self.max_loss, self.speed_up, self.latency)

    @property
    def picked(self) -> str:
        """A phrase on how the registered seed was chosen."""
        return (
            f"Seed {self.seeds[0]} is registered because it is the first, fixed before training: a choice by the "
            "development split would make that split's scores optimistic."
        )


def seeds_of(best: BestFile, count: int, first: int | None = None) -> tuple[int, ...]:
    """Choose the seeds of a refit.

    Args:
        best: The best file.
        count: Number of seeds.
        first: The first of consecutive seeds; None: the sweep's seeds, then the numbers after them.

    Returns:
        `count` seeds.
    """
    if first is not None:
        return tuple(range(first, first + count))
    recorded = [int(s) for s in best.found.get("seeds", (0,))][:count]
    following = (n for n in range(max(recorded, default=-1) + 1, max(recorded, default=-1) + 1 + count))
    return (*recorded, *(next(following) for _ in range(count - len(recorded))))


@dataclasses.dataclass(frozen=True)
class PreparedRefit:
    """A refit after all checks, before anything is written.

    Attributes:
        best: The best file.
        out: The folder of the models.
        plan: What is requested.
        recorded: The validation logits of all cells, joined.
        own: The models' exit criterion and its threshold.
        chosen: A threshold for every criterion, by name.
        trained_on: The training samples, in words.
        margin: The margin over the majority class in cross-validation; None if the cells don't record it.
        form: The form in which the model is registered, one of :data:`tune.models.exporting.FORMS`.
        times: The time up to each exit of the network in that form, if the aim is a time; else None.
    """

    best: BestFile
    out: Path
    plan: RefitPlan
    recorded: RecordedLogits
    own: Chosen
    chosen: dict[str, Chosen]
    trained_on: str
    margin: ConfigurationMargin | None = None
    form: str = "none"
    times: ExitMilliseconds | None = None

    @property
    def chosen_on(self) -> str:
        """The samples of the thresholds, in words."""
        cells, samples = len(self.best.found["cells"]), self.recorded.logits.shape[1]
        return f"validation logits of {cells} runs of cross-validation, {samples} samples"


def prepare(best: BestFile, out: Path, plan: RefitPlan, *, anyway: bool = False) -> PreparedRefit:
    """Check backbone, data, logits, speed-up and `out`, and choose the thresholds.

    Args:
        best: The best file.
        out: The folder of the models.
        plan: What is requested.
        anyway: Whether to accept a configuration that is not significantly above the majority class.

    Raises:
        ConfigError: The backbone is another one, or the options don't fit.
        DataError: The training data are other ones, or the validation logits are missing.
        SweepError: `out` has other contents, or the configuration is not significantly above the majority class.
    """
    if best.config.theta_updates is None:
        raise ConfigError(f"{best.path}: theta_updates is missing; rewrite the file by: leebert-tune best NAME")
    if METHODS[best.config.training.algorithm].one_exit:
        raise ConfigError(
            f"{best.path}: {best.config.training.algorithm} has a single exit, so there is no threshold to choose and no exit "
            f"criterion to serve; train it by: leebert train --config {best.path}"
        )
    _refuse_taken(out, best, plan)
    cells = best.logits()
    margin = margin_of(best, cells)
    if margin is not None and not margin.learned and not anyway:
        raise SweepError(
            f"{best.path}: its configuration is not significantly above the majority class in cross-validation "
            f"({100 * margin.samples.score:.2f}; {margin.in_words()}), so refit does not train and register it; {ADVICE}, or "
            "override this check by --anyway"
        )
    check_backbone(best)
    split_rows = check_data(best)
    recorded = pooled(cells)
    aim = plan.aim
    speed_ups = () if aim.speed_up is None else (check_speed_up(aim.speed_up, recorded.layers, recorded.depth),)
    if plan.criterion is None and plan.patience is not None:
        raise ConfigError(f"--patience {plan.patience}: it belongs to an exit criterion; name that by --criterion")
    metric = _metric(best)
    method = METHODS[best.config.training.algorithm]
    form = form_of(plan.export)
    criterion, times = plan.criterion or method.own_criterion, None
    if aim.milliseconds is not None:
        live.phase("timing the network")
        times = time_network(best, form, criterion or method.exits, plan.patience)
    own = choose_exits(recorded, metric, aim, criterion, plan.patience, published=method.exits, times=times)
    chosen = _of_every_criterion(recorded, metric, aim, speed_ups, times) | {own.criterion: own}
    trained_on = samples_in_words(split_rows, best.config.data.subset)
    return PreparedRefit(best, out, plan, recorded, own, chosen, trained_on, margin, form, times)


def _of_every_criterion(
    recorded: RecordedLogits, metric: str, aim: Aim, speed_ups: Sequence[float], times: ExitMilliseconds | None
) -> dict[str, Chosen]:
    """Choose the threshold of each criterion; those that no threshold makes fast enough are left out."""
    every = tradeoffs(recorded, metric=metric, speed_ups=speed_ups)
    if times is None or aim.milliseconds is None:
        return {name: choose_point([curve], aim) for name, curve in every.items()}
    return {
        name: choose_in_time([curve], times, aim.milliseconds)
        for name, curve in every.items()
        if times.reaches(curve, aim.milliseconds)
    }


def margin_of(best: BestFile, cells: Sequence[CellLogits]) -> ConfigurationMargin | None:
    """Return the margin of a best file's configuration over the majority class, from the validation logits of its cells."""
    metric = _metric(best)
    folds = int((best.found.get("folds") or {}).get("k", 1))
    ratio = fold_ratio(folds) if folds > 1 else 1 / 9
    return of_cells({(c.seed, c.fold): of_logits(c.held_out, metric) for c in cells}, ratio)


def check_learned(outcome: Mapping[str, Any], anyway: bool) -> None:
    """Refuse to register a model that has no exit above the majority class on an evaluated split.

    Args:
        outcome: The refit's results, as :func:`refit` returns them.
        anyway: Whether to register it nevertheless.

    Raises:
        SweepError: It has none, and `anyway` is false.
    """
    for split, evaluation in outcome["evaluations"][str(outcome["registered_seed"])].items():
        majority = evaluation.get("majority")
        if majority and not speed_up_counts(majority) and not anyway:
            raise SweepError(
                f"seed {outcome['registered_seed']} on {split}: {in_words(AgainstMajority.of(majority), advice=ADVICE)}; it is "
                "not registered. To register it nevertheless, run the same command with --anyway"
            )


def samples_in_words(split_rows: int, subset: Subset | None) -> str:
    """Describe the training samples in words."""
    if subset is None:
        return f"the whole training split ({split_rows:,} samples)"
    return f"a stratified subset of {subset.rows:,} of {split_rows:,} samples (seed {subset.seed})"


@contextlib.contextmanager
def claimed(ready: PreparedRefit) -> Iterator[None]:
    """Lock the refit's folder, which is new or was begun by the same refit.

    Raises:
        SweepError: Another refit is running in it, or it has other contents.
    """
    ready.out.mkdir(parents=True, exist_ok=True)
    handle = os.open(ready.out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(
                f"--out {ready.out}: another refit is running in this folder; wait, or choose another folder"
            ) from None
        _refuse_taken(ready.out, ready.best, ready.plan)  # another refit may have begun since `prepare`
        write_atomically(ready.out / PLAN, json.dumps(_identity(ready.best, ready.plan)))
        yield
    finally:
        os.close(handle)


def refit(
    ready: PreparedRefit, *, name: str | None = None, served_as: str = "", anyway: bool = False
) -> dict[str, Any]:
    """Train, evaluate and describe one model per seed in `out`/seed-N; an interrupted refit resumes in the same `out`.

    A seed that diverges is skipped, unless it is the one to register.

    Args:
        ready: The prepared refit.
        name: The exported model's name in messages and pages; None: that of its folder.
        served_as: The address in MLflow that the registered seed's card names.
        anyway: Whether to accept a registered model that has no exit above the majority class.

    Returns:
        The contents of `out`/refit.json.

    Raises:
        DataError: The seed to register diverged.
        SweepError: Its model has no exit above the majority class; raised before any card is written.
    """
    best, out, plan = ready.best, ready.out, ready.plan
    for one in ready.chosen.values():
        if not one.near:
            log.warning(one.shortfall)
    summaries = _trained(ready)
    # Another split is read only now, when every model and threshold is fixed.
    evaluations = {
        seed: _evaluated(out / f"seed-{seed}", best, plan, list(ready.chosen.values())) for seed in summaries
    }
    outcome = _outcome(ready, summaries, evaluations)
    check_learned(outcome, anyway)
    for seed, summary in summaries.items():
        address = served_as if seed == plan.seeds[0] else ""
        write_card(out / f"seed-{seed}", _facts(ready, seed, summary, evaluations, address))
    if exported := _exported(ready, name):
        outcome["exported"] = exported
    return outcome


def _exported(ready: PreparedRefit, name: str | None) -> dict[str, Any] | None:
    """Export the model of the seed to register, and evaluate the export; None: it is registered in PyTorch."""
    if ready.form == "none":
        return None
    best, plan, folder = ready.best, ready.plan, ready.out / EXPORTED
    live.phase("exporting the model to register")
    try:
        export_model(
            ready.out / f"seed-{plan.seeds[0]}", folder, ready.form, ready.recorded, ready.chosen_on, ready.own, plan.aim,
            name,
        )  # fmt: skip
    except (ConfigError, DataError) as error:
        if plan.export is not None:
            raise
        log.warning(f"the registered model will run in PyTorch, since it can't be exported: {error}")
        return None
    return evaluate_export(folder, best, plan.timed_rows)


def _trained(ready: PreparedRefit) -> dict[int, Any]:
    """Train the seeds that have no model yet; return each model's training.json by seed."""
    best, plan, recorded = ready.best, ready.plan, ready.recorded
    by_criterion = curves(recorded, plan.patience, metric=_metric(best))
    thresholds = curves_as_json(by_criterion, len(recorded.logits), ready.chosen_on, ready.own)
    summaries: dict[int, Any] = {}
    for seed in plan.seeds:
        folder = ready.out / f"seed-{seed}"
        if not (folder / "training.json").is_file():  # written last
            log.info(f"seed {seed}: {best.config.theta_updates} updates on {ready.trained_on}")
            on_plan, on_step = live.updates(f"seed {seed}")
            try:
                train_model(
                    _run(best, seed, ready.own), folder, device=plan.device, report=_progress(seed), on_plan=on_plan,
                    on_step=on_step,
                )  # fmt: skip
            except DivergedError as error:
                if seed == plan.seeds[0]:
                    raise DataError(
                        f"seed {seed}: {error}. It is the seed to register: choose another by --first-seed and --out"
                    ) from None
                log.warning(f"seed {seed} is skipped: {error}")
                continue
        write_atomically(folder / FILE, thresholds)
        summaries[seed] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return summaries


def _outcome(ready: PreparedRefit, summaries: Mapping[int, Any], evaluations: Mapping[int, Any]) -> dict[str, Any]:
    """Collect the contents of refit.json."""
    best, plan, chosen, own = ready.best, ready.plan, ready.chosen, ready.own
    parts = origins([*(best.found.get("parts") or ()), f"exit criterion {own.criterion}"])
    return {
        "best": str(best.path),
        "best_digest": best.found["digest"],
        "task": best.task_name,
        "configuration": best.found["configuration"],
        "code": code_version(),
        "seeds": list(summaries),
        "diverged": [seed for seed in plan.seeds if seed not in summaries],
        "registered_seed": plan.seeds[0],
        "trained_on": ready.trained_on,
        "picked": plan.picked,
        "criterion": own.criterion,
        **({"parts": parts} if parts else {}),
        "chosen": {name: dataclasses.asdict(one) for name, one in chosen.items()},
        "theta_updates": best.config.theta_updates,
        "cross_validated": best.found["score_mean"],
        "majority": ready.margin.as_dict() if ready.margin else None,
        **({"latency": plan.latency, "times": ready.times.as_dict()} if ready.times else {}),
        "differs": list(_differs(best, summaries[plan.seeds[0]])),
        "evaluations": {str(seed): e["splits"] for seed, e in evaluations.items()},
        "missed": _missed(evaluations, chosen, ready.times is not None),
        "overspent": _overspent(evaluations, chosen),
    }


def _metric(best: BestFile) -> str:
    return effective_task(best.config.task, best.config.data.group_by).metric


def _missed(evaluations: Mapping[int, Any], chosen: Mapping[str, Chosen], timed: bool) -> list[dict[str, Any]]:
    """List the criteria and splits on which a model's layer speed-up misses the aim; without such an aim, none."""
    return (
        []
        if timed
        else [
            {
                "seed": seed,
                "split": split,
                "criterion": point["criterion"],
                "aim": own.aim,
                "speed_up": point["speed_up"],
            }
            for seed, evaluation in evaluations.items()
            for split, evaluated in evaluation["splits"].items()
            if claims_speed_up(evaluated)
            for point in evaluated["chosen"]
            if (own := chosen[point["criterion"]]).missed(point["speed_up"])
        ]
    )


def _overspent(evaluations: Mapping[int, Any], chosen: Mapping[str, Chosen]) -> list[dict[str, Any]]:
    """List where early exits lower the score of a model by more than the aim allows."""
    return [
        {"seed": seed, "split": split, "criterion": point["criterion"], "max_loss": own.max_loss, "loss": loss}
        for seed, evaluation in evaluations.items()
        for split, evaluated in evaluation["splits"].items()
        for point in evaluated["chosen"]
        if (own := chosen[point["criterion"]]).overspent(loss := score_loss(evaluated, point))
    ]


def check_backbone(best: BestFile) -> None:
    """Raise ConfigError if backbone or tokenizer differ from the best file's."""
    identity = backbone_identity(best.config.model.backbone)
    if lines := backbone_differences(best.found["backbone"], identity):
        raise ConfigError(
            f"{best.path}: the sweep used another backbone: its {'; its '.join(lines)}; give the same one by --backbone"
        )


def check_data(best: BestFile) -> int:
    """Check that the training split is the sweep's.

    Args:
        best: The best file.

    Returns:
        The number of samples of the whole training split.

    Raises:
        ConfigError: The task has images, which a refit cannot serve.
        DataError: The training data differ.
    """
    from leebert.data.sources import subset
    from leebert.kinds import kind_of

    data = best.config.data
    task = effective_task(best.config.task, data.group_by)
    kind = kind_of(task)
    if not kind.served:
        raise ConfigError(f"{best.path}: {task.name} has {kind.name}, and refit supports only texts; use leebert train")
    examples = kind.read(task, "train", data.dir)
    split_rows = len(examples)
    if data.subset and data.subset.rows <= split_rows:
        examples = subset(examples, data.subset.rows, data.subset.seed)
    if examples.fingerprint() != best.found["data_fingerprint"]:
        raise DataError(
            f"{best.path}: the sweep used other training data (fingerprint {best.found['data_fingerprint']}; "
            f"{examples.source} has {examples.fingerprint()}); give the same data by --data-dir"
        )
    return split_rows


def finish(out: Path, outcome: dict[str, Any]) -> None:
    """Write refit.json, which marks the refit as complete."""
    write_atomically(out / DONE, json.dumps(outcome, indent=1))


def print_refit(outcome: dict[str, Any], out: Path) -> None:
    """Print each seed's scores on each split, the registered model's operating points, and how to serve it.

    Args:
        outcome: The contents of refit.json.
        out: The refit's folder.
    """
    for seed, splits in outcome["evaluations"].items():
        for split, e in splits.items():
            sentence(
                f"seed {seed} on {split}: mean over exits {100 * e['mean_over_exits']:.2f}, all layers "
                f"{100 * e['exits']['score'][-1]:.2f}"
            )
    _print_points(outcome)
    _print_misses(outcome)
    _print_exported(outcome)
    own = outcome["chosen"][outcome["criterion"]]
    sentence(
        f"exit criterion of the models: {named(own['criterion'], own['patience'])}, threshold {own['threshold']:.6g}"
    )
    for seed in outcome["diverged"]:
        sentence(f"seed {seed} diverged and is skipped")
    for line in outcome["differs"]:
        sentence(f"differs from the sweep that produced this file: {line}")
    sentence(outcome["picked"])
    address = f"models:/{outcome['mlflow']['name']}@{outcome['mlflow']['alias']}"
    print(f"{out}: {address}, version {outcome['mlflow']['version']}; serve it by the next command")
    if is_server(outcome["mlflow"]["tracking_uri"]):
        version = f"{outcome['mlflow']['name']}/versions/{outcome['mlflow']['version']}?workflowType=machine_learning"
        print(f"MLflow: {outcome['mlflow']['tracking_uri'].rstrip('/')}/#/models/{version}")
    server = f"MLFLOW_TRACKING_URI={shlex.quote(outcome['mlflow']['tracking_uri'])}"
    if outcome.get("exported"):
        next_step(f"{server} leebert-tune serve {address}")
    else:
        next_step(f"{server} mlflow models serve --env-manager local --model-uri '{address}'")


def _print_points(outcome: Mapping[str, Any]) -> None:
    """Print the registered model's score against the majority class, and its operating point of each criterion."""
    for split, e in outcome["evaluations"][str(outcome["registered_seed"])].items():
        if e.get("majority"):
            sentence(f"on {split}: {in_words(AgainstMajority.of(e['majority']), advice=ADVICE)}")
        if not claims_speed_up(e):
            continue
        clock = {t["criterion"]: t for t in e.get("wall_clock", ())}
        for p in e["chosen"]:
            chosen, time = outcome["chosen"][p["criterion"]], clock.get(p["criterion"])
            aim = (
                f"target: at most {outcome['latency']:g} ms per sample"
                if "latency" in outcome
                else _aim_in_words(chosen)
            )
            in_time = (
                f", wall-clock speed-up {time['speed_up']:.2f} on samples of layer speed-up {time['layer_ratio']:.2f}"
                if time
                else ""
            )
            sentence(
                f"{named(p['criterion'], p['patience'])} {p['threshold']:.6g}: {aim}; layer speed-up "
                f"{chosen['reached']:.2f} in validation, on {split} "
                f"{p['speed_up']:.2f} ({p['speed_up'] / chosen['asked'] - 1:+.0%}){in_time}; score {100 * p['measures']['score']:.2f} "
                f"({-100 * score_loss(e, p) + 0.0:+.2f})"
            )


def _print_exported(outcome: Mapping[str, Any]) -> None:
    """Print the exported model's size, and its exits and operating points on each split, in layers and milliseconds."""
    exported = outcome.get("exported")
    if not exported:
        return
    sentence(
        f"exported: {exported['precision']}, {exported['megabytes']:.1f} MB, exits after layers "
        f"{', '.join(map(str, exported['exit_layers']))}"
    )
    for split, evaluation in exported["splits"].items():
        print_evaluation(f"{split}, exported", evaluation)
        taken = evaluation["own"].get("milliseconds", 0.0)
        if taken > (1 + MISSED) * outcome.get("latency", math.inf):
            sentence(
                f"warning: the exported model takes {taken:.3g} ms per sample on {split}; the target was at most "
                f"{outcome['latency']:g} ms: calibrate the export on texts of such lengths"
            )


def _print_misses(outcome: Mapping[str, Any]) -> None:
    """Warn if a speed-up or a drop in score misses its aim on a development split."""
    for m in outcome["missed"]:
        print(
            f"warning: seed {m['seed']} misses the target layer speed-up of {m['criterion']} on {m['split']}: "
            f"{m['speed_up']:.2f} instead of {m['aim']:.2f} ({m['speed_up'] / m['aim'] - 1:+.0%}); to hit the target, "
            "calibrate the thresholds on unlabelled production texts"
        )
    for m in outcome["overspent"]:
        if m["criterion"] == outcome["criterion"]:
            sentence(
                f"warning: seed {m['seed']}: the score drops by {points(m['loss'])} under {m['criterion']} on {m['split']}; the target was "
                f"at most {points(m['max_loss'])} on validation samples; for a smaller drop, choose a smaller --max-loss"
            )


def _aim_in_words(chosen: Mapping[str, Any]) -> str:
    """Describe the aim of a threshold."""
    if chosen.get("max_loss") is None:
        return f"target {chosen['asked']:g}"
    return f"target: at most {points(chosen['max_loss'])} below the full model"


def _progress(seed: int) -> Callable[[Any], None]:
    def report(epoch: Any) -> None:
        log.info(
            f"seed {seed}: epoch {epoch.epoch + 1}, {epoch.theta_updates} updates, loss {epoch.train_loss or float('nan'):.4f}"
        )

    return report


def _run(best: BestFile, seed: int, own: Chosen) -> RunConfig:
    """Return one seed's training run, in the precision of the logits on which its thresholds were chosen.

    `found` is left out: this module has checked data and backbone, and reports other settings once.
    """
    config = best.config
    precision = (best.found.get("runtime") or {}).get("precision", config.training.precision)
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"seed": seed, "precision": precision}),
            "exits": own.exits,
            "found": None,
        }
    )


def _identity(best: BestFile, plan: RefitPlan) -> dict[str, Any]:
    """Return the settings that must match to resume a refit in a folder."""
    settings = {"best": best.found["digest"], "code": code_version(), **dataclasses.asdict(plan)}
    return dict(json.loads(json.dumps(settings)))


def _refuse_taken(out: Path, best: BestFile, plan: RefitPlan) -> None:
    """Raise SweepError for a folder that is neither new nor begun by the same refit: nothing is overwritten."""
    identity = _identity(best, plan)
    if (out / DONE).exists():
        raise SweepError(f"--out {out}: it already holds a refit; choose another folder, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            recorded = with_criterion(parse_json((out / PLAN).read_text()))
        except (OSError, ValueError):
            raise SweepError(f"--out {out}: it is not empty and holds no refit; choose another folder") from None
        if recorded != identity:
            changed = sorted(key for key in {*identity, *recorded} if identity.get(key) != recorded.get(key))
            raise SweepError(
                f"--out {out}: it holds an unfinished refit with another {', '.join(changed)}; choose another folder, or "
                "remove it"
            )


def _evaluated(folder: Path, best: BestFile, plan: RefitPlan, chosen: list[Chosen]) -> dict[str, Any]:
    """Evaluate a model on the task's development splits; read evaluation.json if it exists.

    Returns:
        `splits`, each split's evaluation, and `machine`, the machine of the time measurements.
    """
    file = folder / "evaluation.json"
    if file.is_file():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    from leebert.data.sources import read_split
    from leebert.data.tasks import get_task
    from leebert.kinds.texts import load_text_model
    from leebert.latency import machine
    from leebert.report import evaluate_split

    task = get_task(best.config.task)
    if not task.eval_splits:
        log.info(f"task {task.name} declares no development split: the models are not evaluated")
    live.phase(f"{folder.name}: loading the model")
    model, tokenizer = load_text_model(folder)
    runtime = Runtime.of(model.config.precision, plan.device)
    model.to(runtime.device)
    exits = [one.exits for one in chosen]
    splits = {}
    for split in task.eval_splits:
        examples = read_split(task, split, best.config.data.dir)
        splits[split] = evaluate_split(
            model, tokenizer, examples, task.metric, runtime, exits=exits, timed_rows=plan.timed_rows,
            progress=functools.partial(live.track, what=f"{folder.name} on {split}"),
        )  # fmt: skip
        ratios = ", ".join(f"{p['criterion']} {p['speed_up']:.2f}" for p in splits[split]["chosen"])
        speed = f"; layer speed-up {ratios}" if claims_speed_up(splits[split]) else ""
        log.info(f"{folder.name} on {split}: mean over exits {100 * splits[split]['mean_over_exits']:.2f}{speed}")
    evaluation = {"splits": splits, "machine": machine(runtime)}
    write_atomically(file, json.dumps(evaluation, indent=1))
    return evaluation


def _differs(best: BestFile, summary: dict[str, Any]) -> list[str]:
    """List how code, versions and runtime differ from the sweep's."""
    parts = origins(best.found.get("parts") or ())
    now = {"code": code_version(), "versions": versions(), "parts": parts, "runtime": summary["runtime"]}
    return differences({key: best.found.get(key) for key in now}, now)


def _facts(
    ready: PreparedRefit, seed: int, summary: Mapping[str, Any], evaluations: Mapping[int, Any], served_as: str
) -> CardFacts:
    best, plan, chosen = ready.best, ready.plan, ready.chosen
    config = best.config
    splits = evaluations[seed]["splits"]
    return CardFacts(
        task=best.task_name,
        columns=text_columns(config.task),
        backbone=backbone_name(config.model.backbone),
        algorithm=config.training.algorithm,
        layers=len(next(iter(splits.values()))["exits"]["score"]) if splits else len(best.found["score_per_exit"]),
        max_length=config.model.max_length,
        training=dict(best.found["values"]),
        theta_updates=summary["theta_updates"],
        trained_on=ready.trained_on,
        seed=seed,
        seeds=list(evaluations),
        picked=plan.picked,
        own=ready.own,
        chosen=list(chosen.values()),
        search=best.found,
        evaluations=splits,
        spread={split: [e["splits"][split]["mean_over_exits"] for e in evaluations.values()] for split in splits},
        machine=evaluations[seed]["machine"],
        timed_rows=plan.timed_rows,
        versions=versions(),
        served_as=served_as,
    )
