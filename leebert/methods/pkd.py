"""BERT-PKD (Sun et al., EMNLP 2019): the first layers of a fine-tuned teacher imitate its states from bottom to top."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leebert.methods.common import student
from leebert.methods.finetune import first_stage
from leebert.methods.method import Method

if TYPE_CHECKING:
    from leebert.config import TrainConfig
    from leebert.stages import Stage


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Make fine-tuning, then a student on their eq. 8 with PKD-skip.

    The loss is (1 − α) CE + α τ² KL(teacher ‖ student) + β (distance of normalised states).
    """
    from leebert.optim.fixed import Fixed
    from leebert.stages import Stage
    from leebert.students import StudentObjective
    from leebert.transforms import KeepLayers, first_layers

    objective = StudentObjective(
        1, hard=1 - config.alpha, soft=config.alpha, states=config.beta, temperature=config.temperature,
        imitated="patient",
    )  # fmt: skip
    kept = KeepLayers(first_layers(num_exits, config.keep))
    first = first_stage(config)
    return first, Stage("student", objective, Fixed(), transform=kept, teacher=first.name)


METHOD = Method(
    name="pkd",
    title="BERT-PKD",
    label="PKD",
    group="static",
    source="Sun et al., EMNLP 2019",
    trains=(
        "fine-tuning; then a student, initialised from the first layers of its teacher, the fine-tuned model; the student also "
        "matches the teacher's hidden states at evenly spaced layers"
    ),
    exits="never",
    cost="1, then 1/3 + `keep`",
    differs=(
        "the student starts from the teacher's layers, not the pretrained encoder's, which takes fewer epochs; it "
        "imitates the states that the exits read, since not every encoder reads CLS (`pooling: cls` is the "
        "original's); the distillation term sums over classes, as in the paper; the published code averages, a "
        "factor K less; the distance of states is a mean, as in the published code, for which β (10 to 1000) is "
        "tuned; the paper's eq. 7 sums; τ is `temperature` (default 1; the original searches 5, 10 and 20); with "
        "shared layers (ALBERT) the student applies them less often and keeps all parameters"
    ),
    options=frozenset({"keep", "first_epochs", "alpha", "beta", "temperature"}),
    stages=stages,
    costs=student,
    colour="#93bf39",
)
