"""BERT-of-Theseus (Xu et al., EMNLP 2020): successor layers replace groups of a fine-tuned predecessor's, at random.

Successors start as the predecessor's first layers and learn from labels alone. Embeddings and exit are frozen while
they replace (section 3.2), and train with them once they are alone.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from leebert.config import TrainConfig
from leebert.errors import ConfigError
from leebert.methods.finetune import first_stage
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.slim.layers import layers_only
from leebert.slim.theseus import Replacing
from leebert.stages import Stage, shared_epochs
from leebert.transforms import KeepLayers, first_layers


@dataclasses.dataclass(frozen=True)
class Successors(KeepLayers):
    """The first layers, as many as divide the predecessor's."""

    def check(self, model: Any) -> None:
        super().check(model)
        there = len(model.stack.layers())
        if there % len(self.layers):
            raise ConfigError(
                f"{len(self.layers)} layers can't stand in for {there} in groups of one size: "
                "give theseus a `keep` of 1 over a whole number that divides the layers"
            )


@dataclasses.dataclass(frozen=True)
class Alone(KeepLayers):
    """What is there stays, and nothing runs in its place any more."""

    def check(self, model: Any) -> None:
        return None


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Fine-tuning; replacement with a chance that rises linearly to 1; successors alone.

    The last two share `max_epochs`, at least one each.
    """
    kept = first_layers(num_exits, config.keep)
    one = ExitObjective.weighted([1.0])
    first = first_stage(config)
    replacing, alone = shared_epochs(config, 2)
    start = config.replacing_rate
    return (
        first,
        Stage(
            "replacing", one, Fixed(), trains=layers_only, epochs=replacing, transform=Successors(kept), teacher=first.name,
            pair=_stand_in, pace=functools.partial(_replace_more, start=start), stops_early=False,
        ),
        Stage("successor", one, Fixed(), epochs=alone, transform=Alone(kept)),
    )  # fmt: skip


def _stand_in(model: Any, predecessor: Any) -> None:
    model.path = Replacing(predecessor.stack.layers())


def _replace_more(model: Any, progress: float, *, start: float) -> None:
    model.path.p = min(1.0, start + (1 - start) * progress)
