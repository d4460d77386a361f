"""How θ and ω are optimised together: one file per algorithm, one function `step` each.

An algorithm (:class:`leebert.optim.algorithm.Algorithm`) sees what can be done in a step, and its own position in its
cycle, which is passed in and returned. `splits_data` says whether θ is to see only half of the data (D1) so that ω can see the other (D2).
"""

from __future__ import annotations

from collections.abc import Callable

from leebert.config import TrainConfig
from leebert.optim.algorithm import Algorithm
from leebert.optim.blo import BLO
from leebert.optim.clo import CLO
from leebert.optim.fixed import Fixed
from leebert.optim.hyper import Hyper
from leebert.optim.slo import SLO

__all__ = ["ALGORITHMS", "BLO", "CLO", "SLO", "Fixed", "Hyper"]


#: The algorithms by name, each made from a training configuration.
ALGORITHMS: dict[str, Callable[[TrainConfig], Algorithm]] = {
    "uniform": lambda config: Fixed(),
    "uniform-d1": lambda config: Fixed(splits_data=True),
    "rand": lambda config: Fixed(),
    "slo": lambda config: SLO(),
    "blo": lambda config: BLO(),
    "hyper": lambda config: Hyper(),
    "clo-v1": lambda config: CLO(cycle_length=1),
    "clo-v2": lambda config: CLO(cycle_length=config.cycle_length, omega_in_cycle=config.omega_in_cycle),
}
