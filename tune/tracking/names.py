"""Every metric, parameter and tag name that a sweep writes to MLflow, as data.

The page docs/metrics.md has the same names; a test compares them. In a pattern, ``{exit}`` is an exit's number from
01 (two digits at least: names then sort), ``{term}`` a training quantity, ``{option}`` an option of the search space,
``{split}`` an evaluated split such as dev, ``{measure}`` a system metric of MLflow, ``{criterion}`` an exit criterion.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from tune.analysis.labels import algorithm_label, option_text

RunKind = Literal["sweep", "config", "fold", "summary", "refit"]
Family = Literal["metric", "param", "tag"]

_PLACEHOLDERS = {
    "{exit}": r"\d{2,}",
    "{term}": r"\w+",
    "{option}": r"\w+",
    "{split}": r"\w+",
    "{measure}": r"\w+",
    "{criterion}": r"[\w-]+",
}


@dataclasses.dataclass(frozen=True)
class Name:
    """One entry of the list of names that a sweep writes to MLflow.

    Attributes:
        family: `metric`, `param` or `tag`.
        pattern: The name, with placeholders in braces.
        runs: Kinds of MLflow run that have it.
        unit: Its unit.
        step: What its steps count; `none`: a single value.
        meaning: One clause for the documents.
    """

    family: Family
    pattern: str
    runs: tuple[RunKind, ...]
    unit: str
    step: str
    meaning: str

    def matches(self, name: str) -> bool:
        regex = re.escape(self.pattern)
        for placeholder, allowed in _PLACEHOLDERS.items():
            regex = regex.replace(re.escape(placeholder), allowed)
        return re.fullmatch(regex, name) is not None


def _metric(pattern: str, run: RunKind, unit: str, step: str, meaning: str) -> Name:
    return Name("metric", pattern, (run,), unit, step, meaning)


def _tag(pattern: str, runs: tuple[RunKind, ...], meaning: str) -> Name:
    return Name("tag", pattern, runs, "", "", meaning)


#: Keys of the pictures of one summary's run, as MLflow's charts show them.
VERDICT = "verdict"
SPEED_UP_CURVES = "score against layer speed-up"
SCORE_BY_EXIT = "score by exit"
WEIGHTS_BY_EXIT = "weights by exit"
SCORES = "scores"
DIFFERENCES = "differences"
DIFFERENCES_BY_EXIT = "differences by exit"

PICTURES = (VERDICT, SPEED_UP_CURVES, SCORE_BY_EXIT, WEIGHTS_BY_EXIT, SCORES, DIFFERENCES, DIFFERENCES_BY_EXIT)

#: Metrics of configurations that charts show under their names: MLflow titles axes and line charts by metric.
MEAN_SCORE = "mean score in per cent"
SPEED_UP_AXIS = "layer speed-up"
SCORE_AXIS = "score in per cent"

_ALL: tuple[RunKind, ...] = ("sweep", "config", "fold", "summary", "refit")

NAMES: tuple[Name, ...] = (
    _metric("score/exit_{exit}", "fold", "fraction", "epoch", "validation score of the exit, by the task's metric"),
    _metric(
        "score/mean",
        "fold",
        "fraction",
        "epoch",
        "mean of the scores over exits; decides among epochs above the majority class",
    ),
    _metric("loss/exit_{exit}", "fold", "nats", "epoch", "validation cross-entropy of the exit"),
    _metric("omega_ce/exit_{exit}", "fold", "weight", "epoch", "ω of the exit's cross-entropy term"),
    _metric(
        "omega_kd/exit_{exit}", "fold", "weight", "epoch", "sum of ω over the terms in which the exit is a student"
    ),
    _metric("collapsed/exit_{exit}", "fold", "0 or 1", "epoch", "1 while the exit predicts one class for all samples"),
    _metric("train/{term}", "fold", "as named", "epoch", "epoch's mean of a training quantity, such as `loss_theta`"),
    _metric("theta_updates", "fold", "updates", "epoch", "θ updates since the start of the run"),
    _metric("seconds", "fold", "s", "epoch", "time that the epoch took, with its evaluation"),
    _metric("system/{measure}", "fold", "as named", "epoch", "use of CPU, memory or GPU; only with `system_metrics`"),
    _metric("depth/score", "config", "fraction", "layer", "mean over runs of the exit's score at the best epoch"),
    _metric("depth/omega_ce", "config", "weight", "layer", "mean over runs of its `omega_ce` at the best epoch"),
    Name(
        "metric",
        "depth/layer",
        ("config", "summary"),
        "layer",
        "layer",
        "the layer itself, to label the x-axis",
    ),
    _metric("cv/score_mean", "config", "fraction", "none", "score of the configuration: mean over its finished runs"),
    _metric("cv/score_std", "config", "fraction", "none", "standard deviation of the score over its finished runs"),
    _metric("cv/score_pct", "config", "per cent", "none", "the mean in per cent, for bar charts"),
    _metric(
        MEAN_SCORE, "config", "per cent", "none", "the same as `cv/score_pct`; MLflow titles axes by metrics' names"
    ),
    _metric("cv/score_std_pct", "config", "points", "none", "the standard deviation in points, for bar charts"),
    _metric(
        "cv/layers",
        "config",
        "layers",
        "none",
        "smallest mean exit layer with a score at most 1 point below full depth",
    ),
    _metric("cv/margin", "config", "fraction", "none", "mean margin of its scores over the majority class"),
    _metric("cv/cells", "config", "runs", "none", "finished runs: fewer than seeds × folds if pruned or stopped"),
    _metric("curve/layers", "config", "layers", "point", "mean exit layer under normalised entropy"),
    _metric(
        "curve/speed_up", "config", "ratio", "point", "layer speed-up (layers / mean exit layer) at `curve/layers`"
    ),
    _metric("curve/score_pct", "config", "per cent", "point", "the score at these points in per cent"),
    _metric(SPEED_UP_AXIS, "config", "ratio", "point", "the same as `curve/speed_up`, for the title of an axis"),
    _metric(SCORE_AXIS, "config", "per cent", "point", "the same as `curve/score_pct`, for the title of a chart"),
    _metric("curve/score", "config", "fraction", "point", "mean over runs of the score at `curve/layers`"),
    _metric("summary/score", "summary", "fraction", "layer", "the exit's mean score over a method's runs"),
    _metric("summary/score_low", "summary", "fraction", "layer", "lower end of its 95 % CI"),
    _metric("summary/score_high", "summary", "fraction", "layer", "upper end of its 95 % CI"),
    _metric("summary/exit_pct", "summary", "per cent", "layer", "the same mean in per cent"),
    _metric("summary/exit_pct_low", "summary", "per cent", "layer", "lower end of its 95 % CI"),
    _metric("summary/exit_pct_high", "summary", "per cent", "layer", "upper end of its 95 % CI"),
    _metric("summary/omega_ce", "summary", "weight", "layer", "mean over a method's runs of its `omega_ce`"),
    _metric("summary/omega_ce_low", "summary", "weight", "layer", "lower end of its 95 % CI"),
    _metric("summary/omega_ce_high", "summary", "weight", "layer", "upper end of its 95 % CI"),
    _metric("summary/score_pct", "summary", "per cent", "none", "the method's mean score over runs and exits"),
    _metric("summary/score_pct_low", "summary", "per cent", "none", "lower end of its 95 % CI"),
    _metric("summary/score_pct_high", "summary", "per cent", "none", "upper end of its 95 % CI"),
    _metric("summary/configs", "summary", "configurations", "none", "configurations that the summary is based on"),
    _metric("paired/diff", "summary", "fraction", "layer", "mean paired difference of two methods' scores"),
    _metric("paired/diff_low", "summary", "fraction", "layer", "lower end of its corrected 95 % CI"),
    _metric("paired/diff_high", "summary", "fraction", "layer", "upper end of its corrected 95 % CI"),
    _metric("paired/exit_points", "summary", "points", "layer", "the same difference in points"),
    _metric("paired/exit_points_low", "summary", "points", "layer", "lower end of its corrected 95 % CI"),
    _metric("paired/exit_points_high", "summary", "points", "layer", "upper end of its corrected 95 % CI"),
    _metric("paired/diff_pct", "summary", "points", "none", "mean paired difference of the means over exits"),
    _metric("paired/diff_pct_low", "summary", "points", "none", "lower end of its corrected 95 % CI"),
    _metric("paired/diff_pct_high", "summary", "points", "none", "upper end of its corrected 95 % CI"),
    _metric("paired/pairs", "summary", "pairs", "none", "complete pairs that the difference is based on"),
    _metric("on_{split}/score", "refit", "fraction", "layer", "the exit's score on a split, after all training"),
    _metric("on_{split}/score_mean", "refit", "fraction", "none", "mean of the scores over exits"),
    _metric("on_{split}/majority", "refit", "fraction", "none", "the majority class's score on the split"),
    _metric(
        "on_{split}/{criterion}_layers",
        "refit",
        "layers",
        "point",
        "mean exit layer under the exit criterion",
    ),
    _metric(
        "on_{split}/{criterion}_score",
        "refit",
        "fraction",
        "point",
        "score under the exit criterion at these layers",
    ),
    _metric(
        "on_{split}/{criterion}_speed_up",
        "refit",
        "ratio",
        "none",
        "layer speed-up (layers / mean exit layer) at the chosen threshold",
    ),
    _metric(
        "on_{split}/{criterion}_ms",
        "refit",
        "ms",
        "none",
        "wall-clock time per sample at that threshold, one at a time",
    ),
    Name("param", "{option}", ("refit",), "as in the space", "", "each training option, and the exit criterion"),
    Name("param", "{option}", ("config",), "as in the space", "", "each value of the configuration, `algorithm` too"),
    Name(
        "param",
        "variant",
        ("config",),
        "text",
        "",
        "`CLO-v2 C=4`, `BLO`: MLflow drops a run that lacks an axis's option",
    ),
    Name("param", "log10_lr_theta", ("config",), "log10", "", "MLflow's scatter plots have no logarithmic axis"),
    Name("param", "log10_lr_omega", ("config",), "log10", "", "the same for ω's learning rate"),
    Name("param", "{option}", ("sweep",), "as in the space", "", "settings of the whole sweep, such as folds"),
    _tag("sweep", _ALL, "name of the sweep"),
    _tag("task", _ALL, "name of the task"),
    _tag("kind", _ALL, "`sweep`, `config`, `fold`, `summary` or `refit`"),
    _tag("algorithm", ("config", "fold", "summary", "refit"), "the method as the search space spells it"),
    _tag("approach", ("config", "fold", "summary", "refit"), "the method as the paper spells it: group by this"),
    _tag("config", ("config", "fold", "refit"), "digest of the configuration, the same in every sweep"),
    _tag("seed", ("fold", "refit"), "seed of the run, or of the refit"),
    _tag("fold", ("fold",), "validation fold of the run"),
    _tag("attempt", ("fold",), "newest attempt: above 1 after a restart"),
    _tag("placement", ("fold",), "how that attempt ran after memory ran out: alone, in micro-batches"),
    _tag("outcome", ("config",), "`complete`, `pruned`, `failed` or `stopped`: MLflow has no status for pruned"),
    _tag("nonfinite", ("config", "fold", "summary"), "number of NaN or infinite values, which no chart shows"),
    _tag("label", ("summary",), "subject of the summary, unique within the sweep"),
    _tag("best_digest", ("refit",), "digest of the best file"),
    _tag("code", ("refit",), "version of this package, and a digest of its sources"),
    _tag("verdict", ("sweep",), "the verdict on the first two methods, in a sentence"),
    _tag("mlflow.loggedImages", ("summary",), "`True` with pictures, which lie in the run's artifacts"),
    _tag("digest", ("summary",), "digest of its contents: an unchanged summary is not written again"),
    _tag(
        "mlflow.parentRunId",
        ("config", "fold", "summary"),
        "the parent run: the sweep of a configuration, the configuration of a fold",
    ),
    _tag(
        "mlflow.runColor",
        ("config", "fold", "summary", "refit"),
        "the method's or the comparison's colour in charts",
    ),
    _tag("mlflow.source.name", ("sweep", "config", "fold", "refit"), "the program"),
    _tag("mlflow.source.type", ("sweep", "config", "fold", "refit"), "`LOCAL`"),
    _tag("mlflow.source.git.commit", ("sweep", "config", "fold", "refit"), "git commit of the program, if it has one"),
    _tag("mlflow.note.content", ("sweep", "summary", "refit"), "the description on the run's page"),
)


def find(family: Family, name: str) -> Name | None:
    """Return the entry of a name, exact names before patterns; None for an unlisted name."""
    lines = [line for line in NAMES if line.family == family and line.matches(name)]
    return min(lines, key=lambda line: "{" in line.pattern, default=None)


def exit_metric(quantity: str, exit: int) -> str:
    """Return the name of an exit's metric: ``exit_metric("score", 3)`` is ``"score/exit_03"``.

    Args:
        quantity: First part of the name.
        exit: The exit, from 1.

    Raises:
        ValueError: The exit is below 1.
    """
    if exit < 1:
        raise ValueError(f"exits count from 1 in names, not from {exit}")
    return f"{quantity}/exit_{exit:02d}"


def config_prefix(algorithm: str, index: int) -> str:
    """Return ``CLO-v2 04``, the start of the run names of a configuration and its folds (MLflow shows 20 characters)."""
    return f"{algorithm_label(algorithm)} {index:02d}"


def config_run_name(index: int, values: Mapping[str, Any]) -> str:
    """Return ``CLO-v2 04 · λ1=0.0001 C=4``: unique in the sweep by its index, and legible in legends.

    Args:
        index: Number of the configuration, in the order of suggestion, from 0.
        values: The configuration's values.
    """
    options = [option_text(option, value) for option, value in values.items() if option != "algorithm"]
    prefix = config_prefix(str(values.get("algorithm", "")), index)
    return f"{prefix} · {' '.join(options)}" if options else prefix


def prefix_of(run_name: str) -> str:
    """Return the prefix of a configuration's run name: a resumed sweep names new folds like the old ones."""
    return run_name.split(" · ")[0]


