"""Find settings that differ between the runs of a sweep: a difference in score may be due to them."""

from __future__ import annotations

from collections.abc import Collection

from leebert.provenance import uneven
from tune.store.ledger import SweepState


def uneven_settings(sweep: str, state: SweepState, configs: Collection[str] | None = None) -> list[str]:
    """Describe the settings that differ between finished runs.

    Last digits depend on a run's runtime, and dropout masks on the micro-batches that it used after memory ran out.

    Args:
        sweep: Name of the sweep.
        state: Its state.
        configs: The configurations to consider; None: all.

    Returns:
        One line per setting.
    """
    ends = [record for key, record in state.cells.items() if configs is None or key[0] in configs]
    runtimes = [
        {**end["runtime"], "micro-batches": (end.get("placement") or {}).get("accumulate", 1)}
        for end in ends
        if isinstance(end.get("runtime"), dict)
    ]
    return [
        f"sweep {sweep}: runs were trained with different settings, which may change their last digits: {line} of "
        f"{len(ends)} runs"
        for line in uneven(runtimes)
    ]
