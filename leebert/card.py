"""A saved model's card: README.md in the Hugging Face hub's format, written from measured figures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leebert.data.tasks import TASKS
from leebert.exits import FULL_MODEL
from leebert.files import write_atomically
from leebert.majority import AgainstMajority, exits_in_words, margin_in_words
from leebert.metrics import METRICS
from leebert.operating_point import points
from leebert.report import claims_speed_up, one_label, score_loss
from leebert.thresholds import Chosen
from leebert.yaml import dump_yaml

#: The heading of the section that :func:`recalibrated` writes.
_CALIBRATED = "## Calibrated thresholds"


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """The measured figures that a model card reports. Scores are fractions.

    Attributes:
        task: Name of the task.
        columns: Names of the text columns of a request.
        backbone: A hub id, a package's model or a folder's name.
        algorithm: Name of the method.
        layers: Layers of the network.
        max_length: Tokens per sample; longer samples are truncated.
        training: The training options.
        theta_updates: Updates of θ.
        trained_on: The training samples, in words.
        seed: Seed of this model.
        seeds: Seeds of all models that were trained.
        picked: How this seed was selected among `seeds`, a sentence.
        own: The model's own exit criterion and threshold.
        chosen: Every exit criterion with its threshold for the same aim.
        search: The `found` section of a best file: the sweep that selected the configuration.
        evaluations: Evaluation of this model by split (:func:`leebert.report.evaluate_split`).
        spread: Mean over exits of every seed, by split.
        machine: The machine on which the times were measured.
        timed_rows: The largest number of timed samples.
        versions: Versions of the libraries.
        served_as: Address of the registered model; empty if it is not registered.
    """

    task: str
    columns: tuple[str, ...]
    backbone: str
    algorithm: str
    layers: int
    max_length: int
    training: Mapping[str, Any]
    theta_updates: int
    trained_on: str
    seed: int
    seeds: Sequence[int]
    picked: str
    own: Chosen
    chosen: Sequence[Chosen]
    search: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    spread: Mapping[str, Sequence[float]]
    machine: str
    timed_rows: int
    versions: Mapping[str, str]
    served_as: str = ""


def card(facts: CardFacts) -> str:
    """Write the text of README.md.

    Args:
        facts: The measured figures.

    Returns:
        Markdown with a YAML front matter, as the Hugging Face hub reads it.
    """
    parts = [
        f"---\n{dump_yaml(_front(facts))}---\n\n# {facts.task}: an encoder that exits early",
        f"An early-exit encoder (Zhu, ACL 2021) with a classifier after each of its {facts.layers} layers, trained with the "
        f"method `{facts.algorithm}`. " + _by_default(facts.own),
        *_warnings(facts),
        _use(facts),
        *(_evaluation(facts, split, result) for split, result in facts.evaluations.items()),
        _training(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _against(result: Mapping[str, Any]) -> AgainstMajority | None:
    """A split's scores beside the majority class; None if its evaluation has no such comparison."""
    return AgainstMajority.of(result["majority"]) if result.get("majority") else None


def _warnings(facts: CardFacts) -> list[str]:
    """Warnings at the top of the card: the splits on which the model is not significantly above the majority class."""
    lines = []
    for split, result in facts.evaluations.items():
        if one_label(result):
            lines.append(f"All samples of {split} have the same label. No speed-up is claimed for this split.")
        against = _against(result)
        if against is None or against.verdict == "learned":
            continue
        statement = f"not significantly above the majority class on {split}"
        if against.verdict == "collapsed":
            statement = f"no classifier yet: on {split} every exit predicts a single class"
        lines.append(
            f"**This model is {statement}** (mean over exits {margin_in_words(against.margin, against.interval)}; the majority class "
            f"scores {100 * against.score:.2f})." + ("" if against.above else " No speed-up is claimed for it.")
        )
    return lines


