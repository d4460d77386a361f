"""From a best file to models that serve: every seed trained on the whole training split, evaluated, logged, one registered.

The order keeps the development split out of every choice: thresholds are chosen on the held-out logits of
cross-validation, training takes the recorded number of updates, and which seed is registered is settled before any
labelled row of another split is opened. A refit is prepared (everything checked, nothing written), then claimed, then run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leebert.card import CardFacts, write_card
from leebert.config import Subset
from leebert.errors import ConfigError, DataError, DivergedError, SweepError
from leebert.evaluate import HeldOut
from leebert.exits import named
from leebert.exits.stored import with_criterion
from leebert.files import parse_json, write_atomically
from leebert.majority import AgainstMajority, in_words
from leebert.methods import METHODS
from leebert.operating_point import Aim, choose_exits, choose_point, points
from leebert.outside import origins
from leebert.provenance import backbone_differences, backbone_identity, code_version, differences, versions
from leebert.recipe import RunConfig, train_model
from leebert.report import claims_speed_up, score_loss, speed_up_counts
from leebert.runtime import Runtime
from leebert.serving import text_columns
from leebert.thresholds import FILE, Chosen, check_speed_up, curves, curves_as_json
from leebert.tradeoff import tradeoffs
from leebert.training_data import effective_task
from tune.analysis.learned import ADVICE, ConfigurationMargin, of_cells, of_logits
from tune.analysis.stats import fold_ratio
from tune.models.best_file import BestFile, CellLogits, pooled
from tune.models.shipping import backbone_name

Say = Callable[[str], None]

#: Written first and last: which refit a folder belongs to, and what came of it.
PLAN, DONE = ".refit.json", "refit.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a refit is asked for. The first of `seeds` is registered.

    criterion: the models' exit criterion; None: that which the method was published with, or else the best for the aim.
    speed_up, max_loss: the aim, the latter in points
    (:meth:`leebert.operating_point.Aim.of`).
    """

    seeds: tuple[int, ...]
    criterion: str | None = None
    speed_up: float | None = None
    patience: int | None = None  # of the criterion, where it has one beside its threshold
    device: str = "auto"
    timed_rows: int = 100
    max_loss: float | None = None

    @property
    def picked(self) -> str:
        """How the registered seed was chosen, for people."""
        return (
            f"Seed {self.seeds[0]} is registered because it comes first, settled before training: a choice by the "
            "development split would make that split's scores optimistic."
        )


def seeds_of(best: BestFile, count: int, first: int | None = None) -> tuple[int, ...]:
    """`count` seeds: those of the sweep, then the numbers after them; from `first` on where it is given."""
    if first is not None:
        return tuple(range(first, first + count))
    known = [int(s) for s in best.found.get("seeds", (0,))][:count]
    following = (n for n in range(max(known, default=-1) + 1, max(known, default=-1) + 1 + count))
    return (*known, *(next(following) for _ in range(count - len(known))))


@dataclasses.dataclass(frozen=True)
class Ready:
    """A refit of which all is checked and nothing is written.

    own: the models' exit criterion. chosen: a threshold for every criterion. trained_on: in words. margin: over the majority class, in
    cross-validation.
    """

    best: BestFile
    out: Path
    plan: Plan
    recorded: HeldOut
    own: Chosen
    chosen: dict[str, Chosen]
    trained_on: str
    margin: ConfigurationMargin | None = None


