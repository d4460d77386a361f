"""Extend a sweep when it is resumed with another space: more configurations or seeds, but nothing that scores depend on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from leebert.errors import SweepError
from leebert.methods import applies
from leebert.provenance import backbone_differences, backbone_identity
from tune.space import SweepSpec
from tune.space.values import ValueList, Values

#: Keys that may grow: the new space must contain all suggested configurations.
_GROWING = frozenset({"seeds", "space", "algorithms"})


def extended(old: SweepSpec, new: SweepSpec, suggested: Iterable[Mapping[str, Any]], name: str) -> SweepSpec:
    """Return the space with which a sweep resumes: the new one, with its new seeds after the old ones.

    Args:
        old: The sweep's space.
        new: The space to resume with.
        suggested: The values of all configurations suggested so far.
        name: The sweep's name.

    Raises:
        SweepError: Results under the new space could not be compared with the old ones, or it lacks a configuration that
            was suggested; the message lists every difference.
    """
    was, now = dict(_flat(old.measured())), dict(_flat(new.measured()))
    changed = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
    lines = [f"{key}: {was.get(key, 'not set')} → {now.get(key, 'removed')}" for key in changed]
    lines += [f"seeds: {seed} is missing" for seed in old.seeds if seed not in new.seeds]
    lost = [values for values in suggested if not _admits(new, values)]
    lines += [f"space: no longer contains {dict(values)}" for values in lost[:5]]
    if lines:
        raise SweepError(
            f"sweep {name} can take more configurations or seeds, but its results can't be compared with the new space's:\n"
            + "\n".join(f"  {line}" for line in lines)
            + (f"\n  and {len(lost) - 5} more configurations" if len(lost) > 5 else "")
            + "\nstart another sweep for that"
        )
    # The old runs stay first, so that every configuration resumes after its last run.
    seeds = (*old.seeds, *(seed for seed in new.seeds if seed not in old.seeds))
    data = new.data if new.data.dir else new.data.model_copy(update={"dir": old.data.dir})
    tracking = new.tracking.model_copy(
        update={key: value for key, value in old.tracking if getattr(new.tracking, key) is None}
    )
    return new.model_copy(update={"seeds": seeds, "data": data, "tracking": tracking})


def at_its_old_place(new: SweepSpec, old: SweepSpec, was: Mapping[str, Any], name: str) -> SweepSpec:
    """Keep the sweep's path of the backbone if the new space has another path to the same files.

    Args:
        new: The space to resume with.
        old: The sweep's space.
        was: The old backbone's identity, from the sweep's manifest (:func:`leebert.provenance.backbone_identity`).
        name: The sweep's name.

    Returns:
        The new space with the old backbone's name.

    Raises:
        SweepError: It is another backbone.
    """
    if new.backbone == old.backbone:
        return new
    if lines := backbone_differences(was, backbone_identity(new.backbone)):
        raise SweepError(
            f"sweep {name}: backbone {new.backbone} differs from the sweep's backbone {old.backbone}: "
            f"{'; '.join(lines)}; give the folder or id of the same backbone by --backbone, or start another sweep"
        )
    return new.model_copy(update={"backbone": old.backbone})


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        if dotted in _GROWING:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{dotted}.")
        elif value is not None:
            yield dotted, value


def _admits(spec: SweepSpec, values: Mapping[str, Any]) -> bool:
    """Return whether a space contains a configuration."""
    algorithm = values["algorithm"]
    options = {option for option in spec.space if applies(option, algorithm)}
    return (
        algorithm in spec.algorithms
        and options == values.keys() - {"algorithm"}
        and all(_contains(spec.space[option], values[option]) for option in options)
    )


def _contains(values: Values, value: Any) -> bool:
    listed = values.listed()
    if isinstance(values, ValueList) or listed is not None:
        return value in (listed or ())
    return bool(
        values.low <= value <= values.high or math.isclose(value, values.low) or math.isclose(value, values.high)
    )
