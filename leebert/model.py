"""One early-exit model around any Hugging Face encoder: an exit after every layer (sections 2.2, 4.4)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from leebert.backbone import LayerStack, load_encoder
from leebert.config import ExitConfig, Pooling, TrainConfig
from leebert.dropout import speed_up
from leebert.equilibrium import branch_and_trunk
from leebert.errors import CheckpointError, ConfigError
from leebert.exits import make_strategy
from leebert.losses import cross_entropy
from leebert.model_config import LeebertConfig
from leebert.record import Record


@dataclasses.dataclass
class EarlyExitOutput(ModelOutput):
    """What the forward returns.

    loss: eq. 1's sum over exits, where labels were given.
    logits: (B, K), the answer of the configured exit strategy.
    exit_logits: (M, B, K), every exit's.
    exit_layers: (B,) int64, the layer at which each row leaves, from 1.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    exit_logits: torch.Tensor | None = None
    exit_layers: torch.Tensor | None = None


class ExitHeads(nn.Module):
    """M linear exits H → K as one tensor, so that all of them are one product."""

    def __init__(self, num_exits: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_exits, classes, hidden))
        self.bias = nn.Parameter(torch.zeros(num_exits, classes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: torch.Tensor, start: int = 0) -> torch.Tensor:
        """(m, B, H) pooled states of exits `start` onwards → (m, B, K) logits, in float32 under any autocast."""
        stop = start + pooled.shape[0]
        with torch.autocast(pooled.device.type, enabled=False):
            dropped = self.dropout(pooled.float())
            return torch.baddbmm(self.bias[start:stop].unsqueeze(1), dropped, self.weight[start:stop].transpose(1, 2))


class LeebertForSequenceClassification(PreTrainedModel):
    """An encoder with an exit after each of its M layers.

    `record` runs all exits; `stages of inference` are `stack`, `pool` and `heads`, with which
    :mod:`leebert.inference` stops between layers.
    """

    config_class = LeebertConfig
    gradient_equilibrium = False  #: set for training alone, see :mod:`leebert.equilibrium`; never saved
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LeebertConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ConfigError("a LeebertConfig needs a backbone_config")
        if encoder is None:
            encoder = AutoModel.from_config(AutoConfig.for_model(**config.backbone_config))
        speed_up(encoder)
        self.backbone = encoder
        if config.pooling == "pooler" and getattr(encoder, "pooler", None) is None:
            config.pooling = "cls"  # section 2.2: the shared pooler where the backbone has one, else the CLS state
        if config.pooling != "pooler" and hasattr(encoder, "pooler"):
            encoder.pooler = None  # unused weights would be trained, saved and counted
        self.num_exits = config.num_exits
        self.heads = ExitHeads(self.num_exits, encoder.config.hidden_size, config.num_labels, config.exit_dropout)
        self.stack = LayerStack(encoder)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ExitHeads):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    def pool(self, states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """What an exit sees of a layer's states (B, L, H): the shared pooler, the CLS state, or the mean over tokens; (B, H)."""
        if self.config.pooling == "mean":
            if attention_mask is None:
                return states.mean(dim=1)
            weight = attention_mask.to(states.dtype).unsqueeze(-1)  # (B, L, 1)
            return (states * weight).sum(dim=1) / weight.sum(dim=1)
        cls = states[:, 0]
        if self.config.pooling == "cls":
            return cls
        encoder = self.backbone
        if hasattr(encoder, "pooler_activation"):  # ALBERT: a linear layer and its activation
            return encoder.pooler_activation(encoder.pooler(cls))
        return encoder.pooler(states)

    def record(self, batch: Mapping[str, torch.Tensor], *, keep_hidden: bool = False) -> Record:
        """All exits on one batch of `input_ids`, `attention_mask`, … and optionally `labels`."""
        states, mask = self.stack.begin(batch)
        pooled = []
        for exit_, layer in enumerate(self.stack.layers()):
            states = seen = layer(states, mask)
            if self.gradient_equilibrium:
                seen, states = branch_and_trunk(states, exit_, self.num_exits)
            pooled.append(self.pool(seen, batch.get("attention_mask")))
        hidden = torch.stack(pooled)  # (M, B, H)
        return Record(self.heads(hidden), batch.get("labels"), hidden if keep_hidden else None)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **unused: Any,
    ) -> EarlyExitOutput:
        """Hugging Face's calling convention around :meth:`record`. All exits are computed; see `leebert.inference`
        for inference that stops."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "labels": labels,
        }
        record = self.record({name: t for name, t in given.items() if t is not None})
        loss = cross_entropy(record.logits, labels) if labels is not None else None
        leaving = self._leaving(record.logits)
        answer = record.logits[leaving, torch.arange(len(leaving), device=leaving.device)]
        return EarlyExitOutput(loss=loss, logits=answer, exit_logits=record.logits, exit_layers=leaving + 1)

    @torch.no_grad()
    def _leaving(self, logits: torch.Tensor) -> torch.Tensor:
        m, b, k = logits.shape
        strategy = make_strategy(self.config.exit_strategy, self.config.exit_threshold, num_exits=m, num_classes=k)
        leaving = torch.full((b,), m - 1, device=logits.device)
        state: Any = None
        for exit_ in range(m - 1):
            leaves, state = strategy.step(logits[exit_], state)
            leaving = torch.where(leaves & (leaving == m - 1), exit_, leaving)
        return leaving


def build_model(
    backbone: str | PreTrainedModel,
    label_names: tuple[str, ...],
    *,
    pooling: Pooling = "pooler",
    train: TrainConfig | None = None,
    exits: ExitConfig | None = None,
) -> LeebertForSequenceClassification:
    """An early-exit model with pretrained encoder and new exits (seed torch first for the exits' initial weights).

    `backbone` is a name as in :func:`leebert.backbone.locate`, or an encoder, which is then used as it is.
    """
    encoder = load_encoder(backbone) if isinstance(backbone, str) else backbone
    if getattr(encoder, "pooler", None) is None and pooling == "pooler":
        pooling = "cls"
    exits = exits or ExitConfig()
    described = encoder.config.to_dict()
    described["num_hidden_layers"] = encoder.config.num_hidden_layers
    config = LeebertConfig(
        backbone_config=described,
        pooling=pooling,
        exit_dropout=(train or TrainConfig()).exit_dropout,
        exit_strategy=exits.strategy,
        exit_threshold=exits.threshold,
        id2label=dict(enumerate(label_names)),
        label2id={name: i for i, name in enumerate(label_names)},
    )
    model = LeebertForSequenceClassification(config, encoder=encoder)
    # post_init leaves an encoder alone that is initialised already; the exits are new in any case.
    model._init_weights(model.heads)
    return model


def load_model(folder: str | Path) -> LeebertForSequenceClassification:
    """A saved model, from safetensors and without a hub. Raises CheckpointError for a damaged or foreign folder."""
    config_file = Path(folder) / "config.json"
    try:
        values = json.loads(config_file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config_file} can't be read: {error}") from None
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind != LeebertConfig.model_type:
        held = f"a {kind!r} model, not an early-exit one" if kind else "no early-exit model"
        raise CheckpointError(f"{folder} holds {held}; train one with it as --backbone")
    try:
        model, told = LeebertForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the model in {folder} is damaged: {str(error).strip().splitlines()[0]}") from None
    if missing := sorted(told["missing_keys"]):
        raise CheckpointError(
            f"the model in {folder} is damaged: {len(missing)} weights are missing, such as {missing[0]}"
        )
    return model


AutoModelForSequenceClassification.register(LeebertConfig, LeebertForSequenceClassification, exist_ok=True)
