"""One early-exit model around any Hugging Face encoder: an exit after every layer (sections 2.2, 4.4)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from leebert.backbone import Layer, LayerStack, load_encoder
from leebert.compatibility import limits_of_encoder
from leebert.config import ExitConfig, Pooling, TrainConfig
from leebert.dropout import speed_up
from leebert.equilibrium import branch_and_trunk
from leebert.errors import ConfigError
from leebert.exits import CRITERIA
from leebert.exits.checks import threshold_and_patience
from leebert.exits.replay import exit_indices
from leebert.losses import cross_entropy
from leebert.model_config import LeebertConfig, model_exits
from leebert.padding import padded_behind
from leebert.record import Keep, Record
from leebert.saved import load_saved
from leebert.slim.embeddings import FactorisedEmbedding, factorise_embeddings
from leebert.slim.layers import keep_layers
from leebert.slim.parts import indices
from leebert.slim.structure import KEYS, restructure, structure_of
from leebert.slim.width import prune_heads, prune_neurons

#: The state of a batch between two layers: states (B, L, H), the layers' mask, and `attention_mask`; None: no mask.
LayerState = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


@dataclasses.dataclass
class EarlyExitOutput(ModelOutput):
    """The output of `forward`.

    Attributes:
        loss: Sum over exits of eq. 1, if labels were given.
        logits: (B, K) of each sample's exit under the configured exit criterion.
        exit_logits: (B, M, K) float32 of all exits, samples first, so that `Trainer.predict` can concatenate batches.
        exit_layers: (B,) int64, exit layer of each sample, from 1.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    exit_logits: torch.Tensor | None = None
    exit_layers: torch.Tensor | None = None


