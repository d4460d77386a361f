"""Whether the cells of a sweep were trained on the same settings: where not, a difference may be that of the settings."""

from __future__ import annotations

from collections.abc import Collection

from leebert.provenance import uneven
from tune.store.ledger import SweepState


def uneven_settings(sweep: str, state: SweepState, configs: Collection[str] | None = None) -> list[str]:
    """A line for each setting that was not the same in all finished cells (of these configurations); none where all were.

    Last digits depend on a cell's runtime, and dropout masks on the micro-batches that it was run in after memory ran out.
    """
    ends = [record for key, record in state.cells.items() if configs is None or key[0] in configs]
    runtimes = [
        {**end["runtime"], "micro-batches": (end.get("placement") or {}).get("accumulate", 1)}
        for end in ends
        if isinstance(end.get("runtime"), dict)
    ]
    return [
        f"sweep {sweep}: cells were trained on different settings, which may change their last digits: {line} of "
        f"{len(ends)} cells"
        for line in uneven(runtimes)
    ]
