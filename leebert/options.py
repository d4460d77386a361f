"""Training options beside each other: those that do nothing in a configuration, and the fields that declare them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from leebert.config import TrainConfig
from leebert.methods import METHODS, own_options

_NOT_IN_TWO_STAGES = frozenset({"finetune_first", "distillation", "detach_teacher", "gradient_equilibrium"})


def fields() -> dict[str, FieldInfo]:
    """Return the field of every training option by name: TrainConfig's, then methods' own."""
    own = {option: METHODS[name].own_fields[option] for option, name in own_options().items()}
    return {**TrainConfig.model_fields, **own}


def idle(option: str, algorithm: str, options: Mapping[str, Any]) -> str:
    """Say why an option that a method reads does nothing beside the others, of those that a stage depends on.

    Args:
        option: One of `options`.
        algorithm: The method's name.
        options: All that are given; `...` for one that is searched.

    Returns:
        The reason, or an empty text. An option that is given as its default is never in the way.
    """
    reads = METHODS[algorithm].options
    if options[option] == fields()[option].default:
        return ""
    first = [name for name in ("finetune_first", "two_stage") if name in reads]
    if option == "first_epochs" and first and not any(options.get(name) for name in first):
        return f"{algorithm} has no first stage without {' or '.join(first)}"
    if "two_stage" in reads and options.get("two_stage") is True and option in _NOT_IN_TWO_STAGES:
        return "two_stage is fine-tuning, and then the exits alone by KL to the last one, which gets no gradient"
    return ""
