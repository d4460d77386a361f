"""BERT-of-Theseus (Xu et al., EMNLP 2020): successors randomly replace groups of a fine-tuned predecessor's layers.

Successors start as the predecessor's first layers and learn from labels only. Embeddings and exit are frozen in the
replacement stage (section 3.2) and train in the last stage.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from leebert.methods.common import first
from leebert.methods.finetune import first_stage
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make fine-tuning, replacement with a probability that rises linearly to 1, and the successors alone.

    The last two stages share `max_epochs`, at least one epoch each.
    """
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.slim.layers import layers_only
    from leebert.stages import Stage, shared_epochs
    from leebert.transforms import Alone, Successors, first_layers

    kept = first_layers(num_exits, config.keep)
    one = ExitObjective.weighted([1.0])
    finetuned = first_stage(config)
    replacing, alone = shared_epochs(config, 2)
    return (
        finetuned,
        Stage(
            "replacing", one, Fixed(), trains=layers_only, epochs=replacing, transform=Successors(kept),
            teacher=finetuned.name, pair=_start_replacing, pace=functools.partial(_raise_probability, start=config.replacing_rate),
            stops_early=False,
        ),
        Stage("successor", one, Fixed(), epochs=alone, transform=Alone(kept)),
    )  # fmt: skip


def _start_replacing(model: Any, predecessor: Any) -> None:
    from leebert.slim.theseus import Replacing

    model.path = Replacing(predecessor.stack.layers())


def _raise_probability(model: Any, progress: float, *, start: float) -> None:
    model.path.p = min(1.0, start + (1 - start) * progress)


def costs(config: TrainConfig) -> list[tuple[int, float]]:
    """Count fine-tuning, replacement and the successors alone; the last two share `max_epochs`."""
    both = max(config.max_epochs, 2)
    return [first(config), (both // 2, 2 / 3), (both - both // 2, config.keep)]


METHOD = Method(
    name="theseus",
    title="BERT-of-Theseus",
    label="Theseus",
    group="static",
    source="Xu et al., EMNLP 2020",
    trains=(
        "fine-tuning; then copies of the first layers (*successors*), each of which replaces a group of original layers "
        "with a probability that rises to 1; then the successors alone"
    ),
    exits="never",
    cost="1, then up to 2/3, then `keep`",
    differs=(
        "the replacement probability rises linearly from `replacing_rate` to 1 over the second stage, not per "
        "step; the predecessor's layers run without dropout, as every teacher here; with shared layers (ALBERT) "
        "predecessor and successor each have a copy"
    ),
    options=frozenset({"keep", "first_epochs", "replacing_rate"}),
    stages=stages,
    costs=costs,
    colour="#a50acd",
)
