"""The options of a prediction, of saved and of exported models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class PredictorOptions:
    """How to predict with the model of a folder.

    Attributes:
        folder: The saved model.
        criterion: The exit criterion; None: the model's own.
        threshold: Its threshold; None: the model's own, or the criterion's default.
        patience: Its second parameter; None: as for the threshold.
        batch_size: Samples per forward pass.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, bf16 or auto; None: the precision of its training.
        threads: CPU threads per process; None: all that the library uses by default.
    """

    folder: Path
    criterion: str | None = None
    threshold: float | None = None
    patience: int | None = None
    batch_size: int = 64
    device: str = "auto"
    precision: Any = None
    threads: int | None = None
