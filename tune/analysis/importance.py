"""How much each searched option matters, by Optuna's evaluators over the complete configurations."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tune.searchers.tpe import TpeSearcher
from tune.space import SweepSpec
from tune.store.history import Configuration, History
from tune.store.ranking import complete, score

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

#: Fewer configurations than this say nothing about importance.
LEAST = 8

#: Forests whose shares are averaged: one alone depends on its seed.
FORESTS = 5

#: PED-ANOVA asks what led among the best quarter, of so many at least.
TOP, TOP_LEAST = 0.25, 4

#: The heading of what is taken over all algorithms together.
TOGETHER = "all algorithms"


@dataclasses.dataclass(frozen=True)
class Share:
    """Of one option: the share of the score's variance that its main effect explains, from the lowest to the highest
    forest; and its part (all sum to 1) in what tells the best configurations from the others, by PED-ANOVA."""

    fanova: float
    low: float
    high: float
    ped_anova: float


@dataclasses.dataclass(frozen=True)
class GroupImportance:
    """The options of one group of so many configurations."""

    configurations: int
    shares: Mapping[str, Share]


def importances(spec: SweepSpec, history: History) -> Mapping[str, GroupImportance]:
    """Per algorithm, and over all together, what matters for the cross-validated score; empty where too little is known.

    Functional ANOVA: Hutter et al., "An efficient approach for assessing hyperparameter importance", ICML 2014; main
    effects only, so the shares sum to less than 1 where options interact. PED-ANOVA: Watanabe et al., IJCAI 2023.
    Options that only some algorithms use are seen within those alone; `algorithm` itself over all together.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else each study announces itself on the terminal
    finished = complete(history)
    groups: dict[str, History] = {}
    for c in finished:
        name = str(c.values["algorithm"])
        groups[name] = (*groups.get(name, ()), c)
    if len(groups) > 1:
        groups = {TOGETHER: finished, **groups}
    searcher = TpeSearcher(spec)
    found = {}
    for name, members in groups.items():
        common = set.intersection(*(set(c.values) for c in members))
        varied = sorted(key for key in common if len({c.values[key] for c in members}) > 1)
        means = [score(c).mean for c in members]
        if len(members) < LEAST or not varied or max(means) - min(means) < 1e-12:
            continue
        study = optuna.create_study(direction="maximize")
        study.add_trials([_trial(searcher, c) for c in members])
        found[name] = GroupImportance(len(members), _shares(study, varied, len(members)))
    return found


def _shares(study: Study, options: list[str], n: int) -> dict[str, Share]:
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    # Asked directly: what stands around the evaluator would have main effects sum to 1.
    forests = [FanovaImportanceEvaluator(seed=seed).evaluate(study, params=options) for seed in range(FORESTS)]
    top = PedAnovaImportanceEvaluator(target_quantile=max(TOP, TOP_LEAST / n))
    with warnings.catch_warnings():
        # Equal scores throughout the top leave it with nothing to tell: it gives all options the same share.
        warnings.filterwarnings("ignore", "Target and region quantiles select the same set")
        ped = get_param_importances(study, evaluator=top, params=options)
    each = {option: [float(forest[option]) for forest in forests] for option in options}
    return {
        option: Share(math.fsum(shares) / FORESTS, min(shares), max(shares), float(ped[option]))
        for option, shares in each.items()
    }


def _trial(searcher: TpeSearcher, c: Configuration) -> FrozenTrial:
    """As the searcher sees it, but with the logarithm itself of what is searched on a log scale: forests split plain
    values."""
    import optuna
    from optuna.distributions import FloatDistribution, IntDistribution

    told = searcher.trial(c)
    params, distributions = dict(told.params), dict(told.distributions)
    for name, axis in told.distributions.items():
        if isinstance(axis, FloatDistribution | IntDistribution) and axis.log:
            params[name] = math.log(params[name])
            distributions[name] = FloatDistribution(math.log(axis.low), math.log(axis.high))
    return optuna.trial.create_trial(value=told.value, params=params, distributions=distributions)
