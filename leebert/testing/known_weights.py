"""Train a method on a problem whose right loss weights are known (:mod:`leebert.data.synthetic.known_weights`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from leebert.config import TrainConfig
from leebert.data.synthetic.known_weights import KnownWeights
from leebert.evaluate import record_all
from leebert.metrics import per_exit
from leebert.objective import ExitObjective
from leebert.optim.fixed import Fixed
from leebert.runtime import Runtime
from leebert.stages import Stage, method
from leebert.train import fit
from leebert.weights import PARAMETRISATIONS, Terms


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a method on a problem, for one seed.

    Attributes:
        scores: (M,) test score of each exit, fractions.
        score: The mean over the scored exits.
        terms: The layout of the terms.
        marked: (n,) bool, the terms whose worth is known.
        weights: (epochs, n) weights of all terms at the end of each epoch; 1 at the start.
        ended: Why training ended; `diverged` leaves chance scores.
        seconds: Seconds of training and scoring.
    """

    scores: np.ndarray
    score: float
    terms: Terms
    marked: np.ndarray
    weights: np.ndarray
    ended: str
    seconds: float

    @property
    def marked_weights(self) -> np.ndarray:
        """Mean weight of the marked terms at the end of each epoch, (epochs,); uniform weights have 1.

        A distillation term counts with its factor 1/(M·|T(m)|) in eq. 5.
        """
        factor = torch.cat([torch.ones(self.terms.num_exits), self.terms.scale.float()]).numpy()[self.marked]
        return np.asarray(self.weights[:, self.marked] @ factor / factor.sum())

    @property
    def marked_weight(self) -> float:
        """Their mean weight at the end."""
        return float(self.marked_weights[-1])


def trained(
    problem: KnownWeights,
    algorithm: str = "uniform-d1",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    marked_weight: float | None = None,
) -> Outcome:
    """Train a method on a problem and score its exits on clean samples.

    Equal seeds give the same samples, batches, dropout masks and initial network, so that methods on D1 can be compared in
    pairs with `uniform-d1`.

    Args:
        problem: The problem.
        algorithm: The method.
        options: Further training options; they replace the problem's.
        seed: Seed of the problem, of the network and of training.
        marked_weight: Fix the weights instead: this value for the marked terms and 1 for the others, on the batches of
            `uniform-d1`.

    Returns:
        Scores and weights.
    """
    started = time.perf_counter()
    settings = {**problem.training(), **(options or {}), "algorithm": algorithm, "seed": seed}
    config, runtime = TrainConfig.model_validate(settings), Runtime.of("fp32", "cpu")
    stages = method(config, problem.num_exits)
    terms = ExitObjective.of(config, problem.num_exits).layout
    marked = problem.marked(terms)
    if marked_weight is not None:
        stages = (_fixed(config, problem.num_exits, torch.where(marked, marked_weight, 1.0)),)
    result = fit(problem.model(seed), problem.samples(seed), config, stages=stages, runtime=runtime)
    recorded = record_all(result.model, problem.samples(seed, "test"), runtime, config.eval_batch_size)
    assert recorded.labels is not None
    scores = per_exit(problem.metric, recorded.labels, np.nan_to_num(recorded.logits))["score"]
    last = [report for report in result.reports if report.stage == stages[-1].name]
    weights = np.stack([w for report in last if (w := report.term_weights) is not None])
    score = float(scores[list(problem.scored)].mean())
    return Outcome(scores, score, terms, marked.numpy(), weights, result.ended, time.perf_counter() - started)


def _fixed(config: TrainConfig, num_exits: int, weights: torch.Tensor) -> Stage:
    """Make the stage of `uniform-d1` with other fixed weights, (n,)."""
    objective = dataclasses.replace(
        ExitObjective.of(config, num_exits),
        fixed=tuple(weights.tolist()),
        parametrisation=PARAMETRISATIONS["raw"],
    )
    return Stage("joint", objective, Fixed(splits_data=True))
