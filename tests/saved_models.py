"""Saved early-exit models that nobody has trained: their exits disagree and differ in confidence, which is all that is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from encoders import batch, encoder, tokenizer

LAYERS = 4


def save_model(
    folder: Path, task: str | dict[str, Any] | None, label_names: tuple[str, ...], layers: int = LAYERS, **config: Any
) -> Path:
    """A model of a few layers in a folder, as `leebert train` leaves it."""
    from leebert.config import ExitConfig
    from leebert.model import build_model

    torch.manual_seed(0)
    model = build_model(
        encoder("bert", layers), label_names, pooling="mean", exits=ExitConfig(criterion="entropy", threshold=0.5)
    )
    with torch.no_grad():
        # Around the mean of some rows, so that answers differ from row to row whatever the weights are.
        seen = model.eval().record(batch(), keep="hidden").hidden.mean(dim=1)  # (M, H)
        for exit_, mean in zip(model.heads, seen, strict=True):
            exit_.weight *= 100
            exit_.bias.copy_(-exit_.weight @ mean)
    for name, value in {"task": task, "max_length": 32, "precision": "fp32", **config}.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