class ExitHeads(nn.Module):
    """M linear exits H → K, with the children `0`, `1`, …, computed as one product if they are plain linear layers.

    Exits that are quantised, or have adapters or hooks, are called one by one. The class is not a `ModuleList`, because
    PEFT can train and save only modules with a `forward` (`modules_to_save=["heads"]`).

    Args:
        num_exits: M.
        hidden: H, size of a pooled state.
        classes: K.
        dropout: Probability of dropping an input of the exits, in training only.
    """

    def __init__(self, num_exits: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        for exit_ in range(num_exits):
            self.add_module(str(exit_), nn.Linear(hidden, classes))

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, exit_: int) -> Any:
        return list(self)[exit_]

    def forward(self, pooled: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Compute the logits of m successive exits.

        Args:
            pooled: (m, B, H) pooled states, one per exit.
            start: The first of these exits, from 0.

        Returns:
            Logits (m, B, K): float32 under autocast and with weights in half precision, float64 with float64 weights.
        """
        exits = [self[start + m] for m in range(pooled.shape[0])]
        with torch.autocast(pooled.device.type, enabled=False):
            dropped = F.dropout(pooled.to(_at_least_float32(pooled.dtype)), self.dropout, self.training)
            if not all(map(_is_plain, exits)):
                return torch.stack(
                    [_classify(exit_, at_exit) for exit_, at_exit in zip(exits, dropped.unbind(0), strict=True)]
                )
            dtype = torch.promote_types(dropped.dtype, exits[0].weight.dtype)
            weights = [exit_.weight.to(dtype) for exit_ in exits]  # (K, H) each
            biases = [exit_.bias.to(dtype) for exit_ in exits]
            dropped = dropped.to(dtype)
            if len(exits) == 1:
                return F.linear(dropped, weights[0], biases[0])
            return torch.baddbmm(torch.stack(biases).unsqueeze(1), dropped, torch.stack(weights).transpose(1, 2))

    def keep(self, exits: Sequence[int]) -> None:
        """Keep these exits, from 0, and remove the others in place."""
        modules = [self[exit_] for exit_ in exits]
        self._modules.clear()
        for exit_, module in enumerate(modules):
            self.add_module(str(exit_), module)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _is_plain(exit_: nn.Module) -> bool:
    """Whether an exit consists only of its weight and bias."""
    return type(exit_) is nn.Linear and not exit_._forward_hooks and not exit_._forward_pre_hooks


def _classify(exit_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Call an exit on (B, H) in the type of its weights (float32 for int8 weights); returns (B, K)."""
    dtype = next((p.dtype for p in exit_.parameters()), torch.float32)
    logits: torch.Tensor = exit_(x.to(dtype))
    return logits.to(_at_least_float32(logits.dtype))


class LeebertForSequenceClassification(PreTrainedModel):
    """A pretrained encoder with an exit after each layer, or after the layers of `exit_layers` (sections 2.2, 4.4).

    `record` runs all exits. `begin` and `advance` run the layers from exit to exit, so that :mod:`leebert.inference` can
    stop between them. `path`, if set, replaces layers in training (:mod:`leebert.slim.layerdrop`,
    :mod:`leebert.slim.theseus`); it is not saved.

    Args:
        config: The configuration, with the backbone's.
        encoder: The pretrained encoder; None: a new one from `config.backbone_config`.

    Raises:
        ConfigError: The configuration has no backbone.
    """

    config_class = LeebertConfig
    gradient_equilibrium = False  #: set only in training, see :mod:`leebert.equilibrium`; never saved
    base_model_prefix = "backbone"
    accepts_loss_kwargs = False  #: the loss is a mean over the batch, so `Trainer` divides it for gradient accumulation
    supports_gradient_checkpointing = True
    gradient_checkpointing = False  #: set by transformers, for layers without their own checkpointing (ALBERT's)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LeebertConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.config: LeebertConfig
        if config.backbone_config is None:
            raise ConfigError(
                "LeebertConfig: backbone_config is missing; use build_model, or give the encoder's configuration"
            )
        if encoder is None:
            described = AutoConfig.for_model(**config.backbone_config)
            encoder = AutoModel.from_config(described, attn_implementation=self.config._attn_implementation)
            restructure(encoder, {key: value for key, value in (config.structure or {}).items() if key in KEYS})
        speed_up(encoder)
        self.backbone = encoder
        if config.pooling == "pooler" and getattr(encoder, "pooler", None) is None:
            config.pooling = "cls"  # section 2.2: the shared pooler if the backbone has one, else the CLS state
        if config.pooling != "pooler" and hasattr(encoder, "pooler"):
            encoder.pooler = None  # otherwise its unused weights are trained, saved and counted
        self.heads = ExitHeads(config.num_exits, encoder.config.hidden_size, config.num_labels, config.exit_dropout)
        self.stack = LayerStack(encoder)
        self.path: Callable[[list[Layer]], list[Layer]] | None = None
        for name in {*CRITERIA.built_in, config.exit_strategy}:
            CRITERIA.find(name)  # import its module: a compiled forward can't
        self.post_init()

    @property
    def num_exits(self) -> int:
        """M."""
        return self.config.num_exits

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """(M,) layers below each exit."""
        return self.config.exit_layers

    @property
    def depth(self) -> int:
        """Layers of the unreduced network, the reference of speed-ups."""
        return self.config.depth

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ExitHeads):
            for exit_ in module:
                assert isinstance(exit_, nn.Linear)
                nn.init.normal_(exit_.weight, std=self.config.initializer_range)
                nn.init.zeros_(exit_.bias)

    def set_input_embeddings(self, value: nn.Embedding | FactorisedEmbedding) -> None:
        """Replace the word embeddings, and update both configurations, so that the model can be saved and loaded."""
        self.backbone.set_input_embeddings(value)
        self.backbone.config.vocab_size = self.config.vocab_size = value.num_embeddings
        self.config.vocabulary = None  # new embeddings go with a new tokenizer

    def _get_resized_embeddings(self, old_embeddings: nn.Module, *args: Any, **options: Any) -> nn.Module:
        if isinstance(old_embeddings, FactorisedEmbedding):
            old_embeddings.table = super()._get_resized_embeddings(old_embeddings.table, *args, **options)
            old_embeddings.num_embeddings = old_embeddings.table.num_embeddings
            return old_embeddings
        resized: nn.Module = super()._get_resized_embeddings(old_embeddings, *args, **options)
        return resized

    def pool(self, states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Pool a layer's states with the configured pooling: shared pooler, CLS state, or mean over tokens.

        Args:
            states: (B, L, H) states after a layer.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None: no padding. Only the mean reads it.

        Returns:
            (B, H), the input of an exit.
        """
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
            pooled: torch.Tensor = encoder.pooler_activation(encoder.pooler(cls))
        else:
            pooled = encoder.pooler(states)
        return pooled

    def begin(self, batch: Mapping[str, torch.Tensor]) -> LayerState:
        """Make the input of the first layer. Padding moves behind a sample's tokens (:mod:`leebert.padding`).

        Args:
            batch: `input_ids`, `attention_mask`, … (B, L).

        Returns:
            States (B, L, H), the layers' attention mask, and the tokens' mask (B, L).
        """
        batch = padded_behind(batch)
        return *self.stack.begin(batch), batch.get("attention_mask")

    def advance(self, state: LayerState, exit_: int) -> tuple[LayerState, torch.Tensor]:
        """Run the layers from the previous exit to the next one.

        Args:
            state: What :meth:`begin` or `advance` returned at the previous exit.
            exit_: The next exit, from 0.

        Returns:
            The new state, and the exit's logits (B, K), float32.
        """
        states, mask, attention = state
        below = self.exit_layers[exit_ - 1] if exit_ else 0
        for layer in self.stack.layers()[below : self.exit_layers[exit_]]:
            states = layer(states, mask)
        logits = self.heads(self.pool(states, attention).unsqueeze(0), start=exit_)[0]
        return (states, mask, attention), logits

    def record(self, batch: Mapping[str, torch.Tensor], keep: Keep = "logits") -> Record:
        """Run all exits on one batch.

        Padding moves behind a sample's tokens (:mod:`leebert.padding`), also in the kept states.

        Args:
            batch: `input_ids`, `attention_mask`, … (B, L), and optionally `labels` (B,).
            keep: What the record holds besides logits.

        Returns:
            Logits (M, B, K) of all exits, and what `keep` asks for.
        """
        batch = padded_behind(batch)
        states, mask = self.stack.begin(batch)
        attention = batch.get("attention_mask")
        exits = self.exit_layers
        layers: list[Layer] = [self._checkpointed(layer) for layer in self.stack.layers()[: exits[-1]]]
        if self.path is not None and self.training:
            layers = self.path(layers)
        pooled, all_states = {}, [states]
        for ran, layer in enumerate(layers, start=1):
            states = exit_input = output = layer(states, mask)
            if self.gradient_equilibrium and ran in exits:
                exit_input, states = branch_and_trunk(states, exits.index(ran), len(exits))
            if ran in exits or keep == "hidden":
                pooled[ran] = self.pool(exit_input, attention)
            if keep == "states":
                all_states.append(output)  # the layer's output: gradient equilibrium applies to exits only
        return Record(
            self.heads(torch.stack([pooled[ran] for ran in exits])),  # of (M, B, H)
            batch.get("labels"),
            torch.stack(list(pooled.values())) if keep == "hidden" else None,
            torch.stack(all_states) if keep == "states" else None,
            attention if keep == "states" else None,
        )

    def _checkpointed(self, layer: nn.Module) -> Layer:
        """Wrap a layer to keep only its input for the backward pass, if gradient checkpointing is on."""
        if not (self.gradient_checkpointing and self.training) or isinstance(layer, GradientCheckpointingLayer):
            return layer
        return functools.partial(self._gradient_checkpointing_func, layer)

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers is not followed
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **unused: Any,
    ) -> EarlyExitOutput:
        """Compute all exits, with Hugging Face's calling convention; `leebert.inference` stops at the exit layer.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L).
            token_type_ids: (B, L).
            labels: (B,) class ids, for a loss.
            position_ids: (B, L).
            **unused: Ignored.

        Returns:
            Logits of each sample's exit under the configured criterion, the logits of all exits, and exit layers.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "labels": labels,
        }
        record = self.record({name: t for name, t in inputs.items() if t is not None})
        loss = cross_entropy(record.logits, labels) if labels is not None else None
        exits = self._exit_indices(record.logits)  # (B,)
        logits = record.logits.transpose(0, 1)  # (B, M, K)
        # No batch size becomes a constant here, so that a traced or exported model works for any batch.
        selected = logits.gather(1, exits.view(-1, 1, 1).expand(-1, 1, logits.shape[2])).squeeze(1)
        layers = torch.full_like(exits, self.exit_layers[-1])
        for exit_, layer in enumerate(self.exit_layers[:-1]):
            layers = torch.where(exits == exit_, layer, layers)
        return EarlyExitOutput(loss=loss, logits=selected, exit_logits=logits, exit_layers=layers)

    def keep_exits(self, exits: Iterable[int]) -> None:
        """Keep the exits after the given layers and remove the others.

        Args:
            exits: Layers, from 1, ascending.

        Raises:
            ConfigError: A layer has no exit.
        """
        layers = list(exits)
        if missing := [layer for layer in layers if layer not in self.exit_layers]:
            raise ConfigError(f"layer {missing[0]} has no exit; layers with exits are {self.exit_layers}")
        self._keep(indices((self.exit_layers.index(layer) for layer in layers), self.num_exits, "exit"), layers)

    def reduce(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Sequence[Iterable[int]] | None = None,
        neurons: Sequence[Iterable[int]] | None = None,
        embedding_rank: int | None = None,
    ) -> None:
        """Remove parts of the backbone, in this order, and update `config.structure` (see :mod:`leebert.slim`).

        An exit stays after the remaining layers below it. If several exits have the same layers, the shallowest remains;
        an exit without layers is removed.

        Args:
            layers: Layers to keep, from 0.
            heads: Attention heads to keep in each remaining block, from 0.
            neurons: Inner neurons to keep in each remaining block, from 0.
            embedding_rank: Rank of factorised word embeddings.

        Raises:
            ConfigError: A part does not exist, or no exit remains.
        """
        try:
            if layers is not None:
                kept_layers = list(layers)
                below = [sum(layer < exit_ for layer in kept_layers) for exit_ in self.exit_layers]
                remaining = [i for i, n in enumerate(below) if n and n not in below[:i]]
                if kept_layers and not remaining:
                    raise ConfigError(f"layers {kept_layers} (from 0): no exit remains; keep a layer below an exit")
                keep_layers(self.backbone, kept_layers)
                self._keep(remaining, [below[i] for i in remaining])
            if heads is not None:
                prune_heads(self.backbone, heads)
            if neurons is not None:
                prune_neurons(self.backbone, neurons)
            if embedding_rank is not None:
                factorise_embeddings(self.backbone, embedding_rank)
        finally:
            self._describe(self.exit_layers)

    def _keep(self, remaining: list[int], layers: list[int]) -> None:
        """Keep these exits, from 0, which now follow `layers`."""
        self.heads.keep(remaining)
        self._describe(tuple(layers))

    def _describe(self, exit_layers: tuple[int, ...]) -> None:
        """Write the model's structure into its configuration."""
        structure = structure_of(self.backbone)
        if exit_layers != tuple(range(1, len(self.stack.layers()) + 1)):
            structure["exits"] = list(exit_layers)
        self.config.structure = {"depth": self.depth, **structure} if structure or self.config.structure else None

    @torch.no_grad()
    def _exit_indices(self, logits: torch.Tensor) -> torch.Tensor:
        config = self.config
        criterion = config.exit_strategy, config.exit_threshold, config.exit_patience
        if not torch.compiler.is_compiling():  # pydantic's checks can't be compiled
            model_exits(*criterion)
        threshold, patience = threshold_and_patience(*criterion, self.num_exits)
        stepped = CRITERIA[config.exit_strategy].make(threshold, patience, config.num_labels)
        indices: torch.Tensor = exit_indices(stepped, logits)
        return indices


