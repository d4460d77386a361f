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
from leebert.report import lost, one_label, told_speed_up
from leebert.thresholds import Chosen
from leebert.yaml import dump_yaml

#: The heading of what :func:`recalibrated` says.
_CALIBRATED = "## Calibrated thresholds"


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card says. Scores are fractions.

    backbone: a hub id, a package's, or a folder's name. trained_on: the rows, in words. timed_rows: how many rows at most
    were timed. served_as: the address of the registered model, where this is it.
    evaluations: split → this model's evaluation (:func:`leebert.report.evaluate_split`). spread: split → each seed's
    mean over exits. chosen: every exit criterion at the speed-up asked for; `own` is the model's. found: how the
    configuration was found (a best file's section). picked: how this seed came to be the one that is served.
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
    found: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    spread: Mapping[str, Sequence[float]]
    machine: str
    timed_rows: int
    versions: Mapping[str, str]
    served_as: str = ""


def card(facts: CardFacts) -> str:
    """The text of README.md."""
    parts = [
        f"---\n{dump_yaml(_front(facts))}---\n\n# {facts.task}: an encoder that exits early",
        f"A LeeBERT model (Zhu, ACL 2021; trained by {facts.algorithm}) with a classifier after each of its {facts.layers} layers. "
        + _by_default(facts.own),
        *_warnings(facts),
        _use(facts),
        *(_evaluation(facts, split, told) for split, told in facts.evaluations.items()),
        _training(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _against(told: Mapping[str, Any]) -> AgainstMajority | None:
    """A split's scores beside the majority class, where its evaluation tells."""
    return AgainstMajority.of(told["majority"]) if told.get("majority") else None


def _counts(told: Mapping[str, Any]) -> bool:
    """Whether a speed-up on a split is worth claiming: an exit scores above the majority class there."""
    return told_speed_up(told)


def _warnings(facts: CardFacts) -> list[str]:
    """What must be read first: on which splits the model is not distinguishable from the majority class."""
    lines = []
    for split, told in facts.evaluations.items():
        if one_label(told):
            lines.append(f"All samples of {split} have the same label. No speed-up is claimed on them.")
        against = _against(told)
        if against is None or against.verdict == "learned":
            continue
        what = f"not distinguishable from the majority class on {split}"
        if against.verdict == "collapsed":
            what = f"no classifier yet: on {split} every exit predicts a single class"
        lines.append(
            f"**This model is {what}** (mean over exits {margin_in_words(against.margin, against.interval)}; the majority class "
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
    """A card whose model exits at other thresholds from now on: its `own`, and a section on what `chosen` were chosen
    on in the place of an earlier one. What was measured with the former thresholds stays, and is called so.

    expected: each criterion's layer ratio on other texts, (low, high) at 95 %. single_class: every exit predicted one class for
    all texts; then no ratio is claimed.
    """
    rows = [
        [name, f"{one.threshold:.6g}", f"{one.reached:.2f}", "{:.2f} to {:.2f}".format(*expected[name])]
        for name, one in chosen.items()
    ]
    lines = [
        _CALIBRATED,
        f"Thresholds for {_aim(own)}, chosen on {chosen_on}; no label was read. They took the place of those "
        "with which the tables below were measured.",
    ]
    if single_class:
        lines[1] = f"Every exit predicts a single class on {chosen_on}: no speed-up is claimed."
    else:
        lines.append(
            _table(["exit criterion", "threshold", "layer ratio on these texts", "on others like them, 95 %"], rows)
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
        return f"a speed-up of {own.asked:g}"
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
    hub_names = {name: measure.hub for metric in METRICS.values() for name, measure in metric.measures.items()}
    for split, told in facts.evaluations.items():
        own = _point(told, facts.own)
        values = [(name, scores[-1], "all layers") for name, scores in told["exits"].items()]
        if _counts(told):
            values += [
                (name, value, f"{own['speed_up']:.2f} times fewer layers") for name, value in own["measures"].items()
            ]
        results.append(
            {
                "task": {"type": "text-classification"},
                "dataset": dataset | {"split": hub.splits.get(split, split) if hub else split},
                "metrics": [
                    {"type": hub_names[name], "value": round(value, 6), "name": f"{name}, {how}"}
                    for name, value, how in values
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
        "The pipeline computes all layers and answers as the exit criterion would. `leebert predict THIS_FOLDER` stops computing"
        + (", and so does the MLflow model:" if facts.served_as else "."),
    ]
    if facts.served_as:
        lines.append(
            f'```python\nimport mlflow, pandas\n\nmodel = mlflow.pyfunc.load_model("{facts.served_as}")\n'
            f"rows = pandas.DataFrame({{{columns}}})\n"
            'model.predict(rows, params={"criterion": "entropy", "speed_up": 2.0})  # row, label, probability, exit_layer, layers_saved\n```'
        )
    lines.append(f"Texts longer than {facts.max_length} tokens are refused there unless `truncate` is set.")
    return "\n\n".join(lines)


def _evaluation(facts: CardFacts, split: str, told: Mapping[str, Any]) -> str:
    measures = list(told["exits"])
    exits = [
        [str(i + 1), *(f"{100 * told['exits'][name][i]:.2f}" for name in measures)]
        for i in range(len(told["exits"]["score"]))
    ]
    lines = [f"## On {split}: {told['rows']} rows", "Every exit, in per cent:", _table(["layer", *measures], exits)]
    spread = facts.spread.get(split, ())
    if len(spread) > 1:
        lines.append(
            f"Mean over exits: {100 * told['mean_over_exits']:.2f} for this seed; {100 * float(np.mean(spread)):.2f} ± "
            f"{100 * float(np.std(spread, ddof=1)):.2f} over {len(spread)} seeds ({', '.join(f'{100 * s:.2f}' for s in spread)})."
        )
    if against := _against(told):
        stuck = f" A single class is predicted by {exits_in_words(against.collapsed)}." if against.collapsed else ""
        lines.append(
            f"The majority class scores {100 * against.score:.2f}, chance {100 * against.chance:.2f}; the mean over exits is "
            f"{margin_in_words(against.margin, against.interval)} against it.{stuck}"
        )
    if _counts(told):
        lines += _criteria(facts, split, told)
    return "\n\n".join(lines)


def _criteria(facts: CardFacts, split: str, told: Mapping[str, Any]) -> list[str]:
    """What each exit criterion gives on a split: a table, the aims that were missed, and times."""
    measures = list(told["exits"])
    times = {(t["criterion"], t["threshold"]): t for t in told.get("wall_clock", ())}
    rows = []
    for chosen in facts.chosen:
        point = _point(told, chosen)
        time = times.get((chosen.criterion, chosen.threshold))
        clock = [f"{time[key]:.2f}" for key in ("milliseconds", "speed_up", "layer_ratio")] if time else [""] * 3
        rows.append(
            [chosen.name, f"{chosen.threshold:.6g}", f"{chosen.reached:.2f}", f"{point['speed_up']:.2f}"]
            + [f"{100 * point['measures'][name]:.2f}" for name in measures]
            + clock
        )
    head = ["exit criterion", "threshold", "layer ratio, cross-validation", f"layer ratio, {split}", *measures]
    head += ["ms per row", "wall-clock ratio", "layer ratio of the timed rows"]
    everything = times.get((FULL_MODEL, None))
    lines = [
        f"Thresholds chosen for {_aim(facts.own)} on the held-out rows of cross-validation, never on {split}. "
        "The layer ratio is M / mean layers executed:",
        _table(head, rows),
    ]
    for chosen in facts.chosen:
        if not chosen.near:
            lines.append(f"{chosen.shortfall}.")
        if chosen.missed(speed_up := _point(told, chosen)["speed_up"]):
            lines.append(
                f"**{chosen.name} missed the speed-up on {split}**: {speed_up:.2f} where {chosen.aim:.2f} was aimed at "
                f"({speed_up / chosen.aim - 1:+.0%}). If the speed matters, give a threshold of your own."
            )
        if chosen.max_loss is not None and chosen.overspent(loss := lost(told, _point(told, chosen))):
            lines.append(
                f"**{chosen.name} loses {points(loss)} on {split}**, where at most {points(chosen.max_loss)} on validation "
                "samples was the aim."
            )
    if everything:
        lines.append(
            f"Wall-clock time at batch size 1, all layers: {everything['milliseconds']:.2f} ms per row; measured on {facts.machine}, "
            f"on {min(facts.timed_rows, told['rows'])} rows spread over {split}, of which the last column is. "
            "Tokenisation is not in it."
        )
    if told.get("truncated_rows"):
        lines.append(f"{told['truncated_rows']} rows were cut at {facts.max_length} tokens.")
    return lines


def _training(facts: CardFacts) -> str:
    found = facts.found
    spread = "" if found.get("score_std") is None else f" ± {100 * found['score_std']:.2f}"
    options = ", ".join(f"{key} {value}" for key, value in facts.training.items() if key != "seed")
    lines = [
        "## Training",
        f"Backbone {facts.backbone}; {facts.theta_updates} updates on {facts.trained_on}, nothing held out. "
        f"The configuration is the best of {found['complete_configurations']} in {_sweeps(found)} by its {_objective(found)}; "
        f"{100 * found['score_mean']:.2f}{spread} by cross-validation (mean over exits, "
        f"{len(found['cells'])} cells).",
        f"Seed {facts.seed}; trained with seed(s) {', '.join(map(str, facts.seeds))}. {facts.picked}",
        f"Options: {options}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".",
    ]
    return "\n\n".join(lines)


def _objective(found: Mapping[str, Any]) -> str:
    return str((found.get("objective") or {}).get("name", "mean over exits"))


def _sweeps(found: Mapping[str, Any]) -> str:
    names = list(found.get("sweeps") or [found["sweep"]])
    return f"sweep{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _point(told: Mapping[str, Any], chosen: Chosen) -> Mapping[str, Any]:
    return next(p for p in told["chosen"] if (p["criterion"], p["threshold"]) == (chosen.criterion, chosen.threshold))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
