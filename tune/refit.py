"""From a best file to models that serve: every seed trained on the whole training split, evaluated, logged, one registered.

The order keeps the development split out of every choice: thresholds are chosen on the held-out logits of
cross-validation, training takes the recorded number of updates, and which seed is registered is settled before any
labelled row of another split is opened.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leebert.card import CardFacts, write_card
from leebert.config import ExitConfig
from leebert.errors import ConfigError, DataError, SweepError
from leebert.files import write_atomically
from leebert.provenance import backbone_identity, code_version, differences, versions
from leebert.recipe import RunConfig, train_model
from leebert.runtime import Runtime
from leebert.serving import text_columns
from leebert.thresholds import FILE, Chosen, check_speed_up, choose, curves
from tune.found import BestFile, pooled

Say = Callable[[str], None]

#: Written first and last: which refit a folder belongs to, and what came of it.
PLAN, DONE = ".refit.json", "refit.json"

#: How far a speed-up may be off what was reached on held-out rows before it is called missed.
MISSED = 0.1

#: Rules of which each model gets a threshold for the speed-up asked for.
RULES = ("entropy", "confidence", "patience")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a refit is asked for. The first of `seeds` is registered."""

    seeds: tuple[int, ...]
    strategy: str
    speed_up: float
    device: str = "auto"
    timed_rows: int = 100

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


def refit(
    best: BestFile, out: Path, plan: Plan, *, served_as: str = "", say: Say = lambda line: None
) -> dict[str, Any]:
    """Train, evaluate and describe one model per seed in `out`/seed-N; returns what `out`/refit.json is to say.

    A refit that was killed goes on in the same `out`; any other contents of it are refused. `served_as` is the address
    that the cards name. Raises DataError for other data than the best file's, SweepError for a taken `out`.
    """
    config = best.config
    if config.theta_updates is None:
        raise ConfigError(f"{best.path}: theta_updates is missing, so nobody knows how long to train")
    check_backbone(best)
    check_data(best)
    recorded = pooled(best.logits())
    check_speed_up(plan.speed_up, len(recorded.logits))
    chosen = {rule: choose(recorded, rule, plan.speed_up) for rule in (*RULES, plan.strategy)}
    own = chosen[plan.strategy]
    for rule in chosen.values():
        if not rule.near:
            say(f"{rule.strategy}: {plan.speed_up:g} is not attained; the nearest is {rule.reached:.2f}")
    _claim(out, best, plan)
    table = {
        "chosen_on": f"held-out logits of {len(best.found['cells'])} cells of cross-validation, {recorded.logits.shape[1]} rows",
        "num_exits": len(recorded.logits),
        "curves": curves(recorded),
    }
    summaries: dict[int, Any] = {}
    for seed in plan.seeds:
        folder = out / f"seed-{seed}"
        if not (folder / "training.json").is_file():  # written last
            say(f"seed {seed}: {config.theta_updates} updates on the whole training split")
            train_model(_run(config, seed, own), folder, device=plan.device, report=_progress(seed, say))
        write_atomically(folder / FILE, json.dumps(table))
        summaries[seed] = json.loads((folder / "training.json").read_text())
    # Only now, with every model and threshold settled, is another split opened.
    evaluations = {
        seed: _evaluated(out / f"seed-{seed}", best, plan, list(chosen.values()), say) for seed in plan.seeds
    }
    told = {
        "best": str(best.path),
        "best_digest": best.found["digest"],
        "task": best.task_name,
        "configuration": best.found["configuration"],
        "seeds": list(plan.seeds),
        "registered_seed": plan.seeds[0],
        "picked": plan.picked,
        "strategy": own.strategy,
        "chosen": {name: dataclasses.asdict(rule) for name, rule in chosen.items()},
        "theta_updates": config.theta_updates,
        "cross_validated": best.found["score_mean"],
        "differs": list(_differs(best, summaries[plan.seeds[0]])),
        "evaluations": {str(seed): e["splits"] for seed, e in evaluations.items()},
    }
    for seed in plan.seeds:
        facts = _facts(best, plan, seed, chosen, summaries[seed], evaluations)
        write_card(out / f"seed-{seed}", dataclasses.replace(facts, served_as=served_as))
    return told


def check_backbone(best: BestFile) -> None:
    """ConfigError where backbone or tokenizer are not those of the best file."""
    was, now = best.found["backbone"], backbone_identity(best.config.model.backbone)
    for part in ("weights", "tokenizer", "revision"):
        if was.get(part) != now.get(part):
            raise ConfigError(
                f"{best.path} was found with another backbone: its {part} was {was.get(part)}, is {now.get(part)}; "
                "give the right one by --backbone"
            )