def recalibrated(
    text: str,
    own: Chosen,
    chosen: Mapping[str, Chosen],
    expected: Mapping[str, tuple[float, float]],
    chosen_on: str,
    single_class: bool = False,
) -> str:
    """Update a card after calibration.

    A section on the calibrated thresholds replaces an earlier one. The tables that were measured with the former
    thresholds stay, and the section says so.

    Args:
        text: The card.
        own: The model's new exit criterion and threshold.
        chosen: The new threshold of every criterion, by the criterion's name.
        expected: The layer speed-up to expect on other texts, (low, high) at 95 %, by the criterion's name.
        chosen_on: The texts of the calibration, in words.
        single_class: Whether every exit predicts one class for all texts; then no speed-up is claimed.

    Returns:
        The new card.
    """
    rows = [
        [name, f"{one.threshold:.6g}", f"{one.reached:.2f}", "{:.2f} to {:.2f}".format(*expected[name])]
        for name, one in chosen.items()
    ]
    lines = [
        _CALIBRATED,
        f"Thresholds for {_aim(own)}, chosen on {chosen_on}. The tables below were measured with the former thresholds.",
    ]
    if single_class:
        lines[1] = f"Every exit predicts a single class on {chosen_on}: no speed-up is claimed."
    else:
        lines.append(
            _table(
                ["exit criterion", "threshold", "layer speed-up on these texts", "on similar texts, 95 % CI"],
                rows,
            )
        )
        lines += [f"{one.shortfall}." for one in chosen.values() if not one.near]
    text = re.sub(
        r"By default a (?:row leaves by the rule|sample exits by the criterion) .*",
        lambda _: _by_default(own),
        text,
        count=1,
    )
    text = re.sub(rf"^{_CALIBRATED}\n.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    before, heading, after = text.partition("## Use\n")
    return before.rstrip() + "\n\n" + "\n\n".join(lines) + "\n" + (f"\n{heading}{after}" if heading else "")


def _aim(own: Chosen) -> str:
    if own.max_loss is None:
        return f"a layer speed-up of {own.asked:g}"
    return f"at most {points(own.max_loss)} below the full model on validation samples"


def _by_default(own: Chosen) -> str:
    return f"By default a sample exits by the criterion **{own.name}** at {own.threshold:.6g}."


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write the card into a model's folder; returns its path."""
    path = folder / "README.md"
    write_atomically(path, card(facts))
    return path


def _front(facts: CardFacts) -> dict[str, Any]:
    glue = TASKS.get(facts.task)
    hub = glue.hub if glue else None
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["leebert", "early-exit", facts.algorithm],
    }
    if hub:
        front["language"] = "en"
        front["datasets"] = [hub.repo]
    if "/" in facts.backbone and not facts.backbone.startswith(("package:", "/", ".", "~")):
        front["base_model"] = facts.backbone.partition("@")[0]
    dataset: dict[str, str] = {
        "type": hub.repo if hub else facts.task,
        "name": facts.task.upper() if hub else facts.task,
    }
    if hub and hub.config:
        dataset["config"] = hub.config
    results = []
    hub_names: dict[str, str] = {}
    for metric in METRICS.values():
        for name, measure in metric.measures.items():
            hub_names[name] = hub_names.get(name) or measure.hub  # another metric's measure may share the name
    for split, result in facts.evaluations.items():
        own = _point(result, facts.own)
        values = [(name, scores[-1], "all layers") for name, scores in result["exits"].items()]
        if claims_speed_up(result):
            values += [
                (name, value, f"{own['speed_up']:.2f}× layer speed-up") for name, value in own["measures"].items()
            ]
        results.append(
            {
                "task": {"type": "text-classification"},
                "dataset": dataset | {"split": hub.splits.get(split, split) if hub else split},
                "metrics": [
                    {"type": hub_names[name], "value": round(value, 6), "name": f"{name}, {setting}"}
                    for name, value, setting in values
                    if hub_names.get(name)
                ],
            }
        )
    if results:
        metrics = results[0]["metrics"]
        assert isinstance(metrics, list)
        front["metrics"] = list(dict.fromkeys(m["type"] for m in metrics))
        front["model-index"] = [{"name": f"leebert-{facts.task}", "results": results}]
    return front


def _use(facts: CardFacts) -> str:
    texts = '"text": "…", "text_pair": "…"' if len(facts.columns) == 2 else '"text": "…"'
    columns = ", ".join(f'"{name}": ["…"]' for name in facts.columns)
    lines = [
        "## Use",
        f"```python\nimport leebert  # registers the model with transformers' Auto classes\nfrom transformers import pipeline\n\n"
        f'pipeline("text-classification", model="THIS FOLDER")({{{texts}}})\n```',
        "The pipeline computes all layers and returns the prediction of the exit layer. `leebert predict THIS_FOLDER` stops "
        "computing at the exit layer" + (", and so does the MLflow model:" if facts.served_as else "."),
    ]
    if facts.served_as:
        lines.append(
            f'```python\nimport mlflow, pandas\n\nmodel = mlflow.pyfunc.load_model("{facts.served_as}")\n'
            f"rows = pandas.DataFrame({{{columns}}})\n"
            'model.predict(rows, params={"criterion": "entropy", "speed_up": 2.0})  # row, label, probability, exit_layer, layers_saved\n```'
        )
        lines.append(f"The MLflow model refuses texts longer than {facts.max_length} tokens unless `truncate` is set.")
    return "\n\n".join(lines)


