"""BERT-of-Theseus (Xu et al., EMNLP 2020): successor layers replace groups of a fine-tuned predecessor's, at random.

Successors start as the predecessor's first layers and learn from labels alone. Embeddings and exit are frozen while
they replace (section 3.2), and train with them once they are alone.
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
    """Make fine-tuning; replacement with a chance that rises linearly to 1; successors alone.

    The last two share `max_epochs`, at least one each.
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
            teacher=finetuned.name, pair=_stand_in, pace=functools.partial(_replace_more, start=config.replacing_rate),
            stops_early=False,
        ),
        Stage("successor", one, Fixed(), epochs=alone, transform=Alone(kept)),
    )  # fmt: skip


def _stand_in(model: Any, predecessor: Any) -> None:
    from leebert.slim.theseus import Replacing

    model.path = Replacing(predecessor.stack.layers())


def _replace_more(model: Any, progress: float, *, start: float) -> None:
    model.path.p = min(1.0, start + (1 - start) * progress)


def costs(config: TrainConfig) -> list[tuple[int, float]]:
    """Count fine-tuning, replacing and the successor alone; the last two share `max_epochs`."""
    both = max(config.max_epochs, 2)
    return [first(config), (both // 2, 2 / 3), (both - both // 2, config.keep)]


METHOD = Method(
    name="theseus",
    title="BERT-of-Theseus",
    label="Theseus",
    group="static",
    source="Xu et al., EMNLP 2020",
    trains="fine-tuning; then its first layers, each in place of a group of its layers at random; then alone",
    exits="never",
    cost="1, then up to 2/3, then keep",
    differs=(
        "the chance of replacement rises linearly from `replacing_rate` to 1 over the second stage, whatever its "
        "length, where the original counts steps; the predecessor's layers run without dropout, as every teacher "
        "here, where the original's have it; shared layers (ALBERT): predecessor and successor have a copy of them "
        "each"
    ),
    options=frozenset({"keep", "first_epochs", "replacing_rate"}),
    stages=stages,
    costs=costs,
    colour="#8c078c",
)
