"""The class of a method: its entry in the table of methods, and the functions that make its stages and count their cost.

This module and the methods' modules import torch only inside functions, so that `leebert methods` and the check of a
configuration are fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

from leebert.errors import nearest
from leebert.exits import CRITERIA
from leebert.exits.criterion import Criterion
from leebert.standard_options import Frozen, StandardOptions, TeacherSet

Group = Literal["whole network", "static", "early exit", "learned weights"]

#: The samples on which θ and ω learn: all training samples; D1, one half of them; θ on D1 and ω (also) on D2, the other
#: half.
Samples = Literal["all", "D1", "D1 and D2"]

#: From a training configuration (:class:`leebert.config.TrainConfig`) and the number of exits M to the method's stages
#: (:class:`leebert.stages.Stage`), in their order.
Stages = Callable[[Any, int], tuple[Any, ...]]

#: From a training configuration to the optimiser of ω (:class:`leebert.optim.contract.OmegaOptimizer`).
MakeOmegaOptimizer = Callable[[Any], Any]

#: From a training configuration to the maximum epochs of each stage, and the cost of its updates relative to plain
#: fine-tuning.
Costs = Callable[[Any], list[tuple[int, float]]]


#: The options that every configuration has.
STANDARD = frozenset(StandardOptions.model_fields)

#: Characters of a label that charts and MLflow's tables show.
LONGEST_LABEL = 20


def plain(config: Any) -> list[tuple[int, float]]:
    """Return the costs of a method with one stage of plain training: `max_epochs` epochs at cost 1."""
    return [(config.max_epochs, 1.0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    A method without `stages` trains in one stage on eq. 5 (:func:`leebert.stages.joint`); `omega`, `teachers` or
    `draws_weights` determine its loss weights. Every other method makes its own stages.

    Attributes:
        name: Its name in configurations, under the key `algorithm`.
        title: Its name in prose and tables.
        label: Its short name in charts and run names, at most 20 characters.
        group: The kind of method, which groups tables.
        source: The paper that published it.
        trains: What is trained, in a few words.
        exits: The exit criterion of its paper; `never`: only the last exit remains.
        cost: Arithmetic of its training steps, stage by stage, against plain fine-tuning of the whole network (a forward
            is 1 unit, a backward 2, so plain fine-tuning is 3; frozen layers have no gradients of weights, which are 1
            of the 2). A pass over all samples before a cut is mentioned, but not counted.
        differs: Differences from the publication, with reasons.
        options: The fields of TrainConfig that only some methods read, and this one does.
        own_options: Options that TrainConfig lacks, as a subclass of :class:`leebert.config.Frozen`. Configurations list
            them beside the others (`training.NAME`); the method reads them in :attr:`leebert.config.TrainConfig.own`.
        stages: Makes its stages; None: one stage on eq. 5.
        omega: Makes its optimiser of ω; None: fixed weights. Only read without `stages`.
        teachers: Its teacher set in eq. 5 (a key of :data:`leebert.losses.TEACHERS`); None: the configured one.
        draws_weights: Whether the weights of eq. 5 are drawn once and stay fixed (the paper's `rand`).
        costs: `cost` in numbers. Without `stages`, it excludes the stage of `finetune_first`. All cuts are one stage,
            embeddings cost nothing, and attention counts as its matrices.
        conflict: Maps a training configuration to a sentence on options that exclude each other, `option: what to do`; empty if
            there are none.
        samples: The samples on which θ and ω learn.
        omega_on_d1: Whether ω also learns at λ1 from the batches of θ (CLO).
        colour: Colour of its curves, as `#rrggbb`; None: the chart's next one.
        chart_order: Methods with a lower number come first in summaries and comparisons; equal ones by name.
        titled_by_layers: Whether its row in a paper's table is named by the number of remaining layers.
    """

    name: str
    title: str
    label: str
    group: Group
    source: str
    trains: str
    exits: str
    cost: str
    differs: str
    options: frozenset[str] = frozenset()
    own_options: type[Frozen] | None = None
    stages: Stages | None = None
    omega: MakeOmegaOptimizer | None = None
    teachers: str | None = None
    draws_weights: bool = False
    costs: Costs = plain
    conflict: Callable[[Any], str] | None = None
    samples: Samples = "all"
    omega_on_d1: bool = False
    colour: str | None = None
    chart_order: int = 100
    titled_by_layers: bool = False

    @property
    def criterion(self) -> Criterion:
        """The exit criterion of its paper.

        Raises:
            ConfigError: The criterion is not installed.
        """
        return CRITERIA.require(self.exits)

    @property
    def one_exit(self) -> bool:
        """Whether only the last exit remains."""
        return not self.criterion.early

    @property
    def tuned(self) -> bool:
        """Whether its criterion needs a threshold chosen for each model, since none fits every model."""
        return not self.one_exit and self.criterion.default is None

    @property
    def own_criterion(self) -> str | None:
        """The criterion of its paper, if only the threshold is chosen for each model; else None."""
        return self.exits if self.tuned else None

    @property
    def learns_omega(self) -> bool:
        """Whether it learns the weights of its loss terms; those of other methods are fixed."""
        return "lr_omega" in self.options

    def reads(self, option: str) -> bool:
        """Whether it reads an option that only some methods read."""
        return option in self.options or option in self.own_fields

    @property
    def own_fields(self) -> dict[str, Any]:
        """The pydantic fields of its own options, by name."""
        return {} if self.own_options is None else dict(self.own_options.model_fields)

    def as_dict(self) -> dict[str, Any]:
        """Return its fields as JSON-ready values, without its functions."""
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for function in ("stages", "omega", "costs", "conflict"):
            del row[function]
        descriptions = {name: str(field.description or "") for name, field in self.own_fields.items()}
        return {**row, "options": sorted(self.options), "own_options": descriptions, "one_exit": self.one_exit}


def check(plugin: Method) -> None:
    """Validate a method's label, criterion, teachers and options.

    Args:
        plugin: The method.

    Raises:
        ValueError: The label is too long, a criterion, teacher set or option does not exist, or an own option clashes.
    """
    if not 1 <= len(plugin.label) <= LONGEST_LABEL:
        raise ValueError(f"label {plugin.label!r} should have 1 to {LONGEST_LABEL} characters")
    if plugin.exits not in CRITERIA:
        raise ValueError(f"exits: {CRITERIA.unknown(plugin.exits)}")
    sets = get_args(TeacherSet)
    if plugin.teachers is not None and plugin.teachers not in sets:
        raise ValueError(
            f"teachers {plugin.teachers!r} should be one of {', '.join(sets)}{nearest(plugin.teachers, sets)}"
        )
    for option in sorted(plugin.options - STANDARD):
        near = nearest(option, STANDARD)
        raise ValueError(
            f"options: {option!r} is no field of TrainConfig{near}; an option of its own is a field of own_options"
        )
    for option, field in plugin.own_fields.items():
        if option in STANDARD:
            raise ValueError(
                f"its own option {option!r} is a field of TrainConfig: name it in options, or rename its own one"
            )
        if field.is_required():
            raise ValueError(f"its own option {option!r} needs a default")
