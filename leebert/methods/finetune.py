"""Plain fine-tuning (Devlin et al., NAACL 2019) of the whole network: a layer speed-up of 1 in the tables."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make one stage, in which only the last exit remains."""
    return (one_exit(),)


def one_exit() -> Stage:
    """Make the stage in which a network is fine-tuned for its last exit alone."""
    from leebert.objective import ExitObjective
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage
    from leebert.transforms import LastExit

    return Stage("finetune", ExitObjective.weighted([1.0]), Fixed(), transform=LastExit())


def first_stage(config: TrainConfig) -> Stage:
    """Make the fine-tuning stage for methods that continue from its model."""
    return dataclasses.replace(one_exit(), epochs=config.first_epochs, stops_early=False)


METHOD = Method(
    name="finetune",
    title="fine-tuning",
    label="Fine-tuning",
    group="whole network",
    source="Devlin et al., NAACL 2019",
    trains="all parameters, on the loss of the last exit",
    exits="never",
    cost="1",
    differs="optimiser, schedule and epochs are those of all methods here, for a fair comparison",
    stages=stages,
    colour="#aaafb4",
)
