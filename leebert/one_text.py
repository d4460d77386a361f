"""Classify one text with a saved model, and measure how much time its early exit saves."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from leebert.config import ExitConfig
from leebert.data.collate import TokenRows
from leebert.exits import FULL_MODEL
from leebert.exits.replay import make_criterion
from leebert.inference import infer
from leebert.kinds.texts import load_text_model
from leebert.predict import encode, predict_encoded
from leebert.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Classified:
    """A classified text.

    Attributes:
        label: The predicted class.
        probability: Its probability at the exit.
        exit_layer: The layer at which the text exits, from 1.
        depth: The layers of the full model.
        milliseconds: Time of the layers that run, of the fastest round, which other processes disturb least.
        full_label: The class that the full model predicts.
        full_milliseconds: The same for the full model.
    """

    label: str
    probability: float
    exit_layer: int
    depth: int
    milliseconds: float
    full_label: str
    full_milliseconds: float

    def in_words(self) -> str:
        """Describe the prediction, its exit layer and both times."""
        full = "the same class" if self.full_label == self.label else self.full_label
        return (
            f"{self.label} (probability {self.probability:.2f}) after layer {self.exit_layer} of {self.depth}, "
            f"in {self.milliseconds:.2f} ms; the full model: {full}, in {self.full_milliseconds:.2f} ms "
            f"(wall-clock speed-up {self.full_milliseconds / self.milliseconds:.1f})"
        )


def classify(folder: str | Path, *text: str, rounds: int = 30) -> Classified:
    """Classify a text with a saved model under its exit criterion and with the full model, and time both.

    Args:
        folder: The saved model.
        *text: The text, or the pair of texts.
        rounds: Timed rounds, in which both alternate.

    Returns:
        The prediction, with the times of the layers that run, without tokenising.
    """
    model, tokenizer = load_text_model(folder)
    runtime = Runtime.of(model.config.precision, "auto")
    model.to(runtime.device)
    exits = (model.config.exits, ExitConfig(criterion=FULL_MODEL))
    criteria = [
        make_criterion(
            one.criterion, one.threshold, one.patience, num_exits=model.num_exits, num_classes=model.config.num_labels
        )
        for one in exits
    ]
    encoded = encode(tokenizer, [text], model.config.max_length)
    early, full = (predict_encoded(model, tokenizer, encoded, one, runtime, 1)[0] for one in criteria)
    batch = TokenRows.of(encoded, tokenizer.pad_token_id).collate([0])
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for times, criterion in zip(seconds, criteria, strict=True):
            started = time.perf_counter()
            infer(model, batch, criterion, runtime).logits.cpu()
            times.append(time.perf_counter() - started)
    fastest = [1000 * min(times) for times in seconds]
    return Classified(
        early["label"], early["probability"], early["exit_layer"], model.depth, fastest[0], full["label"], fastest[1]
    )
