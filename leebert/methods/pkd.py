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
    trains="fine-tuning; then its first layers, which imitate states of evenly spaced layers of it",
    exits="never",
    cost="1, then 1/3 + keep",
    differs=(
        "its layers start from the teacher's, not from the pretrained encoder's, so that they need fewer epochs; "
        "the states are what the exits see, since not every encoder is read at CLS (the original's is, `pooling: "
        "cls`); the distillation term sums over classes, as the paper's equation does: K times that of the "
        "published code, which averages over them; the states' distance is the published code's mean, to which its "
        "values of β (10 to 1000) belong, where the paper's eq. 7 sums; τ is `temperature`, 1 unless set, so that "
        "it is searched as any other option, where the original searches 5, 10 and 20; shared layers (ALBERT): "
        "fewer applications of them, no parameter goes"
    ),
    options=frozenset({"keep", "first_epochs", "alpha", "beta", "temperature"}),
    stages=stages,
    costs=student,
    colour="#93bf39",
)
