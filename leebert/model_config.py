"""The configuration of early-exit models, readable without the modeling code."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from leebert.config import ExitConfig, Precision, parse
from leebert.exits import DEFAULT


def model_exits(criterion: str, threshold: float | None, patience: int | None) -> ExitConfig:
    """Validate the exit criterion of a saved model.

    Args:
        criterion: Name of the exit criterion.
        threshold: Its threshold; None: the criterion's default.
        patience: Its second parameter; None: the criterion's default, or none.

    Returns:
        The validated criterion.

    Raises:
        ConfigError: The criterion is unknown, or a parameter is out of range.
    """
    values = {"criterion": criterion, "threshold": threshold, "patience": patience}
    return parse(ExitConfig, values, "the model's exit criterion in config.json")


class EarlyExitConfig(PreTrainedConfig):
    """Configuration of all saved models: their exits, structure and data."""

    exit_dropout: float = 0.1
    exit_strategy: str = DEFAULT  # the exit criterion, under the key of saved models
    exit_threshold: float | None = None
    exit_patience: int | None = None
    # The reduced network (of encoders: leebert.slim.structure), with the layers (from 1) that have an exit as `exits`, and the
    # number of layers of the unreduced network as `depth`.
    structure: dict[str, Any] | None = None
    # The task of the model's training data.
    task: str | dict[str, Any] | None = None
    metric: str | None = None
    # The precision in which thresholds were chosen; bf16 and fp32 give different exits.
    precision: Precision = "auto"

    @property
    def exits(self) -> ExitConfig:
        """The model's own exit criterion."""
        return model_exits(self.exit_strategy, self.exit_threshold, self.exit_patience)


class LeebertConfig(EarlyExitConfig):
    """Configuration of text models, with the backbone's, so that loading needs no hub."""

    model_type = "leebert"

    backbone_config: dict[str, Any] | None = None
    pooling: str = "pooler"
    initializer_range: float = 0.02
    max_length: int = 128
    # Of the tokenizer that was saved with the model (leebert.compatibility.vocabulary_digest); older models have none.
    vocabulary: str | None = None

    @property
    def vocab_size(self) -> int:
        """Number of word embeddings, from the backbone's configuration; transformers uses this name for resizing.

        Raises:
            AttributeError: The configuration has no backbone, or its backbone has no vocabulary.
        """
        if "vocab_size" not in (self.backbone_config or {}):
            raise AttributeError("vocab_size: this configuration has no backbone with a vocabulary")
        return int((self.backbone_config or {})["vocab_size"])

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.backbone_config = {**(self.backbone_config or {}), "vocab_size": size}

    @property
    def depth(self) -> int:
        """Number of layers of the unreduced network."""
        return int((self.structure or {}).get("depth", self._described_layers))

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Layers below each exit, (M,)."""
        structure = self.structure or {}
        return tuple(structure.get("exits") or range(1, structure.get("layers", self._described_layers) + 1))

    @property
    def num_exits(self) -> int:
        """Number of exits, M."""
        return len(self.exit_layers)

    @property
    def _described_layers(self) -> int:
        backbone = self.backbone_config or {}
        return int(backbone.get("num_hidden_layers") or backbone["n_layers"])
