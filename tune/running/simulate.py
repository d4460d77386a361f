"""What a pruner and a searcher would have done to a sweep that was recorded without pruning.

The decisions are the real driver's (:class:`tune.running.driver.Driver`), on a ledger in memory: reports come in the order in
which so many trials at once would have sent them, by the recorded seconds of their epochs.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import numpy as np

from leebert.config import TrainConfig
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

#: Configurations by id, and what a trial of each would report: (seconds, records) per epoch.
Configurations = Mapping[str, RecordedConfiguration]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One simulated sweep: share of the fold-epochs spent, how far its pick is behind the best, how many were pruned."""

    spent: float
    regret: float
    pruned: int


@dataclasses.dataclass(frozen=True)
class Simulation:
    """The outcomes over many orders."""

    sweep: str
    settings: Mapping[str, Any]
    configurations: int
    left_out: int
    outcomes: tuple[Outcome, ...]

    def as_dict(self) -> dict[str, Any]:
        """What they come to: shares in per cent, regrets in points of the score."""
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

    Its `budget.trials` and `budget.fold_epochs` count, too. Where it would measure other things, or its searcher could
    propose what was not recorded, it is a ConfigError.
    """
    recorded = recording.spec()
    if spec.model_copy(update={"searcher": recorded.searcher, "pruner": recorded.pruner}).digest != recorded.digest:
        raise ConfigError("--set: a simulation may change pruner, searcher and budget only: the rest has been measured")
    known = {config_id(c.values): c for c in recording.configurations}
    if spec.searcher.row.reads_scores:
        _check_whole(spec, known)
    pruner, budget = make_pruner(spec), Budget(trials=spec.budget.trials, fold_epochs=spec.budget.fold_epochs)
    epochs, top = sum(c.epochs for c in known.values()), max(c.score for c in known.values())
    outcomes = []
    for order in range(orders):
        searcher = _searcher(spec, known, Random(f"{seed}/{order}"))
        state = replay(known, spec.cells(), searcher, pruner, concurrent=concurrent, budget=budget)
        picked = score(best(state.history())).mean
        outcomes.append(Outcome(state.fold_epochs / epochs, top - picked, len(state.pruned)))
    settings = {
        "pruner": spec.pruner.model_dump(),
        "searcher": spec.searcher.name,
        "orders": orders,
        "concurrent": concurrent,
        "seed": seed,
    }
    return Simulation(recording.name, settings, len(known), recording.left_out, tuple(outcomes))


def print_simulation(told: Mapping[str, Any]) -> None:
    """:meth:`Simulation.as_dict` in a few lines."""
    spent, regret = told["spent_pct"], told["regret_points"]
    if told["left_out"]:
        print(f"{told['left_out']} configurations of {told['sweep']} are not complete and left out")
    print(
        f"{told['sweep']}: {told['configurations']} configurations in {told['orders']} orders, "
        f"{told['concurrent']} at a time; searcher {told['searcher']}, pruner {told['pruner']['name']}"
    )
    print(
        f"spent   {spent['mean']:.1f} % of the fold-epochs (sd {spent['sd']:.1f}, "
        f"5 % to 95 % of the orders: {spent['p05']:.1f} to {spent['p95']:.1f})"
    )
    print(f"pruned  {told['pruned']:.1f} configurations")
    print(
        f"picked  {regret['mean']:.3f} points below the best (95 % of the orders: at most {regret['p95']:.2f}); "
        f"the best itself in {told['best_picked_pct']:.0f} %"
    )


def replay(
    known: Configurations,
    cells: tuple[tuple[int, int], ...],
    searcher: Searcher,
    pruner: Pruner,
    *,
    concurrent: int = 1,
    budget: Budget | None = None,
) -> SweepState:
    """One sweep over recorded configurations, `concurrent` at a time; what its ledger would say."""
    driver = Driver(
        _Frame(cells), _Memory(), searcher, pruner, config_id=config_id, budget=budget, say=lambda line: None
    )
    running: list[
        tuple[float, int, list[LedgerRecord], Iterator[tuple[float, list[LedgerRecord]]]]
    ] = []  # a heap, next report first
    trials = itertools.count()

    def go_on(now: float, trial: int, reports: Iterator[tuple[float, list[LedgerRecord]]]) -> bool:
        following = next(reports, None)
        if following is not None:
            heapq.heappush(running, (now + following[0], trial, following[1], reports))
        return following is not None

    def begin(now: float) -> None:
        trial = next(trials)
        attempt = driver.next_attempt(str(trial))
        if attempt is not None:
            go_on(now, trial, iter(known[attempt.config].reports))

    for _ in range(concurrent):
        begin(0.0)
    while running and not driver.stop_reason():
        now, trial, records, reports = heapq.heappop(running)
        if not driver.receive(records) or not go_on(now, trial, reports):
            driver.gone(str(trial))
            begin(now)
    driver.finish()
    return driver.state


@dataclasses.dataclass(frozen=True)
class InOrder:
    """Proposes configurations one after the other, `limit` at most."""

    values: Mapping[str, Mapping[str, Any]]  # by id
    limit: int | None = None

    def suggest(self, history: History) -> dict[str, Any] | None:
        suggested = {c.id for c in history}
        if self.limit is not None and len(suggested) >= self.limit:
            return None
        return next((dict(v) for config, v in self.values.items() if config not in suggested), None)


def _searcher(spec: SweepSpec, known: Configurations, rng: Random) -> Searcher:
    if spec.searcher.row.reads_scores:
        options = spec.searcher.row.options.model_fields
        seeded = spec.searcher.model_copy(update={"seed": rng.randrange(2**31)} if "seed" in options else {})
        return make_searcher(spec.model_copy(update={"searcher": seeded}))
    # A random searcher's draws may come in any order, all equally probable; a grid's order is arbitrary.
    shuffled = rng.sample(list(known), len(known))
    return InOrder({config: known[config].values for config in shuffled}, spec.limit)


def _check_whole(spec: SweepSpec, known: Configurations) -> None:
    """A searcher that reads scores may propose any configuration of the space: all must have been recorded."""
    if spec.size is None:
        raise ConfigError(
            f"--searcher {spec.searcher.name}: it would draw from the space's ranges what was not recorded; record a grid"
        )
    missing = sum(config_id(values) not in known for values in spec.configurations())
    if missing:
        raise ConfigError(
            f"--searcher {spec.searcher.name}: it may propose any of the grid's {spec.size} configurations, and the record lacks {missing}"
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
    """A ledger that keeps nothing: the driver's own state holds all that a simulation reads."""

    def read(self) -> SweepState:
        return SweepState()

    def driver_writer(self, driver: int) -> _Memory:
        return self

    def append(self, *records: Mapping[str, Any], sync: bool = True) -> list[LedgerRecord]:
        return [{"seq": 0, "time": 0.0, **record} for record in records]

    def close(self) -> None: ...

    def records_of(self, config: str, attempt: str) -> tuple[LedgerRecord, ...]:
        return ()
