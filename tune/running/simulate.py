"""Simulate a pruner and a searcher on a sweep that ran without pruning.

The real driver decides (:class:`tune.running.driver.Driver`), on a ledger in memory. Reports arrive in the order in which
the given number of concurrent trials would have sent them, by the recorded seconds of their epochs.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import logging
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import numpy as np

from leebert import live
from leebert.config import TrainConfig
from leebert.console import sentence
from leebert.errors import ConfigError
from leebert.training_options import train_config
from tune.pruners import Pruner, make_pruner
from tune.running.driver import Driver
from tune.running.recording import RecordedConfiguration, Recording
from tune.searchers import Searcher, make_searcher
from tune.space import Budget, SweepSpec, config_id
from tune.store.history import History
from tune.store.ledger import LedgerRecord, SweepState
from tune.store.ranking import best, score

#: Recorded configurations by id.
#: The simulated driver's lines, of which there would be thousands, go nowhere.
_SILENT = logging.Logger("simulated")
_SILENT.addHandler(logging.NullHandler())

Configurations = Mapping[str, RecordedConfiguration]


@dataclasses.dataclass(frozen=True)
class SimulatedSweep:
    """One simulated sweep.

    Attributes:
        spent: Epochs trained, as a share of those of the whole sweep.
        regret: Validation score of the sweep's best configuration minus that of the one chosen, a fraction.
        pruned: The number of pruned configurations.
    """

    spent: float
    regret: float
    pruned: int


@dataclasses.dataclass(frozen=True)
class Simulation:
    """The simulated sweeps over many orders of the configurations.

    Attributes:
        sweep: Name of the recorded sweep.
        settings: Pruner, searcher and concurrency, JSON-ready.
        configurations: Number of recorded configurations.
        left_out: Number of configurations that were not completed.
        outcomes: One per order.
    """

    sweep: str
    settings: Mapping[str, Any]
    configurations: int
    left_out: int
    outcomes: tuple[SimulatedSweep, ...]

    def as_dict(self) -> dict[str, Any]:
        """Summarise them: shares in per cent, regrets in points of the score."""
        spent = [100 * o.spent for o in self.outcomes]
        regret = [100 * o.regret for o in self.outcomes]
        return {
            "sweep": self.sweep,
            **self.settings,
            "configurations": self.configurations,
            "left_out": self.left_out,
            "spent_pct": _spread(spent),
            "regret_points": _spread(regret),
            "best_picked_pct": 100 * float(np.mean([r < 1e-9 for r in regret])),
            "pruned": float(np.mean([o.pruned for o in self.outcomes])),
        }


def _spread(values: list[float]) -> dict[str, float]:
    low, high = np.quantile(values, [0.05, 0.95])
    return {"mean": float(np.mean(values)), "sd": float(np.std(values)), "p05": float(low), "p95": float(high)}


def simulate(
    recording: Recording, spec: SweepSpec, *, orders: int = 200, concurrent: int = 1, seed: int = 0
) -> Simulation:
    """Run the pruner and the searcher of `spec` on the recorded configurations, in `orders` random orders.

    Args:
        recording: The recorded sweep.
        spec: Its space with another pruner, searcher or budget (`budget.trials` and `budget.fold_epochs` count).
        orders: The number of simulated sweeps.
        concurrent: Trials at once.
        seed: The seed of the orders.

    Returns:
        The simulated sweeps.

    Raises:
        ConfigError: `spec` differs in anything that scores depend on, or its searcher could suggest a configuration that was
            not recorded.
    """
    recorded = recording.spec()
    if spec.model_copy(update={"searcher": recorded.searcher, "pruner": recorded.pruner}).digest != recorded.digest:
        raise ConfigError(
            "--set: a simulation may change only pruner, searcher and budget; recorded scores depend on the rest"
        )
    configurations = {config_id(c.values): c for c in recording.configurations}
    if spec.searcher.row.reads_scores:
        _check_whole(spec, configurations)
    pruner, budget = make_pruner(spec), Budget(trials=spec.budget.trials, fold_epochs=spec.budget.fold_epochs)
    epochs, top = sum(c.epochs for c in configurations.values()), max(c.score for c in configurations.values())
    outcomes = []
    for order in live.track(range(orders), "simulated sweeps"):
        searcher = _searcher(spec, configurations, Random(f"{seed}/{order}"))
        state = replay(configurations, spec.cells(), searcher, pruner, concurrent=concurrent, budget=budget)
        picked = score(best(state.history())).mean
        outcomes.append(SimulatedSweep(state.fold_epochs / epochs, top - picked, len(state.pruned)))
    settings = {
        "pruner": spec.measured()["pruner"],  # with the keys that older versions answered
        "searcher": spec.searcher.name,
        "orders": orders,
        "concurrent": concurrent,
        "seed": seed,
    }
    return Simulation(recording.name, settings, len(configurations), recording.left_out, tuple(outcomes))


def print_simulation(summary: Mapping[str, Any]) -> None:
    """Print :meth:`Simulation.as_dict` in a few lines."""
    spent, regret = summary["spent_pct"], summary["regret_points"]
    if summary["left_out"]:
        sentence(f"{summary['left_out']} configurations of {summary['sweep']} are not completed and are omitted")
    sentence(
        f"{summary['sweep']}: {summary['configurations']} configurations in {summary['orders']} orders, "
        f"{summary['concurrent']} at a time"
    )
    sentence(f"searcher {summary['searcher']}, pruner {summary['pruner']['name']}")
    sentence(
        f"trained {spent['mean']:.1f} % of the fold-epochs (sd {spent['sd']:.1f}; "
        f"{spent['p05']:.1f} to {spent['p95']:.1f} in 90 % of the orders)"
    )
    sentence(f"pruned  {summary['pruned']:.1f} configurations")
    sentence(
        f"score   {regret['mean']:.3f} points below the best on average (at most {regret['p95']:.2f} in 95 % of the orders)"
    )
    sentence(f"best    selected in {summary['best_picked_pct']:.0f} % of the orders")


def replay(
    configurations: Configurations,
    cells: tuple[tuple[int, int], ...],
    searcher: Searcher,
    pruner: Pruner,
    *,
    concurrent: int = 1,
    budget: Budget | None = None,
) -> SweepState:
    """Simulate one sweep over recorded configurations.

    Args:
        configurations: Recorded configurations by id.
        cells: (seed, fold) of every configuration.
        searcher: Suggests configurations.
        pruner: Decides after each epoch.
        concurrent: Trials at once.
        budget: When to stop.

    Returns:
        The state that the sweep's ledger would have.
    """
    driver = Driver(_Frame(cells), _Memory(), searcher, pruner, config_id=config_id, budget=budget, log=_SILENT)
    running: list[
        tuple[float, int, list[LedgerRecord], Iterator[tuple[float, list[LedgerRecord]]]]
    ] = []  # a heap, next report first
    trials = itertools.count()

    def schedule_next(now: float, trial: int, reports: Iterator[tuple[float, list[LedgerRecord]]]) -> bool:
        following = next(reports, None)
        if following is not None:
            heapq.heappush(running, (now + following[0], trial, following[1], reports))
        return following is not None

    def begin(now: float) -> None:
        trial = next(trials)
        attempt = driver.next_attempt(str(trial))
        if attempt is not None:
            schedule_next(now, trial, iter(configurations[attempt.config].reports))

    for _ in range(concurrent):
        begin(0.0)
    while running and not driver.stopping.reason():
        now, trial, records, reports = heapq.heappop(running)
        if not driver.receive(records) or not schedule_next(now, trial, reports):
            driver.trial_ended(str(trial))
            begin(now)
    driver.finish()
    return driver.state


@dataclasses.dataclass(frozen=True)
class InOrder:
    """Suggest given configurations (values by id) one after another, `limit` at most."""

    values: Mapping[str, Mapping[str, Any]]
    limit: int | None = None

    def suggest(self, history: History) -> dict[str, Any] | None:
        suggested = {c.id for c in history}
        if self.limit is not None and len(suggested) >= self.limit:
            return None
        return next((dict(v) for config, v in self.values.items() if config not in suggested), None)


def _searcher(spec: SweepSpec, configurations: Configurations, rng: Random) -> Searcher:
    if spec.searcher.row.reads_scores:
        options = spec.searcher.row.options.model_fields
        seeded = spec.searcher.model_copy(update={"seed": rng.randrange(2**31)} if "seed" in options else {})
        return make_searcher(spec.model_copy(update={"searcher": seeded}))
    # All orders of a random searcher's draws are equally probable; a grid's order is arbitrary.
    shuffled = rng.sample(list(configurations), len(configurations))
    return InOrder({config: configurations[config].values for config in shuffled}, spec.limit)


def _check_whole(spec: SweepSpec, configurations: Configurations) -> None:
    """Refuse a space of which configurations are not recorded, since a searcher that reads scores may suggest any of them."""
    if spec.size is None:
        raise ConfigError(
            f"--searcher {spec.searcher.name}: it would draw values from the space's ranges that were not recorded; simulate a sweep over a grid"
        )
    missing = sum(config_id(values) not in configurations for values in spec.configurations())
    if missing:
        raise ConfigError(
            f"--searcher {spec.searcher.name}: it may suggest any of the grid's {spec.size} configurations, of which {missing} are not recorded; "
            "simulate another searcher"
        )


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A study without files."""

    cells: tuple[tuple[int, int], ...]
    folder: str = ""
    keep_checkpoints: bool = True  # there are none to remove

    def train_config(self, values: Mapping[str, Any], seed: int) -> TrainConfig:
        return train_config({}, values, seed)


class _Memory:
    """A ledger without files: a simulation reads the driver's state only."""

    def read(self) -> SweepState:
        return SweepState()

    def driver_writer(self, driver: int) -> _Memory:
        return self

    def append(self, *records: Mapping[str, Any], sync: bool = True) -> list[LedgerRecord]:
        return [{"seq": 0, "time": 0.0, **record} for record in records]

    def close(self) -> None: ...

    def records_of(self, config: str, attempt: str) -> tuple[LedgerRecord, ...]:
        return ()
