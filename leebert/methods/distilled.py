"""A DistilBERT-style student (Sanh et al., 2019), distilled for the task: every other layer of a fine-tuned teacher.

The original distils in pretraining; here its three losses are taken on the task: labels, the teacher's answers, and
the direction of the last states.
"""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.methods.finetune import first_stage
from leebert.optim import Fixed
from leebert.stages import Stage
from leebert.students import StudentObjective
from leebert.transforms import KeepLayers, spaced_layers


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """(1 − α) CE + α τ² KL(teacher ‖ student) + (1 − cosine of the last states)."""
    objective = StudentObjective(
        1, hard=1 - config.alpha, soft=config.alpha, states=1.0, temperature=config.temperature, imitated="last"
    )
    kept = KeepLayers(spaced_layers(num_exits, config.keep))
    first = first_stage(config)
    return first, Stage("student", objective, Fixed(), transform=kept, teacher=first.name)
