"""The key under which files name an exit criterion.

Files of earlier versions say `strategy` in the section `exits` of a configuration and in the plan of an unfinished refit.
They are read; `criterion` is written. What other programs and old runs hold keeps its key: `exit_strategy`,
`exit_threshold` and `exit_patience` in a model's `config.json` and in the parameters of MLflow's refit runs, `strategy` in
the parameters of MLflow's logged models, and `rule` in the results file of `leebert-tune reproduce`.
"""

from __future__ import annotations

from typing import Any

#: The key of earlier versions for `criterion`.
FORMER = "strategy"


def with_criterion(values: Any) -> Any:
    """Rename the key of earlier versions in a mapping.

    Args:
        values: The mapping; it is not changed. What is no mapping is returned as it is.

    Returns:
        The same with `criterion` for `strategy`.

    Raises:
        ValueError: The mapping has both.
    """
    if not isinstance(values, dict) or FORMER not in values:
        return values
    if "criterion" in values:
        raise ValueError(f"`{FORMER}` is the former name of `criterion`: keep one of the two")
    return {"criterion" if key == FORMER else key: value for key, value in values.items()}
