"""What may change when a sweep is resumed with another file: more configurations, more seeds, nothing that is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from leebert.errors import SweepError
from leebert.methods import applies
from leebert.provenance import backbone_differences, backbone_identity
from tune.space import SweepSpec
from tune.space.values import ValueList, Values

#: Compared by what they still contain, not word for word.
_GROWING = frozenset({"seeds", "space", "algorithms"})


def extended(old: SweepSpec, new: SweepSpec, suggested: Iterable[Mapping[str, Any]], name: str) -> SweepSpec:
    """The space with which a sweep goes on: the new one, its seeds after the old ones.

    Refuses (SweepError, with each difference) whatever would join results that can't be compared, and a space that no
    longer holds a configuration that was suggested.
    """
    was, now = dict(_flat(old.measured())), dict(_flat(new.measured()))
    changed = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
    lines = [f"{key}: {was.get(key, 'not set')} → {now.get(key, 'taken out')}" for key in changed]
    lines += [f"seeds: {seed} is missing" for seed in old.seeds if seed not in new.seeds]
    lost = [values for values in suggested if not _admits(new, values)]
    lines += [f"space: no longer holds {dict(values)}" for values in lost[:5]]
    if lines:
        raise SweepError(
            f"sweep {name} can take more configurations or seeds, but its results could not be joined with these:\n"
            + "\n".join(f"  {line}" for line in lines)
            + (f"\n  and {len(lost) - 5} configurations more" if len(lost) > 5 else "")
            + "\nstart another sweep for that"
        )
    # The old cells stay first, so that every configuration goes on where it stands.
    seeds = (*old.seeds, *(seed for seed in new.seeds if seed not in old.seeds))
    data = new.data if new.data.dir else new.data.model_copy(update={"dir": old.data.dir})
    tracking = new.tracking.model_copy(
        update={key: value for key, value in old.tracking if getattr(new.tracking, key) is None}
    )
    return new.model_copy(update={"seeds": seeds, "data": data, "tracking": tracking})


def at_its_old_place(new: SweepSpec, old: SweepSpec, was: Mapping[str, Any], name: str) -> SweepSpec:
    """The new space with the backbone named as before, where the files at its new place are the old ones.

    Args:
        new: The space to go on with.
        old: The sweep's space.
        was: The old backbone's identity, as the sweep's manifest has it (:func:`leebert.provenance.backbone_identity`).
        name: The sweep's.

    Raises:
        SweepError: It is another backbone.
    """
    if new.backbone == old.backbone:
        return new
    if lines := backbone_differences(was, backbone_identity(new.backbone)):
        raise SweepError(
            f"sweep {name}: backbone {new.backbone}: not the one that the sweep began with, {old.backbone}: "
            f"{'; '.join(lines)}; give the place where that one lies by --backbone, or start another sweep"
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
    algorithm = values["algorithm"]
    options = {option for option in spec.space if applies(option, algorithm)}
    return (
        algorithm in spec.algorithms
        and options == values.keys() - {"algorithm"}
        and all(_holds(spec.space[option], values[option]) for option in options)
    )


def _holds(values: Values, value: Any) -> bool:
    listed = values.listed()
    if isinstance(values, ValueList) or listed is not None:
        return value in (listed or ())
    return bool(
        values.low <= value <= values.high or math.isclose(value, values.low) or math.isclose(value, values.high)
    )