def prepare(best: BestFile, out: Path, plan: Plan, *, anyway: bool = False) -> Ready:
    """Check backbone, data, logits, speed-up and `out`, and choose the thresholds.

    Raises ConfigError for another backbone, DataError for other data than the best file's, SweepError for a taken `out`
    and, unless `anyway`, for a configuration that is not distinguishable from the majority class.
    """
    if best.config.theta_updates is None:
        raise ConfigError(f"{best.path}: theta_updates is missing, so nobody knows how long to train")
    if METHODS[best.config.training.algorithm].one_exit:
        raise ConfigError(
            f"{best.path}: {best.config.training.algorithm} leaves one exit, so there are no thresholds to choose and no exit criterion "
            f"to serve; train it by: leebert train --config {best.path}"
        )
    _refuse_taken(out, best, plan)
    cells = best.logits()
    margin = margin_of(best, cells)
    if margin is not None and not margin.learned and not anyway:
        raise SweepError(
            f"{best.path}: its configuration is not distinguishable from the majority class in cross-validation "
            f"({100 * margin.samples.score:.2f}; {margin.in_words()}), so it is not trained to be registered; {ADVICE}, or do it "
            "all the same: --anyway"
        )
    check_backbone(best)
    split_rows = check_data(best)
    recorded = pooled(cells)
    aim = Aim.of(plan.max_loss, plan.speed_up)
    asked = () if aim.speed_up is None else (check_speed_up(aim.speed_up, recorded.layers, recorded.depth),)
    if plan.criterion is None and plan.patience is not None:
        raise ConfigError(f"--patience {plan.patience}: is of an exit criterion; name it by --criterion")
    metric = _metric(best)
    criterion = plan.criterion or METHODS[best.config.training.algorithm].own_criterion
    own = choose_exits(recorded, metric, aim, criterion, plan.patience)
    every = tradeoffs(recorded, metric=metric, speed_ups=asked)
    chosen = {name: choose_point([curve], aim) for name, curve in every.items()} | {own.criterion: own}
    return Ready(best, out, plan, recorded, own, chosen, rows_in_words(split_rows, best.config.data.subset), margin)


def margin_of(best: BestFile, cells: Sequence[CellLogits]) -> ConfigurationMargin | None:
    """A best file's configuration beside the majority class, by the held-out logits of its cells."""
    metric = _metric(best)
    folds = int((best.found.get("folds") or {}).get("k", 1))
    ratio = fold_ratio(folds) if folds > 1 else 1 / 9
    return of_cells({(c.seed, c.fold): of_logits(c.held_out, metric) for c in cells}, ratio)


def check_learned(told: Mapping[str, Any], anyway: bool) -> None:
    """SweepError where the model that would be registered has no exit above the majority class on an evaluated split."""
    for split, evaluation in told["evaluations"][str(told["registered_seed"])].items():
        majority = evaluation.get("majority")
        if majority and not speed_up_counts(majority) and not anyway:
            raise SweepError(
                f"seed {told['registered_seed']} on {split}: {in_words(AgainstMajority.of(majority), advice=ADVICE)}; it is "
                "not registered. To register it all the same, give the same command with --anyway"
            )


def rows_in_words(split_rows: int, subset: Subset | None) -> str:
    """The rows that are trained on, for people."""
    if subset is None:
        return f"the whole training split ({split_rows:,} rows)"
    return f"a stratified subset of {subset.rows:,} of {split_rows:,} rows (seed {subset.seed})"


