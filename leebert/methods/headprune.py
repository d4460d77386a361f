"""Head pruning (Michel et al., NeurIPS 2019): attention heads are removed in the order of importance.

The original prunes a finished model; here the model trains for some epochs after each cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leebert.methods.common import cuts, first
from leebert.methods.finetune import first_stage
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make fine-tuning, then equal cuts down to `keep` of the heads; the cuts share `max_epochs`, at least one each."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage, shared_epochs
    from leebert.transforms import PruneHeads

    rounds = config.prune_rounds
    pruned = [
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
    return first_stage(config), *pruned


def costs(config: TrainConfig) -> list[tuple[int, float]]:
    """Count fine-tuning and all cuts together; attention is a third of a layer."""
    epochs, kept = cuts(config)
    return [first(config), (epochs, 1 - (1 - kept) / 3)]


METHOD = Method(
    name="headprune",
    title="head pruning",
    label="Head pruning",
    group="static",
    source="Michel et al., NeurIPS 2019",
    trains="fine-tuning; then rounds, each of which removes the least important attention heads and trains the pruned model",
    exits="never",
    cost="1, lower after each cut; plus one pass over all samples per cut",
    differs=(
        "the model trains after each of `prune_rounds` cuts, to recover; the original prunes a finished model; "
        "every layer keeps at least one head; with shared layers (ALBERT) a cut removes the head from all "
        "applications of the layer"
    ),
    options=frozenset({"keep", "prune_rounds", "first_epochs"}),
    stages=stages,
    costs=costs,
    colour="#e67e8f",
)
