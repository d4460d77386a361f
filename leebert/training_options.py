"""Relations of training options: which have no effect in a configuration, and which model declares each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from leebert.config import TrainConfig
from leebert.methods import METHODS, owner_of

_NOT_IN_TWO_STAGES = frozenset({"finetune_first", "distillation", "detach_teacher", "gradient_equilibrium"})

#: The options of every configuration that are floats.
_FLOATS = frozenset(option for option, field in TrainConfig.model_fields.items() if field.annotation is float)


def option_names() -> tuple[str, ...]:
    """Return the names of all training options: TrainConfig's fields, then the own options of all methods that load."""
    return TrainConfig.keys()


def declaring(option: str, algorithms: Iterable[str]) -> tuple[type[BaseModel], ...]:
    """Return the models that have a training option as one of their fields.

    Args:
        option: The option.
        algorithms: The methods of a space.

    Returns:
        TrainConfig alone for an option of every configuration; else the own options of those methods that declare it; if
        none of them does, those of the first other method; nothing for an unknown option.
    """
    if option in TrainConfig.model_fields:
        return (TrainConfig,)
    owners = [name for name in algorithms if option in METHODS[name].own_fields]
    if not owners and (other := owner_of(option)):
        owners = [other]
    return tuple(dict.fromkeys(model for name in owners if (model := METHODS[name].own_options)))


def field_of(option: str, algorithm: str) -> FieldInfo:
    """Return the field of a training option in a method's configurations: its type, default and description.

    Raises:
        KeyError: The method has no such option.
    """
    fields = TrainConfig.model_fields
    return fields[option] if option in fields else METHODS[algorithm].own_fields[option]


def canonical(option: str, algorithm: str, value: Any) -> Any:
    """Return the one form of equal values of an option that a method reads: 1 and 1.0 are the same learning rate.

    Args:
        option: Name of the option.
        algorithm: Name of the method.
        value: The value.
    """
    if option in TrainConfig.model_fields:
        return float(value) if option in _FLOATS else value
    if option == "algorithm" or not isinstance(value, int | float) or isinstance(value, bool):
        return value
    kind = METHODS[algorithm].own_fields[option].annotation
    if kind is int and float(value).is_integer():
        return int(value)
    return float(value) if kind is float else value


def train_config(training: Mapping[str, Any], values: Mapping[str, Any], seed: int) -> TrainConfig:
    """Make the training configuration of one configuration of a sweep.

    Args:
        training: Options shared by all configurations; own options of other methods are dropped.
        values: The configuration's values, with its method under `algorithm`.
        seed: The seed.

    Returns:
        The checked configuration.
    """
    mine = METHODS[values.get("algorithm", TrainConfig.model_fields["algorithm"].default)].own_fields
    shared = {
        option: value
        for option, value in training.items()
        if option in TrainConfig.model_fields or option in mine or owner_of(option) is None
    }
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
    if options[option] == field_of(option, algorithm).default:
        return ""
    if option == "label_noise_exits" and not options.get("label_noise"):
        return "label_noise is 0, so all labels are right"
    first = [name for name in ("finetune_first", "two_stage") if name in reads]
    if option == "first_epochs" and first and not any(options.get(name) for name in first):
        return f"{algorithm} has no first stage without {' or '.join(first)}"
    if "two_stage" in reads and options.get("two_stage") is True and option in _NOT_IN_TWO_STAGES:
        return "with two_stage, only KL to the last exit trains the others, and the last exit gets no gradient from it"
    return ""
