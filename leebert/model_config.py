"""The early-exit model's configuration, apart from the model so that it can be read without torch's modeling code."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from leebert.config import ExitConfig, parse


class LeebertConfig(PreTrainedConfig):
    """Labels, exits and the exact backbone configuration, so that loading needs no hub."""

    model_type = "leebert"

    backbone_config: dict[str, Any] | None = None
    pooling: str = "pooler"
    exit_dropout: float = 0.1
    exit_strategy: str = "patience"
    exit_threshold: float | None = None
    exit_patience: int | None = None
    initializer_range: float = 0.02
    # What the command line needs to read the data that this model was made for.
    task: str | dict[str, Any] | None = None
    max_length: int = 128
    metric: str | None = None
    # What thresholds were chosen in; the same logits in bf16 and fp32 leave elsewhere.
    precision: str = "auto"

    @property
    def exits(self) -> ExitConfig:
        """The model's own exit rule."""
        values = {"strategy": self.exit_strategy, "threshold": self.exit_threshold, "patience": self.exit_patience}
        return parse(ExitConfig, values, "the model's exit rule in config.json")

    @property
    def num_exits(self) -> int:
        return int((self.backbone_config or {}).get("num_hidden_layers") or (self.backbone_config or {})["n_layers"])