def fold_run_name(prefix: str, seed: int, fold: int) -> str:
    """Return ``CLO-v2 04 s0 f1``.

    Args:
        prefix: What :func:`config_prefix` returned.
        seed: Seed of the run.
        fold: Validation fold of the run.
    """
    return f"{prefix} s{seed} f{fold}"


def refit_run_name(task: str, algorithm: str, seed: int, number: int = 1) -> str:
    """Return ``Refit · mrpc CLO-v2 s0``, with ``no. 2`` and so on for further runs of that name.

    Args:
        task: Name of the task.
        algorithm: Name of the method.
        seed: Seed of the model.
        number: Number of the run among those of this name, from 1.
    """
    return f"Refit · {task} {algorithm_label(algorithm)} s{seed}" + (f" no. {number}" if number > 1 else "")


def summary_run_name(label: str) -> str:
    """Return ``Summary · CLO-v2 minus BLO``."""
    return f"Summary · {label}"


def config_params(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's values, the logarithms of its learning rates, and its method with C as `variant`."""
    params = dict(values)
    if "algorithm" in values:
        cycle = values.get("cycle_length")
        params["variant"] = algorithm_label(str(values["algorithm"])) + (f" C={cycle}" if cycle is not None else "")
    for key in ("lr_theta", "lr_omega"):
        rate = values.get(key)
        if isinstance(rate, int | float) and rate > 0:
            params[f"log10_{key}"] = round(math.log10(rate), 4)
    return params
