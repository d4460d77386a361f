"""Importance of each searched option, by Optuna's evaluators over the completed configurations."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tune.searchers.tpe import TpeSearcher
from tune.space import SweepSpec
from tune.store.history import Configuration, History
from tune.store.ranking import completed, score

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

#: The smallest number of configurations from which importance is computed.
LEAST = 8

#: The number of forests whose shares are averaged: a single one depends on its seed.
FORESTS = 5

#: PED-ANOVA compares the best quarter, at least this many configurations, with the others.
TOP, TOP_LEAST = 0.25, 4

#: The heading of the importance over all methods together.
TOGETHER = "all methods"


@dataclasses.dataclass(frozen=True)
class Share:
    """The importance of one option.

    Attributes:
        fanova: The share of the score's variance that its main effect explains, mean over forests.
        low: The lowest share of a forest.
        high: The highest share of a forest.
        ped_anova: Its share (all sum to 1) in what distinguishes the best configurations from the others.
    """

    fanova: float
    low: float
    high: float
    ped_anova: float


@dataclasses.dataclass(frozen=True)
class GroupImportance:
    """The importance of the options within one group of configurations."""

    configurations: int
    shares: Mapping[str, Share]


def importances(spec: SweepSpec, history: History) -> Mapping[str, GroupImportance]:
    """Compute the importance of options for the cross-validated score, per method and over all methods together.

    Functional ANOVA: Hutter et al., "An efficient approach for assessing hyperparameter importance", ICML 2014; main
    effects only, so the shares sum to less than 1 where options interact. PED-ANOVA: Watanabe et al., IJCAI 2023.
    An option that only some methods use is evaluated within those; `algorithm` itself over all together. A group with
    fewer than :data:`LEAST` completed configurations, or without variation, is missing.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else each study announces itself on the terminal
    finished = completed(history)
    groups: dict[str, History] = {}
    for c in finished:
        name = str(c.values["algorithm"])
        groups[name] = (*groups.get(name, ()), c)
    if len(groups) > 1:
        groups = {TOGETHER: finished, **groups}
    searcher = TpeSearcher(spec)
    by_group = {}
    for name, members in groups.items():
        common = set.intersection(*(set(c.values) for c in members))
        varied = sorted(key for key in common if len({c.values[key] for c in members}) > 1)
        means = [score(c).mean for c in members]
        if len(members) < LEAST or not varied or max(means) - min(means) < 1e-12:
            continue
        study = optuna.create_study(direction="maximize")
        study.add_trials([_trial(searcher, c) for c in members])
        by_group[name] = GroupImportance(len(members), _shares(study, varied, len(members)))
    return by_group


def _shares(study: Study, options: list[str], n: int) -> dict[str, Share]:
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    # Called directly: `get_param_importances` would normalise the main effects to sum to 1.
    forests = [FanovaImportanceEvaluator(seed=seed).evaluate(study, params=options) for seed in range(FORESTS)]
    top = PedAnovaImportanceEvaluator(target_quantile=max(TOP, TOP_LEAST / n))
    with warnings.catch_warnings():
        # If all top scores are equal, the evaluator gives all options the same share.
        warnings.filterwarnings("ignore", "Target and region quantiles select the same set")
        ped = get_param_importances(study, evaluator=top, params=options)
    each = {option: [float(forest[option]) for forest in forests] for option in options}
    return {
        option: Share(math.fsum(shares) / FORESTS, min(shares), max(shares), float(ped[option]))
        for option, shares in each.items()
    }


def _trial(searcher: TpeSearcher, c: Configuration) -> FrozenTrial:
    """Convert a configuration as the searcher does, with the logarithm of log-scale options: forests split plain values."""
    import optuna
    from optuna.distributions import FloatDistribution, IntDistribution

    trial = searcher.trial(c)
    params, distributions = dict(trial.params), dict(trial.distributions)
    for name, axis in trial.distributions.items():
        if isinstance(axis, FloatDistribution | IntDistribution) and axis.log:
            params[name] = math.log(params[name])
            distributions[name] = FloatDistribution(math.log(axis.low), math.log(axis.high))
    return optuna.trial.create_trial(value=trial.value, params=params, distributions=distributions)
