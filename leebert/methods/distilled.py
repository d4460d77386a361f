"""A DistilBERT-style student (Sanh et al., 2019), distilled for the task: every other layer of a fine-tuned teacher.

The original distils in pretraining. Here its three losses apply to the task: labels, the teacher's predictions, and the
direction of the last states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leebert.methods.common import student
from leebert.methods.finetune import first_stage
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make fine-tuning, then a student on (1 − α) CE + α τ² KL(teacher ‖ student) + (1 − cosine of the last states)."""
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage
    from leebert.students import StudentObjective
    from leebert.transforms import KeepLayers, spaced_layers

    objective = StudentObjective(
        1, hard=1 - config.alpha, soft=config.alpha, states=1.0, temperature=config.temperature, imitated="last"
    )
    kept = KeepLayers(spaced_layers(num_exits, config.keep))
    first = first_stage(config)
    return first, Stage("student", objective, Fixed(), transform=kept, teacher=first.name)


METHOD = Method(
    name="distilled",
    title="DistilBERT-style student",
    label="Distilled",
    group="static",
    source="Sanh et al., 2019",
    trains="fine-tuning; then a student, initialised from evenly spaced layers of its teacher, the fine-tuned model",
    exits="never",
    cost="1, then 1/3 + `keep`",
    differs=(
        "distilled on the task only, without pretraining; the losses are hard labels, soft labels and the cosine "
        "distance of the last states; τ is `temperature` (default 1); with shared layers (ALBERT) the student "
        "applies them less often and keeps all parameters"
    ),
    options=frozenset({"keep", "first_epochs", "alpha", "temperature"}),
    stages=stages,
    costs=student,
    colour="#b045e6",
)