@contextlib.contextmanager
def claimed(ready: Ready) -> Iterator[None]:
    """The folder is this process's: new, or one that the same refit has begun. SweepError for any other."""
    ready.out.mkdir(parents=True, exist_ok=True)
    handle = os.open(ready.out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(
                f"--out {ready.out}: another refit is at work there; wait, or choose another folder"
            ) from None
        _refuse_taken(ready.out, ready.best, ready.plan)  # it may have been until now
        write_atomically(ready.out / PLAN, json.dumps(_identity(ready.best, ready.plan)))
        yield
    finally:
        os.close(handle)


def refit(ready: Ready, *, served_as: str = "", anyway: bool = False, say: Say = lambda line: None) -> dict[str, Any]:
    """Train, evaluate and describe one model per seed in `out`/seed-N; returns what `out`/refit.json is to say.

    A refit that was killed goes on in the same `out`. A seed that diverges is left out, unless it is the registered one.
    `served_as` is the address that the registered seed's card names. Unless `anyway`, raises SweepError before any card is
    written where the registered seed's model has no exit above the majority class.
    """
    best, out, plan, chosen, own = ready.best, ready.out, ready.plan, ready.chosen, ready.own
    config, recorded = best.config, ready.recorded
    for one in chosen.values():
        if not one.near:
            say(one.shortfall)
    held_out = (
        f"held-out logits of {len(best.found['cells'])} cells of cross-validation, {recorded.logits.shape[1]} rows"
    )
    by_criterion = curves(recorded, plan.patience, metric=_metric(best))
    thresholds = curves_as_json(by_criterion, len(recorded.logits), held_out, own)
    summaries: dict[int, Any] = {}
    for seed in plan.seeds:
        folder = out / f"seed-{seed}"
        if not (folder / "training.json").is_file():  # written last
            say(f"seed {seed}: {config.theta_updates} updates on {ready.trained_on}")
            try:
                train_model(_run(best, seed, own), folder, device=plan.device, report=_progress(seed, say))
            except DivergedError as error:
                if seed == plan.seeds[0]:
                    raise DataError(
                        f"seed {seed}: {error}. It would be the registered one: give another by --first-seed and --out"
                    ) from None
                say(f"seed {seed} is left out: {error}")
                continue
        write_atomically(folder / FILE, thresholds)
        summaries[seed] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    # Only now, with every model and threshold settled, is another split opened.
    evaluations = {seed: _evaluated(out / f"seed-{seed}", best, plan, list(chosen.values()), say) for seed in summaries}
    told = {
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
        "chosen": {name: dataclasses.asdict(one) for name, one in chosen.items()},
        "theta_updates": config.theta_updates,
        "cross_validated": best.found["score_mean"],
        "majority": ready.margin.as_dict() if ready.margin else None,
        "differs": list(_differs(best, summaries[plan.seeds[0]])),
        "evaluations": {str(seed): e["splits"] for seed, e in evaluations.items()},
        "missed": _missed(evaluations, chosen),
        "overspent": _overspent(evaluations, chosen),
    }
    check_learned(told, anyway)
    for seed, summary in summaries.items():
        address = served_as if seed == plan.seeds[0] else ""
        write_card(out / f"seed-{seed}", _facts(ready, seed, summary, evaluations, address))
    return told


def _metric(best: BestFile) -> str:
    return effective_task(best.config.task, best.config.data.group_by).metric


def _missed(evaluations: Mapping[int, Any], chosen: Mapping[str, Chosen]) -> list[dict[str, Any]]:
    """Where a model leaves at other layers than was aimed at."""
    return [
        {"seed": seed, "split": split, "criterion": point["criterion"], "aim": own.aim, "speed_up": point["speed_up"]}
        for seed, evaluation in evaluations.items()
        for split, told in evaluation["splits"].items()
        if claims_speed_up(told)
        for point in told["chosen"]
        if (own := chosen[point["criterion"]]).missed(point["speed_up"])
    ]


def _overspent(evaluations: Mapping[int, Any], chosen: Mapping[str, Chosen]) -> list[dict[str, Any]]:
    """Where a model loses more by exiting early than was allowed."""
    return [
        {"seed": seed, "split": split, "criterion": point["criterion"], "max_loss": own.max_loss, "loss": loss}
        for seed, evaluation in evaluations.items()
        for split, told in evaluation["splits"].items()
        for point in told["chosen"]
        if (own := chosen[point["criterion"]]).overspent(loss := score_loss(told, point))
    ]


def check_backbone(best: BestFile) -> None:
    """ConfigError where backbone or tokenizer are not those of the best file."""
    identity = backbone_identity(best.config.model.backbone)
    if lines := backbone_differences(best.found["backbone"], identity):
        raise ConfigError(
            f"{best.path} was found with another backbone: its {'; its '.join(lines)}; give the right one by --backbone"
        )


def check_data(best: BestFile) -> int:
    """How many rows the training split has; DataError where it is not the one that the best file was found on."""
    from leebert.data.sources import subset
    from leebert.kinds import kind_of

    data = best.config.data
    task = effective_task(best.config.task, data.group_by)
    kind = kind_of(task)
    if not kind.served:
        raise ConfigError(
            f"{best.path}: {task.name} has {kind.name}, and refit makes models that serve texts; use leebert train"
        )
    examples = kind.read(task, "train", data.dir)
    split_rows = len(examples)
    if data.subset and data.subset.rows <= split_rows:
        examples = subset(examples, data.subset.rows, data.subset.seed)
    if examples.fingerprint() != best.found["data_fingerprint"]:
        raise DataError(
            f"{best.path} was found on other training data (fingerprint {best.found['data_fingerprint']}, that of "
            f"{examples.source} is {examples.fingerprint()}): give the right one by --data-dir"
        )
    return split_rows


def finish(out: Path, told: dict[str, Any]) -> None:
    """The refit is whole: it will not be gone on with."""
    write_atomically(out / DONE, json.dumps(told, indent=1))


def print_refit(told: dict[str, Any], out: Path) -> None:
    """Each seed's scores on each split, the chosen points of the registered one, and how it is served."""
    for seed, splits in told["evaluations"].items():
        for split, e in splits.items():
            print(
                f"seed {seed} on {split}: mean over exits {100 * e['mean_over_exits']:.2f}, all layers "
                f"{100 * e['exits']['score'][-1]:.2f}"
            )
    for split, e in told["evaluations"][str(told["registered_seed"])].items():
        if e.get("majority"):
            print(f"on {split}: {in_words(AgainstMajority.of(e['majority']), advice=ADVICE)}")
        if not claims_speed_up(e):
            continue
        clock = {t["criterion"]: t for t in e.get("wall_clock", ())}
        for p in e["chosen"]:
            chosen, time = told["chosen"][p["criterion"]], clock.get(p["criterion"])
            in_time = f", {time['speed_up']:.2f} by the clock on rows of {time['layer_ratio']:.2f}" if time else ""
            print(
                f"{named(p['criterion'], p['patience'])} {p['threshold']:.6g}: {_asked(chosen)}, held out {chosen['reached']:.2f}, on {split} "
                f"{p['speed_up']:.2f} ({p['speed_up'] / chosen['asked'] - 1:+.0%}){in_time}; score {100 * p['measures']['score']:.2f} "
                f"({-100 * score_loss(e, p) + 0.0:+.2f})"
            )
    for m in told["missed"]:
        print(
            f"warning: seed {m['seed']} misses the speed-up of {m['criterion']} on {m['split']}: {m['speed_up']:.2f} where "
            f"{m['aim']:.2f} was aimed at ({m['speed_up'] / m['aim'] - 1:+.0%}); if the speed matters, give requests a "
            "threshold of your own"
        )
    for m in told["overspent"]:
        if m["criterion"] == told["criterion"]:
            print(
                f"warning: seed {m['seed']} loses {points(m['loss'])} by {m['criterion']} on {m['split']}, where at most "
                f"{points(m['max_loss'])} on validation samples was the aim; if the score matters, state a stricter aim"
            )
    own = told["chosen"][told["criterion"]]
    print(f"the models exit by {named(own['criterion'], own['patience'])}, threshold {own['threshold']:.6g}")
    for seed in told["diverged"]:
        print(f"seed {seed} diverged and is left out")
    for line in told["differs"]:
        print(f"not as the best file was found: {line}")
    print(told["picked"])
    address = f"models:/{told['mlflow']['name']}@{told['mlflow']['alias']}"
    print(f"{out}: {address}, version {told['mlflow']['version']}; serve it by:")
    server = f"MLFLOW_TRACKING_URI={shlex.quote(told['mlflow']['tracking_uri'])}"
    print(f"  {server} mlflow models serve --env-manager local --model-uri '{address}'")


def _asked(chosen: Mapping[str, Any]) -> str:
    """What a threshold was chosen for, in words."""
    if chosen.get("max_loss") is None:
        return f"asked {chosen['asked']:g}"
    return f"within {points(chosen['max_loss'])} of the full model"


def _progress(seed: int, say: Say) -> Callable[[Any], None]:
    def report(epoch: Any) -> None:
        say(
            f"seed {seed}: epoch {epoch.epoch + 1}, {epoch.theta_updates} updates, loss {epoch.train_loss or float('nan'):.4f}"
        )

    return report


def _run(best: BestFile, seed: int, own: Chosen) -> RunConfig:
    """One seed's training, in the precision of the logits that its thresholds were chosen on.

    `found` stays out: data and backbone are checked here, and other settings said once.
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


def _identity(best: BestFile, plan: Plan) -> dict[str, Any]:
    """What a folder's refit is known by."""
    mine = {"best": best.found["digest"], "code": code_version(), **dataclasses.asdict(plan)}
    return dict(json.loads(json.dumps(mine)))


def _refuse_taken(out: Path, best: BestFile, plan: Plan) -> None:
    """SweepError for a folder that is neither new nor begun by the same refit: nothing is overwritten."""
    mine = _identity(best, plan)
    if (out / DONE).exists():
        raise SweepError(f"--out {out}: there is a refit already; choose another folder, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            theirs = with_criterion(parse_json((out / PLAN).read_text()))
        except (OSError, ValueError):
            raise SweepError(f"--out {out}: it is not empty, and no refit; choose another folder") from None
        if theirs != mine:
            changed = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
            raise SweepError(
                f"--out {out}: an unfinished refit with another {', '.join(changed)} lies there; choose another folder, or remove it"
            )


def _evaluated(folder: Path, best: BestFile, plan: Plan, chosen: list[Chosen], say: Say) -> dict[str, Any]:
    """Each evaluated split's figures and the machine they were measured on, from evaluation.json where it exists."""
    kept = folder / "evaluation.json"
    if kept.is_file():
        return dict(with_criterion(json.loads(kept.read_text(encoding="utf-8"))))
    from leebert.data.sources import read_split
    from leebert.data.tasks import get_task
    from leebert.kinds.texts import load_text_model
    from leebert.latency import machine
    from leebert.report import evaluate_split

    task = get_task(best.config.task)
    if not task.eval_splits:
        say(f"task {task.name} declares no development split: nothing is evaluated")
    model, tokenizer = load_text_model(folder)
    runtime = Runtime.of(model.config.precision, plan.device)
    model.to(runtime.device)
    exits = [one.exits for one in chosen]
    splits = {}
    for split in task.eval_splits:
        examples = read_split(task, split, best.config.data.dir)
        splits[split] = evaluate_split(
            model, tokenizer, examples, task.metric, runtime, exits=exits, timed_rows=plan.timed_rows
        )
        ratios = ", ".join(f"{p['criterion']} {p['speed_up']:.2f}" for p in splits[split]["chosen"])
        speed = f"; speed-up {ratios}" if claims_speed_up(splits[split]) else ""
        say(f"{folder.name} on {split}: mean over exits {100 * splits[split]['mean_over_exits']:.2f}{speed}")
    told = {"splits": splits, "machine": machine(runtime)}
    write_atomically(kept, json.dumps(told, indent=1))
    return told


def _differs(best: BestFile, summary: dict[str, Any]) -> list[str]:
    parts = origins(best.found.get("parts") or ())
    now = {"code": code_version(), "versions": versions(), "parts": parts, "runtime": summary["runtime"]}
    return differences({key: best.found.get(key) for key in now}, now)


def _facts(
    ready: Ready, seed: int, summary: Mapping[str, Any], evaluations: Mapping[int, Any], served_as: str
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