def build_model(
    backbone: str | PreTrainedModel,
    label_names: tuple[str, ...],
    *,
    pooling: Pooling = "pooler",
    train: TrainConfig | None = None,
    exits: ExitConfig | None = None,
) -> LeebertForSequenceClassification:
    """Build an early-exit model from a pretrained encoder, with new exits.

    Seed torch first, since the exits' weights are drawn at random.

    Args:
        backbone: A hub id, folder or `package:NAME/path` (:func:`leebert.backbone.locate`), or an encoder.
        label_names: Names of the K classes, in the order of their ids.
        pooling: Pooling before each classifier; `cls` replaces `pooler` for encoders without one.
        train: The training options, for `exit_dropout`.
        exits: The exit criterion; None: patience.

    Returns:
        The model, with an exit after each layer.

    Raises:
        BackboneError: The encoder can't be loaded, or its family is not supported.
    """
    encoder = load_encoder(backbone) if isinstance(backbone, str) else backbone
    if getattr(encoder, "pooler", None) is None and pooling == "pooler":
        pooling = "cls"
    exits = exits or ExitConfig()
    described = encoder.config.to_dict()
    described["num_hidden_layers"] = encoder.config.num_hidden_layers
    reduced = structure_of(encoder)
    longest = limits_of_encoder(encoder).longest
    config = LeebertConfig(
        backbone_config=described,
        max_length=LeebertConfig.max_length if longest is None else min(LeebertConfig.max_length, longest),
        structure={"depth": encoder.config.num_hidden_layers, **reduced} if reduced else None,
        pooling=pooling,
        exit_dropout=(train or TrainConfig()).exit_dropout,
        exit_strategy=exits.criterion,
        exit_threshold=exits.threshold,
        exit_patience=exits.patience,
        id2label=dict(enumerate(label_names)),
        label2id={name: i for i, name in enumerate(label_names)},
    )
    model = LeebertForSequenceClassification(config, encoder=encoder)
    # post_init skips an encoder that is already initialised, but the exits are always new.
    model._init_weights(model.heads)
    return model


def load_model(folder: str | Path) -> LeebertForSequenceClassification:
    """Load a saved model from safetensors, without the hub.

    Args:
        folder: A folder written by `leebert train`, `leebert-tune refit` or `save_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: The folder is damaged, or holds no early-exit model of texts.
    """
    return load_saved(folder, {LeebertConfig.model_type: LeebertForSequenceClassification})


AutoModelForSequenceClassification.register(LeebertConfig, LeebertForSequenceClassification, exist_ok=True)
