"""COST-EFF (Shen et al., EMNLP 2022): an encoder of reduced width whose exits imitate an uncut assistant.

The exit criterion is entropy. The original prunes one head per round and raises the learning rate from round to round;
here all rounds make equal cuts at one rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leebert.methods.common import cuts, first
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage

#: Share of a round that imitates only states (the original: 0.5 for MRPC and CoLA, 0.7 for larger tasks).
_STATES_FIRST = 0.5


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make a fine-tuned backbone → a multi-exit assistant of its size → rounds of cuts → recovery.

    The rounds share `max_epochs`, at least one each; the recovery has as many again.
    """
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage, finetuning, shared_epochs
    from leebert.students import StudentObjective
    from leebert.transforms import Slenderise

    rounds = config.prune_rounds
    finetuned = finetuning(config, num_exits)
    assistant = StudentObjective(
        num_exits,
        hard=0.5,
        soft=0.5,
        states=1.0,
        temperature=config.temperature,
        imitated="all",
        predictions_from=1 / 3,
    )
    slender = StudentObjective(
        num_exits, hard=0.0, soft=1.0, states=1.0, temperature=config.temperature, imitated="all",
        same_exit=True, predictions_from=_STATES_FIRST,
    )  # fmt: skip
    return (
        finetuned,
        Stage("assistant", assistant, Fixed(), teacher=finetuned.name, epochs=config.first_epochs, stops_early=False),
        *(
            Stage(
                f"slender-{cut}",
                slender,
                Fixed(),
                transform=Slenderise(1 - (1 - config.keep) * cut / rounds),
                teacher="assistant",
                epochs=epochs,
                stops_early=False,
            )
            for cut, epochs in enumerate(shared_epochs(config, rounds), start=1)
        ),
        # Its first half imitates states only, so scores can't decide early stopping.
        Stage("recovery", slender, Fixed(), teacher="assistant", stops_early=False),
    )


def costs(config: TrainConfig) -> list[tuple[int, float]]:
    """Count fine-tuning, the assistant, all rounds of pruning, and the recovery."""
    finetuned, (epochs, kept) = first(config), cuts(config)
    return [finetuned, (finetuned[0], 4 / 3), (epochs, 1 / 3 + kept), (config.max_epochs, 1 / 3 + config.keep)]


METHOD = Method(
    name="cost-eff",
    title="COST-EFF",
    label="COST-EFF",
    group="early exit",
    source="Shen et al., EMNLP 2022",
    trains=(
        "fine-tuning; then a teaching assistant with an exit on every layer, distilled from the fine-tuned model; then "
        "rounds of pruning (heads, feed-forward width, embedding rank), in which each exit is distilled from the "
        "assistant's exit at the same layer"
    ),
    exits="entropy",
    cost="1, then 4/3, then falling to 1/3 + `keep`; plus one pass over all samples per cut",
    differs=(
        "rounds make equal cuts at one learning rate, because they share `max_epochs`; the original cuts one head "
        "per round and raises the rate; the state loss sums over embeddings and layers, as in the original; the "
        "assistant imitates states throughout its stage, not in its first third only; the first half of a round "
        "imitates states only, for every task (the original: 0.7 for larger tasks); gradient equilibrium is off "
        "unless `gradient_equilibrium` is set; with shared layers (ALBERT) a cut applies to all applications of "
        "the layer, and factorised embeddings stay as they are"
    ),
    options=frozenset({"keep", "prune_rounds", "first_epochs", "temperature", "gradient_equilibrium"}),
    stages=stages,
    costs=costs,
    colour="#5a4be1",
)
