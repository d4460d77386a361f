"""BERT-PKD (Sun et al., EMNLP 2019): the first layers of a fine-tuned teacher imitate its states from bottom to top."""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.methods.finetune import first_stage
from leebert.optim import Fixed
from leebert.stages import Stage
from leebert.students import StudentObjective
from leebert.transforms import KeepLayers, first_layers


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """(1 − α) CE + α τ² KL(teacher ‖ student) + β (distance of normalised states), their eq. 8; PKD-skip."""
    objective = StudentObjective(
        1, hard=1 - config.alpha, soft=config.alpha, states=config.beta, temperature=config.temperature,
        imitated="patient",
    )  # fmt: skip
    kept = KeepLayers(first_layers(num_exits, config.keep))
    first = first_stage(config)
    return first, Stage("student", objective, Fixed(), transform=kept, teacher=first.name)
