"""Checks across keys of a search space, each with the keys that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from leebert.errors import ConfigError
from leebert.findings import Finding, shown
from leebert.images.backbones import blocks_of, is_network, unused_options
from leebert.images.tasks import IMAGE_TASKS
from leebert.methods import METHODS, applies, has_stages
from leebert.training_options import idle
from tune.space.fields import SweepFields, plain_space
from tune.space.values import Range


def _not_empty(spec: SweepFields) -> Iterator[Finding]:
    if not spec.space and spec.evaluate is None:
        yield Finding("space", shown({}), "should have at least one option")


def _chooses_nothing(spec: SweepFields) -> Iterator[Finding]:
    """Refuse a search together with `evaluate`: the development split is for evaluating its result, not for selecting."""
    if spec.evaluate is None:
        return
    reason = "`evaluate` uses the development split, so the sweep must not search"
    for option, values in spec.space.items():
        if values.count != 1:
            yield Finding(f"space.{option}", shown(values.plain()), f"should be one value: {reason}")
    if not spec.searcher.row.lists:
        yield Finding("searcher", shown(spec.searcher.name), f"should be grid: {reason}")
    if spec.pruner.row.prunes:
        yield Finding("pruner", shown(spec.pruner.name), f"should be none: {reason}")


def _in_both(spec: SweepFields) -> Iterator[Finding]:
    for option in spec.space.keys() & spec.training.keys():
        yield Finding(f"training.{option}", shown(spec.training[option]), "is also in `space`: keep one of the two")


def _unused(section: str, spec: SweepFields) -> Iterator[Finding]:
    if section == "training" and spec.evaluate:
        return  # methods that use it may be added, and the options must stay the same
    options = plain_space(spec.space) if section == "space" else spec.training
    for option, value in options.items():
        if not any(applies(option, algorithm) for algorithm in spec.algorithms):
            users = ", ".join(row.name for row in METHODS.values() if applies(option, row.name))
            expected = f"none of the listed methods uses it, only {users}"
            yield Finding(f"{section}.{option}", shown(value), expected)


def _idle(spec: SweepFields) -> Iterator[Finding]:
    if spec.evaluate:
        return  # as above
    searched = plain_space(spec.space)
    given = {**spec.training, **dict.fromkeys(searched, ...)}
    for section, options in (("space", searched), ("training", spec.training)):
        for option, value in options.items():
            reasons = [idle(option, algorithm, given) for algorithm in spec.algorithms if applies(option, algorithm)]
            if reasons and all(reasons):
                yield Finding(f"{section}.{option}", shown(value), f"has no effect here: {reasons[0]}")


def _lists_in_a_grid(spec: SweepFields) -> Iterator[Finding]:
    if spec.searcher.row.lists:
        for option, values in spec.space.items():
            if isinstance(values, Range):
                expected = f"a {spec.searcher.name} needs lists; ranges are for searchers that draw: random, tpe"
                yield Finding(f"space.{option}", shown(values.plain()), expected)
        if spec.searcher.configurations is not None:
            expected = f"a {spec.searcher.name} runs all its configurations: use `budget.trials` to stop earlier"
            yield Finding("searcher.configurations", shown(spec.searcher.configurations), expected)


def _bounded(spec: SweepFields) -> Iterator[Finding]:
    ranges = [option for option, values in spec.space.items() if isinstance(values, Range)]
    if not spec.searcher.row.lists and ranges and spec.limit is None:
        expected = f"needs `configurations` (or `budget.trials`): the range of {', '.join(ranges)} is infinite"
        yield Finding("searcher", shown(spec.searcher.name), expected)


def _prunable(spec: SweepFields) -> Iterator[Finding]:
    if not spec.pruner.row.prunes:
        return
    name = shown(spec.pruner.name)
    if len(spec.cells()) == 1:
        expected = "has nothing to prune: folds × seeds is one run; use more folds or seeds, or `pruner: none`"
        yield Finding("pruner", name, expected)
    if "max_epochs" in spec.space:
        expected = f"the pruner {spec.pruner.name} compares epochs of equal schedules: move it to `training`"
        yield Finding("space.max_epochs", shown(spec.space["max_epochs"].plain()), expected)
    staged = [a for a in spec.algorithms if has_stages(spec.train_config({"algorithm": a}))]
    searched = {o for o in ("finetune_first", "two_stage") if o in spec.space}
    if staged or searched:
        which = ", ".join(staged) or f"those with {' or '.join(sorted(searched))}"
        expected = f"compares epoch by epoch, and {which} train in stages: use `pruner: none`"
        yield Finding("pruner", name, expected)
    first, total = getattr(spec.pruner.options, "min_epochs", 0), len(spec.cells()) * spec.max_epochs
    if "max_epochs" not in spec.space and first >= total:
        expected = f"should be below {total}, the epochs of a configuration, or nothing is ever pruned"
        yield Finding("pruner.min_epochs", shown(first), expected)


def _payable(spec: SweepFields) -> Iterator[Finding]:
    if spec.budget.gpu_hours is not None and not spec.resources.gpus:
        yield Finding("budget.gpu_hours", shown(spec.budget.gpu_hours), "is never reached with `resources.gpus` at 0")


def _on_one_gpu(spec: SweepFields) -> Iterator[Finding]:
    if spec.resources.gpus > 1:
        expected = "should be at most 1: a trial trains on one GPU or a share of one"
        yield Finding("resources.gpus", shown(spec.resources.gpus), expected)


def _of_one_kind(spec: SweepFields) -> Iterator[Finding]:
    if spec.task_name not in IMAGE_TASKS:
        if is_network(spec.backbone):
            yield Finding("backbone", shown(spec.backbone), f"is a network for images, and {spec.task_name} has texts")
        return
    try:
        blocks_of(spec.backbone)
    except ConfigError as error:
        yield Finding("backbone", shown(spec.backbone), str(error).partition(": ")[2])
    for option in unused_options(spec.model):
        yield Finding(
            option, shown(getattr(spec, option)), f"applies to texts only, and {spec.task_name} has images: omit it"
        )
    if spec.data.group_by not in (None, ("none",)):
        yield Finding("data.group_by", shown(list(spec.data.group_by)), "applies to text columns only: omit it")


#: A check is skipped while one of the keys that it reads is itself wrong.
CHECKS: tuple[tuple[tuple[str, ...], Callable[[SweepFields], Iterator[Finding]]], ...] = (
    (("space",), _not_empty),
    (("space", "evaluate", "searcher", "pruner"), _chooses_nothing),
    (("space", "training"), _in_both),
    (("space", "algorithms"), partial(_unused, "space")),
    (("training", "algorithms"), partial(_unused, "training")),
    (("space", "training", "algorithms", "evaluate"), _idle),
    (("space", "searcher"), _lists_in_a_grid),
    (("space", "searcher", "budget"), _bounded),
    (("space", "training", "pruner", "folds", "seeds"), _prunable),
    (("budget", "resources"), _payable),
    (("resources",), _on_one_gpu),
    (("task", "backbone", "pooling", "max_length", "data"), _of_one_kind),
)
