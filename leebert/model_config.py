"""The early-exit model's configuration, apart from the model so that it can be read without torch's modeling code."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from leebert.config import ExitConfig, Precision, parse
from leebert.exits import DEFAULT


def model_exits(criterion: str, threshold: float | None, patience: int | None) -> ExitConfig:
    """A model's own exit criterion, checked. Raises ConfigError."""
    values = {"criterion": criterion, "threshold": threshold, "patience": patience}
    return parse(ExitConfig, values, "the model's exit criterion in config.json")


class EarlyExitConfig(PreTrainedConfig):
    """What every saved model with exits says of them and of the data that it was made for."""

    exit_dropout: float = 0.1
    exit_strategy: str = DEFAULT  # the exit criterion; the key that saved models have
    exit_threshold: float | None = None
    exit_patience: int | None = None
    # What is left of the network (of an encoder: leebert.slim.structure), the layers (from 1) with an exit as `exits`,
    # and as `depth` how many layers the network had that it stands for.
    structure: dict[str, Any] | None = None
    # What the command line needs to read the data that this model was made for.
    task: str | dict[str, Any] | None = None
    metric: str | None = None
    # What thresholds were chosen in; the same logits in bf16 and fp32 leave elsewhere.
    precision: Precision = "auto"

    @property
    def exits(self) -> ExitConfig:
        """The model's own exit criterion."""
        return model_exits(self.exit_strategy, self.exit_threshold, self.exit_patience)


class LeebertConfig(EarlyExitConfig):
    """Labels, exits and the exact backbone configuration, so that loading needs no hub."""

    model_type = "leebert"

    backbone_config: dict[str, Any] | None = None
    pooling: str = "pooler"
    initializer_range: float = 0.02
    max_length: int = 128
    # Of the tokenizer that was saved with the model (leebert.compatibility.vocabulary_digest); older models have none.
    vocabulary: str | None = None

    @property
    def vocab_size(self) -> int:
        """The number of word embeddings, which the backbone's configuration holds; transformers resizes by this name."""
        if "vocab_size" not in (self.backbone_config or {}):
            raise AttributeError("vocab_size: this configuration has no backbone with a vocabulary")
        return int((self.backbone_config or {})["vocab_size"])

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.backbone_config = {**(self.backbone_config or {}), "vocab_size": size}

    @property
    def depth(self) -> int:
        """How many layers the unreduced network has."""
        return int((self.structure or {}).get("depth", self._described_layers))

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """How many layers have run when each exit answers, (M,)."""
        structure = self.structure or {}
        return tuple(structure.get("exits") or range(1, structure.get("layers", self._described_layers) + 1))

    @property
    def num_exits(self) -> int:
        return len(self.exit_layers)

    @property
    def _described_layers(self) -> int:
        backbone = self.backbone_config or {}
        return int(backbone.get("num_hidden_layers") or backbone["n_layers"])
