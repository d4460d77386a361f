"""Head pruning (Michel et al., NeurIPS 2019): attention heads go by first-order importance, the least important first.

The original prunes a finished model; here some epochs of training follow each cut.
"""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.methods.finetune import first_stage
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage, shared_epochs
from leebert.transforms import PruneHeads


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Fine-tuning, then equal cuts down to `keep` of the heads; `max_epochs` are shared among them, at least one each."""
    rounds = config.prune_rounds
    cuts = [
        Stage(
            f"prune-{cut}",
            ExitObjective.weighted([1.0]),
            Fixed(),
            transform=PruneHeads(1 - (1 - config.keep) * cut / rounds),
            epochs=epochs,
            stops_early=cut == rounds,
        )
        for cut, epochs in enumerate(shared_epochs(config, rounds), start=1)
    ]
    return first_stage(config), *cuts
