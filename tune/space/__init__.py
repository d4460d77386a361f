"""A search space: a YAML file is read as a checked, frozen :class:`SweepSpec`, or raises one exception with all errors.

search_spaces/README.md describes the grammar. The package imports neither torch, ray, mlflow nor optuna, so that `--help`
and `--dry-run` start quickly.
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
