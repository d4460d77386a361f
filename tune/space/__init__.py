"""A search space: a YAML file becomes a checked, frozen :class:`SweepSpec`, or one error that lists all that is wrong.

search_spaces/README.md is the grammar. The package imports neither torch, ray, mlflow nor optuna, so that `--help` and
`--dry-run` answer at once.
"""

from tune.space.fields import config_id, effective
from tune.space.file import load_space, make_space
from tune.space.sections import Budget
from tune.space.spec import SweepSpec, resolved_yaml

__all__ = [
    "Budget",
    "SweepSpec",
    "config_id",
    "effective",
    "load_space",
    "make_space",
    "resolved_yaml",
]
