"""Keys under which files name an exit criterion.

Files of earlier versions say `strategy` (configurations, best files, evaluations, `exits.json`, `training.json`,
`refit.json`) or `rule` (comparisons, objectives and fronts of best files). They are read; `criterion` is written. What other
programs and old runs hold keeps its key: `exit_strategy`, `exit_threshold` and `exit_patience` in a model's `config.json` and
in the parameters of MLflow's refit runs, `strategy` in the parameters of MLflow's logged models, and `rule` in the results
file of `leebert-tune reproduce`.
"""

from __future__ import annotations

from typing import Any

#: Keys of earlier versions for `criterion`.
FORMER = ("strategy", "rule")


def with_criterion(value: Any) -> Any:
    """Rename the keys of earlier versions in what a file holds, at any depth.

    Args:
        value: JSON or YAML as it was read; it is not changed.

    Returns:
        The same with `criterion` for `strategy` and `rule`; a mapping that has `criterion` already stays as it is.
    """
    if isinstance(value, dict):
        renames = "criterion" not in value
        return {
            "criterion" if renames and key in FORMER else key: with_criterion(inner) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [with_criterion(inner) for inner in value]
    return value
