"""Recorded logits for tests: any that there can be, and some whose samples exit at layers known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from leebert.evaluate import RecordedLogits
from leebert.tradeoff import Tradeoff


@st.composite
def records(draw: st.DrawFn, most_exits: int = 5, exits: int | None = None) -> RecordedLogits:
    """Any recorded logits: tied, equal, saturated or with one class only, with exits after any layers."""
    m = exits or draw(st.integers(2, most_exits))
    n, k = draw(st.integers(1, 12)), draw(st.integers(2, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    logits = rng.normal(size=(m, n, k)) * draw(st.sampled_from([0, 0.01, 1, 5, 200]))
    kind = draw(st.sampled_from(["any", "tied", "equal rows", "equal exits", "one class", "partly saturated"]))
    if kind == "tied":
        logits = logits.round()
    elif kind == "equal rows":
        logits[:] = logits[:, :1]
    elif kind == "equal exits":
        logits[:] = logits[:1]
    elif kind == "one class":
        logits[..., 0] = np.abs(logits).max() + 1
    elif kind == "partly saturated":
        logits[:, ::2] *= 1e4
    layers = draw(st.sampled_from([(), tuple(range(2, 2 * m + 1, 2)), (1, *range(3, m + 2))]))
    depth = draw(st.sampled_from([0, 2 * m + 3])) if layers else 0
    return RecordedLogits(logits.astype(np.float32), rng.integers(0, k, n), layers, depth)


def surer(rows: int = 600, exits: int = 6, classes: int = 3, seed: int = 0) -> RecordedLogits:
    """Exits that grow surer with depth, each sample at its own pace."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(exits, rows, classes))
    logits[:, np.arange(rows), labels] += np.arange(1, exits + 1)[:, None] * rng.gamma(2.0, 0.5, rows)
    return RecordedLogits(logits.astype(np.float32), labels)


def crowded(sure: float = 6, wrong: int = 20) -> RecordedLogits:
    """100 samples so certain that their entropies lie within one twentieth of the range; `wrong` of them are so up to exit 4."""
    logits = np.zeros((6, 100, 2), np.float32)
    logits[..., 0] = np.linspace(sure, sure + 3, 100)[None] + np.arange(6)[:, None]
    labels = np.zeros(100, int)
    labels[:wrong] = 1
    logits[4:, :wrong] = logits[4:, :wrong, ::-1]
    return RecordedLogits(logits, labels)


def drawn(criterion: str, layers: Sequence[float], scores: Sequence[float], exits: int, first: float) -> Tradeoff:
    """A curve through these points, of a model with an exit after each layer; `first` is its first exit's score."""
    return Tradeoff(
        criterion, np.array(layers, float), {"score": np.array(scores)}, np.zeros(len(layers)),
        np.empty((len(layers), 0), int), tuple(range(1, exits + 1)), exits, None, first,
    )  # fmt: skip
