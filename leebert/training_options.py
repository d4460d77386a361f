"""Relations of training options: which have no effect in a configuration, and which model declares each."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from leebert.config import TrainConfig
from leebert.methods import METHODS, own_options

_NOT_IN_TWO_STAGES = frozenset({"finetune_first", "distillation", "detach_teacher", "gradient_equilibrium"})


def option_names() -> tuple[str, ...]:
    """Return the names of all training options: TrainConfig's fields, then methods' own options."""
    return TrainConfig.keys()


def declared(option: str) -> type[BaseModel]:
    """Return the model that has a training option as one of its fields: TrainConfig, or the own options of a method.

    Args:
        option: One of :func:`option_names`.
    """
    if option in TrainConfig.model_fields:
        return TrainConfig
    model = METHODS[own_options()[option]].own_options
    assert model is not None
    return model


def field_of(option: str) -> FieldInfo:
    """Return the field of a training option: its type, default and description."""
    return declared(option).model_fields[option]


def float_options() -> frozenset[str]:
    """Return the names of float options, for which whole numbers are equal values."""
    return _floats(METHODS.changes)


@functools.lru_cache(maxsize=1)
def _floats(changes: int) -> frozenset[str]:
    return frozenset(option for option in option_names() if field_of(option).annotation is float)


def train_config(training: Mapping[str, Any], values: Mapping[str, Any], seed: int) -> TrainConfig:
    """Make the training configuration of one configuration of a sweep.

    Args:
        training: Options shared by all configurations; own options of other methods are dropped.
        values: The configuration's values, with its method under `algorithm`.
        seed: The seed.

    Returns:
        The checked configuration.
    """
    algorithm = values.get("algorithm", TrainConfig.model_fields["algorithm"].default)
    foreign = own_options().keys() - METHODS[algorithm].own_fields.keys()
    shared = {option: value for option, value in training.items() if option not in foreign}
    return TrainConfig.model_validate({**shared, **values, "seed": seed})


def idle(option: str, algorithm: str, options: Mapping[str, Any]) -> str:
    """Explain why an option of a method has no effect with the other options.

    Args:
        option: One of `options`.
        algorithm: The method's name.
        options: All given options; `...` for a searched one.

    Returns:
        The reason; empty if the option has an effect or equals its default.
    """
    reads = METHODS[algorithm].options
    if options[option] == field_of(option).default:
        return ""
    first = [name for name in ("finetune_first", "two_stage") if name in reads]
    if option == "first_epochs" and first and not any(options.get(name) for name in first):
        return f"{algorithm} has no first stage without {' or '.join(first)}"
    if "two_stage" in reads and options.get("two_stage") is True and option in _NOT_IN_TWO_STAGES:
        return "two_stage is fine-tuning, and then the exits alone by KL to the last one, which gets no gradient"
    return ""
