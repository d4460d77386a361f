"""COST-EFF (Shen et al., EMNLP 2022): a slender encoder of full depth whose exits imitate those of its uncut assistant.

Exits by entropy. The original prunes one head per round and raises the learning rate from round to round; here rounds
make equal cuts, at one rate.
"""

from __future__ import annotations

from leebert.config import TrainConfig
from leebert.optim import Fixed
from leebert.stages import Stage, finetuning, shared_epochs
from leebert.students import StudentObjective
from leebert.transforms import Slenderise

#: Share of a round in which only states are imitated (0.5 for MRPC and CoLA, 0.7 for larger tasks in the original).
_STATES_FIRST = 0.5


def stages(config: TrainConfig, num_exits: int) -> tuple[Stage, ...]:
    """Fine-tuned backbone → multi-exit assistant of its size → rounds of cuts → recovery.

    The rounds share `max_epochs`, at least one each; the recovery has as many again.
    """
    rounds = config.prune_rounds
    first = finetuning(config, num_exits)
    assistant = StudentObjective(
        num_exits, hard=0.5, soft=0.5, states=1.0, temperature=config.temperature, imitated="all", answers_from=1 / 3
    )
    slender = StudentObjective(
        num_exits, hard=0.0, soft=1.0, states=1.0, temperature=config.temperature, imitated="all",
        same_exit=True, answers_from=_STATES_FIRST,
    )  # fmt: skip
    return (
        first,
        Stage("assistant", assistant, Fixed(), teacher=first.name, epochs=config.first_epochs, stops_early=False),
        *(
            Stage(
                f"slender-{cut}",
                slender,
                Fixed(),
                transform=Slenderise(1 - (1 - config.keep) * cut / rounds),
                teacher="assistant",
                epochs=epochs,
                stops_early=False,
            )
            for cut, epochs in enumerate(shared_epochs(config, rounds), start=1)
        ),
        # Its first half has no answers to judge it by.
        Stage("recovery", slender, Fixed(), teacher="assistant", stops_early=False),
    )
