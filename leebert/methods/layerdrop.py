"""LayerDrop (Fan et al., ICLR 2020): layers are skipped at random in training, so that fewer do at inference.

Which layers are kept does not depend on the task: evenly spaced ones, as in the original.
"""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.objective import ExitObjective
from leebert.optim import Fixed
from leebert.stages import Stage
from leebert.transforms import KeepLayers, SkipLayers, spaced_layers


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Stage 1 trains under random skipping; stage 2 keeps `keep` of the layers and trains no more."""
    one = ExitObjective.weighted([1.0])
    skipping = SkipLayers(config.layerdrop)
    kept = KeepLayers(spaced_layers(num_exits, config.keep))
    return (
        Stage("layerdrop", one, Fixed(), transform=skipping, stops_early=False),
        Stage("kept", one, Fixed(), transform=kept, epochs=0),
    )