def _evaluation(facts: CardFacts, split: str, result: Mapping[str, Any]) -> str:
    measures = _measures(result)
    exits = [
        [str(i + 1), *(f"{100 * result['exits'][name][i]:.2f}" for name in measures)]
        for i in range(len(result["exits"]["score"]))
    ]
    lines = [
        f"## Evaluation on {split} ({result['rows']} samples)",
        "Scores of every exit, in per cent:",
        _table(["exit", *measures], exits),
    ]
    spread = facts.spread.get(split, ())
    if len(spread) > 1:
        lines.append(
            f"Mean over exits: {100 * result['mean_over_exits']:.2f} for this seed; {100 * float(np.mean(spread)):.2f} ± "
            f"{100 * float(np.std(spread, ddof=1)):.2f} over {len(spread)} seeds ({', '.join(f'{100 * s:.2f}' for s in spread)})."
        )
    if against := _against(result):
        single = f" {exits_in_words(against.collapsed).capitalize()} predict{'' if len(against.collapsed) > 1 else 's'}"
        lines.append(
            f"The majority class scores {100 * against.score:.2f} and random guessing {100 * against.chance:.2f}. The mean over "
            f"exits differs from the majority class by {margin_in_words(against.margin, against.interval)}."
            + (f"{single} a single class." if against.collapsed else "")
        )
    if claims_speed_up(result):
        lines += _criteria(facts, split, result)
    return "\n\n".join(lines)


def _measures(result: Mapping[str, Any]) -> list[str]:
    """Return the measures of a split's evaluation, without the score where it is one of the others."""
    exits = result["exits"]
    others = [name for name in exits if name != "score"]
    return others if any(exits[name] == exits["score"] for name in others) else list(exits)


def _criteria(facts: CardFacts, split: str, result: Mapping[str, Any]) -> list[str]:
    """A split's table of exit criteria, the aims that they missed, and the wall-clock times."""
    measures = _measures(result)
    times = {(t["criterion"], t["threshold"]): t for t in result.get("wall_clock", ())}
    rows = []
    for chosen in facts.chosen:
        point = _point(result, chosen)
        time = times.get((chosen.criterion, chosen.threshold))
        clock = [f"{time[key]:.2f}" for key in ("milliseconds", "speed_up", "layer_ratio")] if time else [""] * 3
        rows.append(
            [chosen.name, f"{chosen.threshold:.6g}", f"{chosen.reached:.2f}", f"{point['speed_up']:.2f}"]
            + [f"{100 * point['measures'][name]:.2f}" for name in measures]
            + clock
        )
    head = ["exit criterion", "threshold", "layer speed-up, cross-validation", f"layer speed-up, {split}", *measures]
    head += ["ms per sample", "wall-clock speed-up", "layer speed-up, timed samples"]
    everything = times.get((FULL_MODEL, None))
    lines = [
        f"Thresholds chosen for {_aim(facts.own)} on the validation folds of cross-validation, never on {split}. "
        "The layer speed-up is layers / mean exit layer:",
        _table(head, rows),
    ]
    for chosen in facts.chosen:
        if not chosen.near:
            lines.append(f"{chosen.shortfall}.")
        if chosen.missed(speed_up := _point(result, chosen)["speed_up"]):
            lines.append(
                f"**{chosen.name} misses the layer speed-up on {split}**: {speed_up:.2f} instead of {chosen.aim:.2f} "
                f"({speed_up / chosen.aim - 1:+.0%}). To hit a target speed-up, calibrate the thresholds on unlabelled "
                "production texts (`leebert calibrate`)."
            )
        if chosen.max_loss is not None and chosen.overspent(loss := score_loss(result, _point(result, chosen))):
            lines.append(
                f"**The score of {chosen.name} drops by {points(loss)} on {split}**; the aim was a drop of at most "
                f"{points(chosen.max_loss)} on validation samples."
            )
    if everything:
        lines.append(
            f"Wall-clock time of all layers at batch size 1: {everything['milliseconds']:.2f} ms per sample, without "
            f"tokenisation, measured on {facts.machine} with {min(facts.timed_rows, result['rows'])} samples spread over "
            f"{split}. The last column is the layer speed-up on these samples."
        )
    if result.get("truncated_rows"):
        lines.append(f"{result['truncated_rows']} samples were truncated to {facts.max_length} tokens.")
    return lines


def _training(facts: CardFacts) -> str:
    search = facts.search
    spread = "" if search.get("score_std") is None else f" ± {100 * search['score_std']:.2f}"
    options = ", ".join(f"{key} {value}" for key, value in facts.training.items() if key != "seed")
    lines = [
        "## Training",
        f"Backbone {facts.backbone}; {facts.theta_updates} updates on {facts.trained_on}, without a validation fold. "
        f"The configuration is the best of {search['complete_configurations']} in {_sweeps(search)} by {_objective(search)}; "
        f"its validation score is {100 * search['score_mean']:.2f}{spread} (mean over exits, {len(search['cells'])} "
        "cross-validation runs).",
        f"Seed {facts.seed} of the trained seed(s) {', '.join(map(str, facts.seeds))}. {facts.picked}",
        f"Options: {options}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".",
    ]
    return "\n\n".join(lines)


def _objective(search: Mapping[str, Any]) -> str:
    return str((search.get("objective") or {}).get("name", "mean over exits"))


def _sweeps(search: Mapping[str, Any]) -> str:
    names = list(search.get("sweeps") or [search["sweep"]])
    return f"sweep{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _point(result: Mapping[str, Any], chosen: Chosen) -> Mapping[str, Any]:
    return next(p for p in result["chosen"] if (p["criterion"], p["threshold"]) == (chosen.criterion, chosen.threshold))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
