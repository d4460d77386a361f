"""The result of an export."""

from __future__ import annotations

import dataclasses
from typing import Any

from leebert.export.exits import Choice
from leebert.exported.manifest import Manifest
from leebert.thresholds import Chosen


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        manifest: The manifest as written.
        choice: The choice of exits; None for a model with one exit.
        chosen: The exit criterion and threshold in use; None for one exit.
        source: The samples of scores, in words.
        tuned: Whether thresholds were chosen on a development split.
        texts_source: The samples of the ranges of static int8, in words.
        size: Bytes of the segments.
        calibrated_on: The samples of thresholds and curves, in words.
    """

    manifest: Manifest
    choice: Choice | None
    chosen: Chosen | None
    source: str
    tuned: bool
    texts_source: str
    size: int
    calibrated_on: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the manifest without its curves, and the choice of exits."""
        values = dataclasses.asdict(dataclasses.replace(self.manifest, curves=()))
        chosen = self.chosen and dataclasses.asdict(self.chosen)
        choice = self.choice and {"expected": self.choice.expected, "expected_all_exits": self.choice.before,
                                  "exit_milliseconds": self.choice.costs.exit_}  # fmt: skip
        return {**values, "chosen": chosen, "choice": choice, "source": self.source,
                "calibrated_on": self.calibrated_on, "bytes": self.size}  # fmt: skip
