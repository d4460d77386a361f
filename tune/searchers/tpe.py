"""The tree-structured Parzen estimator (Bergstra et al., 2011) of Optuna, through its ask-and-tell interface.

The study is in memory and rebuilt from the history for every suggestion. A stored study could contradict the ledger after a
crash.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leebert.methods import applies
from tune.searchers.random import RandomSearcher
from tune.space import SweepSpec, config_id
from tune.space.plugins import Drawn, SearcherPlugin
from tune.space.values import Range, Values
from tune.store.history import Cell, Configuration, History

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

#: Number of random configurations before the first model.
STARTUP = 10
#: Proposals per suggestion before a random draw is used.
ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class TpeSearcher:
    """Models the density of good configurations and suggests from it, after :data:`STARTUP` random ones.

    The method is a categorical value. An option that only some methods use is sampled only under these. Options that all
    methods use are modelled jointly, the others independently.

    Attributes:
        spec: The search space.
        seed: Random seed.
    """

    spec: SweepSpec
    seed: int = 0

    def suggest(self, history: History) -> dict[str, Any] | None:
        drawn = self._at_random.suggest(history)
        if drawn is None or sum(c.state in ("complete", "pruned") for c in history) < STARTUP:
            return drawn
        study = self.study(history)
        suggested = {configuration.id for configuration in history}
        for _ in range(ATTEMPTS):
            # A rejected proposal stays in the study as running, so that the next ones differ from it.
            values = self._ask(study)
            if config_id(values) not in suggested:
                return values
        return drawn

    @functools.cached_property
    def _at_random(self) -> RandomSearcher:
        return RandomSearcher(self.spec, self.seed)

    def study(self, history: History) -> Study:
        """Make an Optuna study of the history."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise Optuna reports each new study
        seed = hashlib.sha256(f"{self.seed}/{len(history)}".encode()).digest()[:4]
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=1,
            multivariate=True,
            constant_liar=True,
            seed=int.from_bytes(seed),
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for configuration in history:
            study.add_trial(self.trial(configuration))
        return study

    def _ask(self, study: Study) -> dict[str, Any]:
        trial = study.ask()
        algorithm = _suggest(trial, "algorithm", _categories(self.spec.algorithms))
        chosen: dict[str, Any] = {}
        for option, values in self.spec.space.items():
            if applies(option, algorithm):
                chosen[option] = _decoded(values, _suggest(trial, option, _axis(values)))
        return {"algorithm": algorithm, **chosen}

    def trial(self, configuration: Configuration) -> FrozenTrial:
        """Convert a configuration to an Optuna trial."""
        import optuna

        values = configuration.values
        swept = {option: axis for option, axis in self.spec.space.items() if option in values}
        state, value, reported = self._outcome(configuration)
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=value,
            params={"algorithm": values["algorithm"], **{o: _encoded(axis, values[o]) for o, axis in swept.items()}},
            distributions={
                "algorithm": _categories(self.spec.algorithms),
                **{option: _axis(axis) for option, axis in swept.items()},
            },
            intermediate_values=reported,
        )

    def _outcome(self, configuration: Configuration) -> tuple[str, float | None, dict[int, float]]:
        """Return a trial's state in Optuna, its value, and the values of a pruned trial by epoch.

        A pruned trial never counts as complete, since its mean is over other runs. A diverged one counts as pruned before its
        first epoch, which ranks it last; as failed, Optuna would ignore it and sample nearby again.
        """
        if any(cell.state == "diverged" for cell in configuration.cells):
            return "PRUNED", None, {}
        if configuration.state == "running":
            return "RUNNING", None, {}
        if configuration.state == "pruned":
            return "PRUNED", None, _means(configuration.cells, self.spec.max_epochs)
        if configuration.state == "failed" or not configuration.scores:
            return "FAIL", None, {}
        return "COMPLETE", math.fsum(configuration.scores) / len(configuration.scores), {}


def _means(cells: tuple[Cell, ...], max_epochs: int) -> dict[int, float]:
    """Compute, by number of epochs so far, the mean over runs of their best scores so far."""
    means: dict[int, float] = {}
    finished: list[float] = []
    for position, cell in enumerate(cells):
        best = -math.inf
        for report in cell.epochs:
            best = max(best, report.score)
            means[position * max_epochs + report.epoch + 1] = math.fsum((*finished, best)) / (len(finished) + 1)
        finished.append(best)
    return {epochs: mean for epochs, mean in means.items() if math.isfinite(mean)}


def _levels(values: Values) -> tuple[Any, ...] | None:
    """Return numeric values as levels in rising order; None for names, booleans and ranges without steps."""
    if isinstance(values, Range):
        return values.listed() if values.step is not None else None
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values)
    return tuple(sorted(values.values)) if numeric else None


def _axis(values: Values) -> BaseDistribution:
    """Convert an option to an Optuna distribution. Listed numbers become levels, since categories have no order."""
    from optuna.distributions import FloatDistribution, IntDistribution

    levels = _levels(values)
    if levels is not None:
        return IntDistribution(0, len(levels) - 1)
    if not isinstance(values, Range):
        return _categories(values.values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _categories(names: Sequence[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution

    return CategoricalDistribution(tuple(names))


def _encoded(values: Values, value: Any) -> Any:
    levels = _levels(values)
    return value if levels is None else levels.index(value)


def _decoded(values: Values, value: Any) -> Any:
    levels = _levels(values)
    return value if levels is None else levels[value]


def _suggest(trial: Trial, name: str, axis: BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(axis, CategoricalDistribution):
        return trial.suggest_categorical(name, axis.choices)
    if isinstance(axis, IntDistribution):
        return trial.suggest_int(name, axis.low, axis.high, log=axis.log)
    assert isinstance(axis, FloatDistribution)
    return trial.suggest_float(name, axis.low, axis.high, log=axis.log)


SEARCHER = SearcherPlugin(
    name="tpe",
    title="ten random configurations (as `random`), then those of Optuna's TPE",
    source="Bergstra et al., NeurIPS 2011",
    make=lambda spec, options: TpeSearcher(spec, options.seed),
    options=Drawn,
    needs="as for `random`",
)
