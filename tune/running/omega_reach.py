"""Find the λ2 of a space that are too small to move the loss weights ω: one step moves ω by about λ2."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from leebert.methods import METHODS, applies, most_epochs
from leebert.omega import MOVED, Reach, learns_omega, reach
from tune.space import SweepSpec
from tune.space.values import Range, Scalar, Values

#: Options that the reach of ω depends on.
READ = (
    "lr_omega", "lr_theta", "batch_size", "max_epochs", "cycle_length", "parametrisation", "omega_optimizer", "omega_in_cycle",
    "first_epochs", "finetune_first", "outer",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StillRate:
    """A λ2 at which some configurations can't move their weights by :data:`leebert.omega.MOVED`.

    Attributes:
        lr_omega: The λ2.
        least: How far weights can move at least, over the affected configurations.
        most: How far they can move at most.
        updates: The fewest updates of θ during which ω learns.
        configurations: How many combinations are affected.
        of: How many combinations there are (of a range, its two ends).
        needed: The λ2 that suffices in all of them.
    """

    lr_omega: float
    least: float
    most: float
    updates: int
    configurations: int
    of: int
    needed: float

    def in_words(self) -> str:
        """Describe in one sentence how far weights can move and which λ2 is needed."""
        far = f"{self.most:.2g}" if self.least == self.most else f"{self.least:.2g} to {self.most:.2g}"
        part = "" if self.configurations == self.of else f", in {self.configurations} of {self.of} combinations"
        return (
            f"λ2 (lr_omega) {self.lr_omega:g} × {self.updates} updates moves weights by at most about {far}, less than {MOVED:g}"
            f"{part}: the optimiser of ω has no effect; choose λ2 of about {self.needed:.2g} or more"
        )


def still_rates(spec: SweepSpec, rows: int, num_classes: int) -> list[StillRate]:
    """List the λ2 of a space at which loss weights can't move, the smallest first; none if no method learns ω by Adam or SGD.

    Args:
        spec: The search space.
        rows: Samples of the training split.
        num_classes: K.

    Returns:
        One entry per λ2.
    """
    reaches_by_rate: dict[float, list[tuple[int, Reach]]] = {}
    for algorithm in filter(steps_by_optimizer, spec.algorithms):
        options = [option for option in READ if option in spec.space and applies(option, algorithm)]
        for combination in itertools.product(*(_ends(spec.space[option]) for option in options)):
            values = {"algorithm": algorithm, **dict(zip(options, combination, strict=True))}
            config = spec.train_config(values)
            updates = spec.cell_updates(values, rows) * config.max_epochs // most_epochs(config)
            reaches_by_rate.setdefault(config.lr_omega, []).append((updates, reach(config, updates, num_classes)))
    result = []
    for rate, reaches in sorted(reaches_by_rate.items()):
        still = [(updates, r) for updates, r in reaches if not r.moves]
        if still:
            far = [r.weights for _, r in still]
            fewest, needed = min(updates for updates, _ in still), max(r.lr_omega for _, r in still)
            result.append(StillRate(rate, min(far), max(far), fewest, len(still), len(reaches), needed))
    return result


def steps_by_optimizer(algorithm: str) -> bool:
    """Return whether λ2 is the learning rate of Adam or SGD; a method's own update of ω can have any size."""
    return learns_omega(algorithm) and METHODS[algorithm].reads("omega_optimizer")


def _ends(values: Values) -> Sequence[Scalar]:
    """Return the values of an option; of a range its two ends."""
    return (values.low, values.high) if isinstance(values, Range) else values.values