def check_data(best: BestFile) -> None:
    """DataError where the training split is not the one that the best file was found on."""
    from leebert.data.sources import read_split, subset
    from leebert.recipe import effective_task

    data = best.config.data
    examples = read_split(effective_task(best.config.task, data.group_by), "train", data.dir)
    if data.subset and data.subset.rows <= len(examples):
        examples = subset(examples, data.subset.rows, data.subset.seed)
    if examples.fingerprint() != best.found["data_fingerprint"]:
        raise DataError(
            f"{best.path} was found on other training data (fingerprint {best.found['data_fingerprint']}, that of "
            f"{examples.source} is {examples.fingerprint()}): give the right one by --data-dir"
        )


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
        clock = {t["strategy"]: t for t in e.get("wall_clock", ())}
        for p in e["chosen"]:
            chosen, time = told["chosen"][p["strategy"]], clock.get(p["strategy"])
            in_time = f", {time['speed_up']:.2f} by the clock" if time else ""
            print(
                f"{p['strategy']} {p['threshold']:.6g}: asked {chosen['asked']:g}, held out {chosen['reached']:.2f}, on {split} "
                f"{p['speed_up']:.2f} ({p['speed_up'] / chosen['asked'] - 1:+.0%}){in_time}; score {100 * p['measures']['score']:.2f}"
            )
            if abs(p["speed_up"] / chosen["reached"] - 1) > MISSED:
                print(
                    f"warning: {split} is left at other layers than the held-out rows were; if the speed matters, "
                    f"give requests a threshold of {p['strategy']} of your own"
                )
    for line in told["differs"]:
        print(f"not as the best file was found: {line}")
    print(told["picked"])
    address = f"models:/{told['mlflow']['name']}@{told['mlflow']['alias']}"
    print(f"{out}: {address}, version {told['mlflow']['version']}; serve it by:")
    print(f"  mlflow models serve --env-manager local --model-uri '{address}'")


def _progress(seed: int, say: Say) -> Callable[[Any], None]:
    def report(epoch: Any) -> None:
        say(
            f"seed {seed}: epoch {epoch.epoch + 1}, {epoch.theta_updates} updates, loss {epoch.train_loss or float('nan'):.4f}"
        )

    return report


def _run(config: RunConfig, seed: int, own: Chosen) -> RunConfig:
    """One seed's training. `found` stays out: data and backbone are checked here, and other settings said once."""
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"seed": seed}),
            "exits": ExitConfig(strategy=own.strategy, threshold=own.threshold),
            "found": None,
        }
    )


def _claim(out: Path, best: BestFile, plan: Plan) -> None:
    """Take a new folder, or one that the same refit has begun. SweepError for any other: nothing is overwritten."""
    mine = {"best": best.found["digest"], "code": code_version(), **dataclasses.asdict(plan)}
    mine = json.loads(json.dumps(mine))
    if (out / DONE).exists():
        raise SweepError(f"--out {out}: there is a refit already; choose another folder, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            theirs = json.loads((out / PLAN).read_text())
        except (OSError, ValueError):
            raise SweepError(f"--out {out}: it is not empty, and no refit; choose another folder") from None
        if theirs != mine:
            changed = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
            raise SweepError(
                f"--out {out}: an unfinished refit with another {', '.join(changed)} lies there; choose another folder, or remove it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PLAN, json.dumps(mine))


def _evaluated(folder: Path, best: BestFile, plan: Plan, chosen: list[Chosen], say: Say) -> dict[str, Any]:
    """Each evaluated split's figures and the machine they were measured on, from evaluation.json where it exists."""
    kept = folder / "evaluation.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    from leebert.backbone import load_tokenizer
    from leebert.data.sources import read_split
    from leebert.data.tasks import get_task
    from leebert.latency import machine
    from leebert.model import load_model
    from leebert.report import evaluate_split

    task = get_task(best.config.task)
    if not task.eval_splits:
        say(f"task {task.name} declares no development split: nothing is evaluated")
    model, tokenizer = load_model(folder).eval(), load_tokenizer(str(folder))
    runtime = Runtime.of("auto", plan.device)
    model.to(runtime.device)
    rules: list[tuple[str, float | None]] = [(c.strategy, c.threshold) for c in chosen]
    splits = {}
    for split in task.eval_splits:
        examples = read_split(task, split, best.config.data.dir)
        splits[split] = evaluate_split(
            model, tokenizer, examples, task.metric, runtime, rules=rules, timed_rows=plan.timed_rows
        )
        ratios = ", ".join(f"{p['strategy']} {p['speed_up']:.2f}" for p in splits[split]["chosen"])
        say(
            f"{folder.name} on {split}: mean over exits {100 * splits[split]['mean_over_exits']:.2f}; speed-up {ratios}"
        )
    told = {"splits": splits, "machine": machine(runtime)}
    write_atomically(kept, json.dumps(told, indent=1))
    return told


def _differs(best: BestFile, summary: dict[str, Any]) -> list[str]:
    now = {"code": code_version(), "versions": versions(), "runtime": summary["runtime"]}
    return differences({key: best.found.get(key) for key in now}, now)


def _facts(
    best: BestFile,
    plan: Plan,
    seed: int,
    chosen: dict[str, Chosen],
    summary: dict[str, Any],
    evaluations: dict[int, Any],
) -> CardFacts:
    config = best.config
    splits = evaluations[seed]["splits"]
    return CardFacts(
        task=best.task_name,
        columns=text_columns(config.task),
        backbone=config.model.backbone
        if not Path(config.model.backbone).is_absolute()
        else Path(config.model.backbone).name,
        algorithm=config.training.algorithm,
        layers=len(next(iter(splits.values()))["exits"]["score"]) if splits else len(best.found["score_per_exit"]),
        max_length=config.model.max_length,
        training=dict(best.found["values"]),
        theta_updates=summary["theta_updates"],
        rows=summary["rows"],
        seed=seed,
        seeds=plan.seeds,
        picked=plan.picked,
        rule=chosen[plan.strategy],
        chosen=list(chosen.values()),
        found=best.found,
        evaluations=splits,
        spread={split: [e["splits"][split]["mean_over_exits"] for e in evaluations.values()] for split in splits},
        machine=evaluations[seed]["machine"],
        versions=versions(),
    )
