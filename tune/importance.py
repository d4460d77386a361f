"""How much each searched option matters, by Optuna's functional ANOVA over the complete configurations."""

from __future__ import annotations

from collections.abc import Mapping

from tune.history import History
from tune.searchers.tpe import TpeSearcher
from tune.select import complete
from tune.space import SweepSpec

#: Fewer configurations than this say nothing about importance.
LEAST = 4

#: The heading of what is taken over all algorithms together.
TOGETHER = "all algorithms"


def importances(spec: SweepSpec, history: History) -> Mapping[str, Mapping[str, float]]:
    """Option → share of the variance of the cross-validated score (0 to 1, they sum to 1), per algorithm.

    Options that only some algorithms use are seen within those alone; `algorithm` itself over all together. Hutter et
    al., "An efficient approach for assessing hyperparameter importance", ICML 2014. Empty where too little is known.
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
    found = {}
    searcher = TpeSearcher(spec)
    for name, members in groups.items():
        varied = {key for key in members[0].values if len({c.values.get(key) for c in members}) > 1}
        scores = {c.scores for c in members}
        if len(members) < LEAST or not varied or len(scores) < 2:
            continue
        study = optuna.create_study(direction="maximize")
        for c in members:
            study.add_trial(searcher.trial(c))
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
        found[name] = {option: float(share) for option, share in shares.items() if option in varied}
    return found
