"""Write the best file: a configuration and all that its validation score depends on, for `leebert train --config`.

A second file has the validation logits of its cells, from which thresholds are chosen without the sweep's folder.
"""

from __future__ import annotations

import itertools
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from leebert.config import ModelConfig
from leebert.console import sentence, table
from leebert.data.batches import updates_per_epoch
from leebert.errors import SweepError
from leebert.files import write_atomically
from leebert.majority import margin_in_words
from leebert.recipe import RunConfig
from leebert.yaml import dump_yaml
from tune.analysis.choose import Candidate, Selection
from tune.analysis.compare_text import print_lines
from tune.analysis.learned import ADVICE
from tune.analysis.learned_weights import against_uniform, printed, recorded
from tune.analysis.overview import placed
from tune.analysis.still_weights import OmegaMoves, omega_moves
from tune.analysis.wording import others_in_words
from tune.models.best_file import CellLogits, content_digest, save_logits
from tune.space.spec import data_config
from tune.store.curves import layers_needed
from tune.store.held_out import cell_logits
from tune.store.ranking import score

#: The most configurations of a list that are printed; the file has all.
PRINTED = 10


def best_file(choice: Selection) -> dict[str, Any]:
    """Make the contents of best/<task>.yaml: a :class:`RunConfig` with `theta_updates` and `found`.

    `theta_updates` is the median over cells of the epochs up to the best one, times the updates of an epoch on the whole
    training split; of a method with several stages, those of the last one that trains. The file's score is the mean over
    exits, whatever the objective.

    Args:
        choice: The chosen configuration of a task, and its candidates.

    Returns:
        The contents, JSON-ready, without the digest.
    """
    chosen, objective = choice.best, choice.objective
    sweep, config = chosen.sweep, chosen.configuration
    spec, manifest, cells = sweep.spec, sweep.manifest, chosen.records
    training = spec.train_config(config.values, spec.seeds[0])
    # A configuration that ran out of memory in the sweep would do so again without micro-batches.
    micro = max(r.get("placement", {}).get("accumulate", 1) for r in cells)
    training = training.model_copy(update={"accumulate": training.accumulate * micro})
    runtime = cells[0].get("runtime", manifest["runtime"])
    epochs = statistics.median(r.get("best_epochs", r["best_epoch"] + 1) for r in cells)
    mean, std = score(config)
    per_exit = np.mean([r["exits"]["score"] for r in cells], axis=0)
    run = RunConfig(
        task=spec.task,
        model=_pinned(spec.model, manifest["backbone"]),
        data=data_config(spec),
        training=training,
        theta_updates=max(1, round(epochs * updates_per_epoch(manifest["rows"], training.batch_size))),
        found=_recorded(
            sweep=sweep.name,
            configuration=config.id,
            values=dict(config.values),
            score_mean=round(mean, 6),
            score_std=round(std, 6) if std == std else None,
            objective=_recorded(
                name=str(objective),
                criterion=None if objective.kind == "score" else objective.criterion,
                patience=None if objective.kind == "score" else objective.patience,
                value=round(choice.ranked[0].score.mean, 6),
            ),
            complete_configurations=len(choice.candidates),
            too_slow=[_named(choice, key) for key in choice.too_slow] or None,
            not_distinguishable=[_unlearned(choice, key) for key in choice.unlearned] or None,
            majority=_margin(choice),
            weights_moved=_moved(choice),
            learned_weights=recorded(against_uniform(sweep)),
            sweeps=_sweeps(choice),
            within_one_standard_error=_near(choice),
            pareto=_front(choice) if choice.front else None,
            milliseconds=times.as_dict() if (times := choice.times.get(choice.ranked[0].configuration.id)) else None,
            score_per_exit=[round(float(v), 6) for v in per_exit],
            cells=[_cell(r, training.accumulate // micro, runtime) for r in cells],
            placement=placed(sweep.state, config.id) or None,
            seeds=list(spec.seeds),
            folds=manifest["folds"],
            rows=manifest["rows"],
            data_fingerprint=manifest["data_fingerprint"],
            backbone=manifest["backbone"],
            versions=manifest["versions"],
            parts=manifest.get("parts"),
            code=manifest["code"],
            runtime=runtime,
        ),
    )
    # Defaults of exit criterion and aim would read as if they had been chosen.
    return run.model_dump(mode="json", exclude_none=True, exclude={"exits", "aim"})


def _recorded(**values: Any) -> dict[str, Any]:
    """Drop values that are None."""
    return {key: value for key, value in values.items() if value is not None}


def _named(choice: Selection, key: str) -> dict[str, Any]:
    """Identify a configuration by its id, its sweep if there are several, and its values."""
    candidate = choice.candidates[key]
    sweep = {"sweep": candidate.sweep.name} if len(choice.sweeps) > 1 else {}
    return {"configuration": candidate.configuration.id, **sweep, "values": dict(candidate.configuration.values)}


def _unlearned(choice: Selection, key: str) -> dict[str, Any]:
    """Describe a configuration that is not significantly above the majority class: score, and margin over that class."""
    margin = choice.margins[key]
    low, high = margin.samples.interval
    return {
        **_named(choice, key),
        "score": round(score(choice.candidates[key].configuration).mean, 6),
        "verdict": margin.verdict,
        "margin": margin.samples.margin,
        "low": round(low, 6),
        "high": round(high, 6),
    }


def _near(choice: Selection) -> list[dict[str, Any]]:
    """Describe the configurations within one standard error of the best."""
    return [
        _recorded(
            **_named(choice, near.configuration.id),
            score=round(near.score.mean, 6),
            **_layers_and_time(choice, near.configuration.id),
        )
        for near in choice.near
    ]


def _margin(choice: Selection) -> dict[str, Any] | None:
    """Return the chosen configuration's margin over the majority class; None if its cells don't record it."""
    margin = choice.margins.get(choice.ranked[0].configuration.id)
    return margin.as_dict() if margin else None


def _moves(choice: Selection) -> OmegaMoves | None:
    """Return how the chosen configuration updates ω, and how far it moved; None for fixed weights."""
    chosen = choice.best
    return omega_moves(chosen.sweep.spec, [(chosen.configuration.values, chosen.records)])


def _moved(choice: Selection) -> float | None:
    """Return the largest change of a loss weight over the chosen configuration's cells; None if unknown."""
    moves = _moves(choice)
    return None if moves is None or moves.most is None else round(moves.most, 6)


def _layers(candidate: Candidate) -> float | None:
    """Return `cv/layers` as in MLflow: the smallest mean exit layer with a score at most one point below full depth."""
    return layers_needed(candidate.records, candidate.sweep.curve_of)


def _layers_and_time(choice: Selection, key: str) -> dict[str, float | None]:
    """Return :func:`_layers` of a configuration and, if its network was timed, the milliseconds at these layers."""
    layers = _layers(choice.candidates[key])
    timed = choice.times.get(key)
    taken = None if timed is None or layers is None else round(float(timed.at_layers(layers)), 4)
    return {"layers": layers, "milliseconds": taken}


def _front(choice: Selection) -> dict[str, Any]:
    points = [
        {
            **_named(choice, p.configuration),
            "layers": round(p.layers, 4),
            **({} if p.milliseconds is None else {"milliseconds": round(p.milliseconds, 4)}),
            "score": round(p.score, 6),
        }
        for p in choice.front
    ]
    return _recorded(criterion=choice.objective.criterion, patience=choice.objective.patience, points=points)


def _sweeps(choice: Selection) -> dict[str, Any]:
    """Summarise each sweep: its status, its completed configurations and its own best."""
    summaries = {}
    for sweep in choice.sweeps:
        own = next((r for r in choice.ranked if choice.candidates[r.configuration.id].sweep is sweep), None)
        summaries[sweep.name] = _recorded(
            status=sweep.status,
            complete=choice.complete_of(sweep),
            planned=sweep.spec.planned,
            configuration=own and choice.candidates[own.configuration.id].configuration.id,
            value=own and round(own.score.mean, 6),
        )
    return summaries


def _cell(record: dict[str, Any], accumulate: int, runtime: dict[str, Any]) -> dict[str, Any]:
    """Describe a cell: its scores unrounded, and its runtime if that differs from the first cell's."""
    cell = {
        "seed": record["seed"],
        "fold": record["fold"],
        "score": record["score"],
        "exits": record["exits"]["score"],
        "best_epoch": record["best_epoch"],
        "epochs": record["epochs"],
        "theta_updates": record["best_theta_updates"],
        "accumulate": accumulate * record.get("placement", {}).get("accumulate", 1),
    }
    if record.get("runtime", runtime) != runtime:
        cell["runtime"] = record["runtime"]
    return cell


def best_logits(chosen: Candidate) -> list[CellLogits] | None:
    """Read the validation logits of a configuration's cells at their best epochs.

    Args:
        chosen: The configuration with its sweep.

    Returns:
        The logits; None, with a warning, if a file is missing or damaged.
    """
    cells = []
    for record in chosen.records:
        try:
            held_out, rows = cell_logits(chosen.sweep.folder.path, record)
        except SweepError as error:
            warnings.warn(
                f"configuration {chosen.configuration.id}, seed {record['seed']}, fold {record['fold']}: {error}; "
                "thresholds can't be chosen from this best file; repair the logits by: "
                f"leebert-tune resume {chosen.sweep.folder.path} --repair",
                stacklevel=2,
            )
            return None
        cells.append(CellLogits(record["seed"], record["fold"], held_out, rows))
    return cells


def _pinned(model: ModelConfig, backbone: dict[str, Any]) -> ModelConfig:
    """Pin a hub backbone to the revision that the sweep used."""
    revision = backbone.get("revision")
    if not revision:
        return model
    return model.model_copy(update={"backbone": f"{model.backbone.partition('@')[0]}@{revision}"})


def write_best(choice: Selection, out: Path) -> tuple[dict[str, Any], Path]:
    """Write best/<task>.yaml, with a header on its use, and the validation logits in a file beside it.

    `found.held_out` names the file of the logits; `found.digest` reveals later edits.

    Args:
        choice: The chosen configuration of a task.
        out: The folder.

    Returns:
        The contents and the path of the YAML file.
    """
    path = out / f"{choice.task}.yaml"
    values = best_file(choice)
    section = values["found"]
    out.mkdir(parents=True, exist_ok=True)
    if logits := best_logits(choice.best):
        # Written first, so that the file exists when a reader sees the new YAML.
        section["held_out"] = save_logits(out / f"{choice.task}.held-out.parquet", logits)
    section["digest"] = content_digest(values)
    header = [
        f"The best of {_counted(choice)}:",
        f"{_score(section)}. The score is the cross-validated mean over exits, in per cent; it is not",
        "comparable with a score on dev. Train it on the whole training split, or reproduce the score:",
        f"  leebert train --config {path}",
        f"  leebert-tune verify {path}",
        *choice.progress().values(),
        *filter(None, [_against(choice)]),
    ]
    write_atomically(path, "".join(f"# {line}\n" for line in header) + dump_yaml(values))
    return values, path


def _counted(choice: Selection) -> str:
    names = ", ".join(sweep.name for sweep in choice.sweeps)
    conditions = [f"that reach {choice.objective.target}"] if choice.too_slow else []
    conditions += ["that are better than the majority class"] if choice.unlearned else []
    which = f" {' and '.join(conditions)}" if conditions else ""
    return (
        f"{len(choice.ranked)} completed configurations{which} of sweep{'s' if len(choice.sweeps) > 1 else ''} {names}"
    )


def _score(section: dict[str, Any]) -> str:
    """Format mean and standard deviation over cells, in per cent."""
    spread = "" if section.get("score_std") is None else f" ± {100 * section['score_std']:.2f}"
    return f"{100 * section['score_mean']:.2f}{spread} over {len(section['cells'])} runs (seed × fold)"


def _against(choice: Selection) -> str:
    """Compare the chosen configuration with the majority class in words; empty if its cells don't record it."""
    margin = choice.margins.get(choice.ranked[0].configuration.id)
    if margin is None:
        return ""
    if margin.learned:
        return f"against the majority class ({100 * margin.samples.score:.2f}): {margin.in_words()}"
    return (
        f"not significantly above the majority class ({100 * margin.samples.score:.2f}): {margin.in_words()}; {ADVICE}"
    )


def print_best(choice: Selection, values: dict[str, Any], path: Path) -> None:
    """Print the chosen configuration, the candidates, and the reason.

    Args:
        choice: The chosen configuration of a task.
        values: The contents of its best file.
        path: The file.
    """
    section, objective = values["found"], choice.objective
    name = choice.names[choice.ranked[0].configuration.id]
    sentence(f"the best of {_counted(choice)}:\n{name}\n{_score(section)}")
    if against := _against(choice):
        sentence(against)
    for line in choice.progress().values():
        sentence(line)
    if moves := _moves(choice):
        sentence(f"its loss weights: {moves.in_words()}")
    if learned := section.get("learned_weights"):
        print_lines(printed(learned))
    _print_excluded(choice, section, path)
    if objective.kind != "score":
        sentence(f"chosen by the {objective}: {100 * section['objective']['value']:.2f}")
    if times := section.get("milliseconds"):
        slow = "; other processes disturbed the measurement" if times["disturbed"] else ""
        per_exit = " ".join(f"{one:.3g}" for one in times["exits"])
        sentence(
            f"ms up to each exit, measured on this machine at batch size 1 in {times['measured']}{slow}: {per_exit}"
        )
    if len(section["sweeps"]) > 1:
        for sweep, own in section["sweeps"].items():
            mark = "  (chosen)" if sweep == section["sweep"] else ""
            sentence(f"sweep {sweep}: " + (f"{100 * own['value']:.2f}" if "value" in own else "no candidate") + mark)
    sentence("score per exit: " + " ".join(f"{100 * v:.2f}" for v in section["score_per_exit"]))
    _print_alternatives(choice, section, path)
    print(f"{path}: leebert train --config {path}")


def _print_excluded(choice: Selection, section: dict[str, Any], path: Path) -> None:
    """Print how many configurations were excluded, and why."""
    if choice.too_slow:
        sentence(
            f"{len(choice.too_slow)} of {len(choice.candidates)} completed configurations can't reach "
            f"{choice.objective.target} under {choice.objective.under} and are excluded"
        )
    if choice.unlearned:
        sentence(
            f"{len(choice.unlearned)} of {len(choice.candidates)} completed configurations are not significantly above the "
            "majority class and are excluded (--anyway includes them)"
        )
        _print_configurations(
            choice, "not significantly above the majority class", section["not_distinguishable"], path
        )


def _print_alternatives(choice: Selection, section: dict[str, Any], path: Path) -> None:
    """Print the configurations within one standard error, and those on the front of score against mean exit layer."""
    near = section["within_one_standard_error"]
    sentence(f"{others_in_words(len(near) - 1)} within one standard error")
    if len(near) > 1:
        _print_configurations(
            choice, "layers: the smallest mean exit layer with a score at most one point below full depth", near, path
        )
    if "pareto" in section:
        # Each configuration once, from the fewest layers at which it is the best one.
        begins = [next(group) for _, group in itertools.groupby(section["pareto"]["points"], key=_origin)]
        count = len({_origin(p) for p in begins})
        verb, against = (
            "s are" if count > 1 else " is",
            "time" if choice.objective.latency is not None else "mean exit layer",
        )
        sentence(f"{count} configuration{verb} on the Pareto front of score against {against}")
        _print_configurations(
            choice,
            f"layers: where a configuration's part of the front begins, under {choice.objective.under}",
            begins,
            path,
        )
    elif choice.no_front:
        sentence(f"no Pareto front of score against mean exit layer: {choice.no_front}")


def _origin(point: dict[str, Any]) -> tuple[str, str]:
    return point.get("sweep", ""), point["configuration"]


def _print_configurations(choice: Selection, title: str, configurations: list[dict[str, Any]], path: Path) -> None:
    """Print a table of configurations, named by what differs between the candidates, with scores and layers or margins."""
    from rich.console import Console

    # By the configuration's own id: in several sweeps, equal ids are equal values, and so equal names.
    names = {choice.candidates[key].configuration.id: name for key, name in choice.names.items()}
    last = "margin" if configurations and "margin" in configurations[0] else "layers"
    timed = any("milliseconds" in one for one in configurations)
    rows = []
    for one in configurations[:PRINTED]:
        name = " ".join(filter(None, (one.get("sweep"), names[one["configuration"]])))
        if last == "margin":
            end = (
                "collapsed"
                if one["verdict"] == "collapsed"
                else margin_in_words(one["margin"], (one["low"], one["high"]))
            )
        else:
            end = f"{one['layers']:.2f}" if "layers" in one else ""
        taken = (f"{one['milliseconds']:.3g}" if "milliseconds" in one else "",) if timed else ()
        rows.append((name, f"{100 * one['score']:.2f}", end, *taken))
    sentence(title)  # as the table's title it would wrap at the table's width
    Console().print(table(("configuration", "score", last, *(("ms",) if timed else ())), rows))
    if len(configurations) > PRINTED:
        sentence(f"and {len(configurations) - PRINTED} more in {path}")
