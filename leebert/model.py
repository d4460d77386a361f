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

#: Of a batch between two layers: states (B, L, H), the mask that layers take, and `attention_mask`; None: nothing masked.
State = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


@dataclasses.dataclass
class EarlyExitOutput(ModelOutput):
    """What the forward returns.

    loss: eq. 1's sum over exits, where labels were given.
    logits: (B, K), the answer under the configured exit criterion.
    exit_logits: (B, M, K) float32, every exit's; the sample comes first, so that `Trainer.predict` joins batches.
    exit_layers: (B,) int64, the exit layer of each sample, from 1.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    exit_logits: torch.Tensor | None = None
    exit_layers: torch.Tensor | None = None


class ExitHeads(nn.Module):
    """M linear exits H → K, children `0`, `1`, …, computed as one product where they are plain linear layers.

    Exits that were quantised, have adapters or hooks are called one by one, as these tools expect. Not a `ModuleList`:
    PEFT trains and saves whole modules with a forward only (`modules_to_save=["heads"]`).
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
        """(m, B, H) pooled states of exits `start` onwards → (m, B, K) logits.

        They are float32 under any autocast and with weights in half precision; with float64 weights they are float64.
        """
        exits = [self[start + m] for m in range(pooled.shape[0])]
        with torch.autocast(pooled.device.type, enabled=False):
            dropped = F.dropout(pooled.to(_at_least_float32(pooled.dtype)), self.dropout, self.training)
            if not all(map(_is_plain, exits)):
                return torch.stack(
                    [_answer(exit_, at_exit) for exit_, at_exit in zip(exits, dropped.unbind(0), strict=True)]
                )
            dtype = torch.promote_types(dropped.dtype, exits[0].weight.dtype)
            weights = [exit_.weight.to(dtype) for exit_ in exits]  # (K, H) each
            biases = [exit_.bias.to(dtype) for exit_ in exits]
            dropped = dropped.to(dtype)
            if len(exits) == 1:
                return F.linear(dropped, weights[0], biases[0])
            return torch.baddbmm(torch.stack(biases).unsqueeze(1), dropped, torch.stack(weights).transpose(1, 2))

    def keep(self, exits: Sequence[int]) -> None:
        """Keep some exits, from 0, in place."""
        kept = [self[exit_] for exit_ in exits]
        self._modules.clear()
        for exit_, module in enumerate(kept):
            self.add_module(str(exit_), module)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _is_plain(exit_: nn.Module) -> bool:
    """Whether an exit is its weight and bias and nothing else."""
    return type(exit_) is nn.Linear and not exit_._forward_hooks and not exit_._forward_pre_hooks


def _answer(exit_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(B, H) → (B, K) by the exit's own forward, in the type of its weights; int8 weights take float32."""
    own = next((p.dtype for p in exit_.parameters()), torch.float32)
    logits = exit_(x.to(own))
    return logits.to(_at_least_float32(logits.dtype))


class LeebertForSequenceClassification(PreTrainedModel):
    """An encoder with an exit after each of its layers, or after those that `exit_layers` names.

    `record` runs all exits; `begin` and `advance` run the layers up to one exit after the other, so that
    :mod:`leebert.inference` can stop between them. `path`, where one is set, chooses what runs in the place of the
    layers in training (:mod:`leebert.slim.layerdrop`, :mod:`leebert.slim.theseus`); it is not saved.
    """

    config_class = LeebertConfig
    gradient_equilibrium = False  #: set for training alone, see :mod:`leebert.equilibrium`; never saved
    base_model_prefix = "backbone"
    accepts_loss_kwargs = False  #: the loss is a mean over the batch, which `Trainer` divides when it accumulates
    supports_gradient_checkpointing = True
    gradient_checkpointing = False  #: set by transformers, for layers that don't do it themselves (ALBERT's)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LeebertConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ConfigError("a LeebertConfig needs a backbone_config")
        if encoder is None:
            described = AutoConfig.for_model(**config.backbone_config)
            encoder = AutoModel.from_config(described, attn_implementation=self.config._attn_implementation)
            restructure(encoder, {key: value for key, value in (config.structure or {}).items() if key in KEYS})
        speed_up(encoder)
        self.backbone = encoder
        if config.pooling == "pooler" and getattr(encoder, "pooler", None) is None:
            config.pooling = "cls"  # section 2.2: the shared pooler where the backbone has one, else the CLS state
        if config.pooling != "pooler" and hasattr(encoder, "pooler"):
            encoder.pooler = None  # unused weights would be trained, saved and counted
        self.heads = ExitHeads(config.num_exits, encoder.config.hidden_size, config.num_labels, config.exit_dropout)
        self.stack = LayerStack(encoder)
        self.path: Callable[[list[Layer]], list[Layer]] | None = None
        self.post_init()

    @property
    def num_exits(self) -> int:
        return self.config.num_exits

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """How many layers have run when each exit answers, (M,)."""
        return self.config.exit_layers

    @property
    def depth(self) -> int:
        """How many layers the unreduced network has, which a speed-up is relative to."""
        return self.config.depth

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ExitHeads):
            for exit_ in module:
                assert isinstance(exit_, nn.Linear)
                nn.init.normal_(exit_.weight, std=self.config.initializer_range)
                nn.init.zeros_(exit_.bias)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings; both configurations follow, so that the model can be saved and loaded."""
        self.backbone.set_input_embeddings(value)
        self.backbone.config.vocab_size = self.config.vocab_size = value.num_embeddings

    def _get_resized_embeddings(self, old_embeddings: nn.Module, *args: Any, **options: Any) -> nn.Module:
        if isinstance(old_embeddings, FactorisedEmbedding):
            old_embeddings.table = super()._get_resized_embeddings(old_embeddings.table, *args, **options)
            old_embeddings.num_embeddings = old_embeddings.table.num_embeddings
            return old_embeddings
        return super()._get_resized_embeddings(old_embeddings, *args, **options)

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

    def begin(self, batch: Mapping[str, torch.Tensor]) -> State:
        """What the first layer takes: its states (B, L, H), the layers' mask, and the tokens' mask.

        Padding is moved behind a row's tokens (:mod:`leebert.padding`).
        """
        batch = padded_behind(batch)
        return *self.stack.begin(batch), batch.get("attention_mask")

    def advance(self, state: State, exit_: int) -> tuple[State, torch.Tensor]:
        """The state after the next exit's layers, and the logits (B, K) float32 of that exit, from 0."""
        states, mask, attention = state
        below = self.exit_layers[exit_ - 1] if exit_ else 0
        for layer in self.stack.layers()[below : self.exit_layers[exit_]]:
            states = layer(states, mask)
        logits = self.heads(self.pool(states, attention).unsqueeze(0), start=exit_)[0]
        return (states, mask, attention), logits

    def record(self, batch: Mapping[str, torch.Tensor], keep: Keep = "logits") -> Record:
        """All exits on one batch of `input_ids`, `attention_mask`, … and optionally `labels`.

        Padding is moved behind a row's tokens (:mod:`leebert.padding`), in what is kept of the states too.
        """
        batch = padded_behind(batch)
        states, mask = self.stack.begin(batch)
        attention = batch.get("attention_mask")
        exits = self.exit_layers
        layers: list[Layer] = [self._checkpointed(layer) for layer in self.stack.layers()[: exits[-1]]]
        if self.path is not None and self.training:
            layers = self.path(layers)
        pooled, kept = {}, [states]
        for ran, layer in enumerate(layers, start=1):
            states = seen = answered = layer(states, mask)
            if self.gradient_equilibrium and ran in exits:
                seen, states = branch_and_trunk(states, exits.index(ran), len(exits))
            if ran in exits or keep == "hidden":
                pooled[ran] = self.pool(seen, attention)
            if keep == "states":
                kept.append(answered)  # as it left the layer: what imitates it is no exit, so nothing is to be balanced
        return Record(
            self.heads(torch.stack([pooled[ran] for ran in exits])),  # of (M, B, H)
            batch.get("labels"),
            torch.stack(list(pooled.values())) if keep == "hidden" else None,
            torch.stack(kept) if keep == "states" else None,
            attention if keep == "states" else None,
        )

    def _checkpointed(self, layer: nn.Module) -> Layer:
        """A layer that keeps only its input for the backward pass, where gradient checkpointing is on."""
        if not (self.gradient_checkpointing and self.training) or isinstance(layer, GradientCheckpointingLayer):
            return layer
        return functools.partial(self._gradient_checkpointing_func, layer)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **unused: Any,
    ) -> EarlyExitOutput:
        """Hugging Face's calling convention around :meth:`record`. All exits are computed; see `leebert.inference`
        for inference that stops."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "labels": labels,
        }
        record = self.record({name: t for name, t in given.items() if t is not None})
        loss = cross_entropy(record.logits, labels) if labels is not None else None
        exits = self._leaving(record.logits)  # (B,)
        logits = record.logits.transpose(0, 1)  # (B, M, K)
        # Sizes stay those of the batch at hand, and no constant is made: what is traced or exported holds for any batch.
        answer = logits.gather(1, exits.view(-1, 1, 1).expand(-1, 1, logits.shape[2])).squeeze(1)
        layers = torch.full_like(exits, self.exit_layers[-1])
        for exit_, layer in enumerate(self.exit_layers[:-1]):
            layers = torch.where(exits == exit_, layer, layers)
        return EarlyExitOutput(loss=loss, logits=answer, exit_logits=logits, exit_layers=layers)

    def keep_exits(self, exits: Iterable[int]) -> None:
        """Keep the exits after the given layers (from 1, ascending) and drop the others. Raises ConfigError."""
        wanted = list(exits)
        if missing := [layer for layer in wanted if layer not in self.exit_layers]:
            raise ConfigError(f"there is no exit after layer {missing[0]}: exits follow layers {self.exit_layers}")
        self._keep(indices((self.exit_layers.index(layer) for layer in wanted), self.num_exits, "exit"), wanted)

    def reduce(
        self,
        *,
        layers: Iterable[int] | None = None,
        heads: Sequence[Iterable[int]] | None = None,
        neurons: Sequence[Iterable[int]] | None = None,
        embedding_rank: int | None = None,
    ) -> None:
        """Take parts out of the backbone, in this order, and keep `config.structure` true (see :mod:`leebert.slim`).

        `layers` are those that stay, from 0; `heads` and `neurons` what stays of each block that is left. An exit moves
        down with the layers that remain below it; of exits that meet the shallowest stays, and one with no layer left
        below it goes. Raises ConfigError for parts that there are not.
        """
        try:
            if layers is not None:
                kept = list(layers)
                below = [sum(layer < exit_ for layer in kept) for exit_ in self.exit_layers]
                stays = [i for i, n in enumerate(below) if n and n not in below[:i]]
                if kept and not stays:
                    raise ConfigError(f"no exit would be left: none of layers {kept} (from 0) lies below one")
                keep_layers(self.backbone, kept)
                self._keep(stays, [below[i] for i in stays])
            if heads is not None:
                prune_heads(self.backbone, heads)
            if neurons is not None:
                prune_neurons(self.backbone, neurons)
            if embedding_rank is not None:
                factorise_embeddings(self.backbone, embedding_rank)
        finally:
            self._describe(self.exit_layers)

    def _keep(self, stays: list[int], layers: list[int]) -> None:
        """Keep some exits, from 0; they now follow `layers`."""
        self.heads.keep(stays)
        self._describe(tuple(layers))

    def _describe(self, exit_layers: tuple[int, ...]) -> None:
        """Write down in the configuration what the model is now."""
        found = structure_of(self.backbone)
        if exit_layers != tuple(range(1, len(self.stack.layers()) + 1)):
            found["exits"] = list(exit_layers)
        self.config.structure = {"depth": self.depth, **found} if found or self.config.structure else None

    @torch.no_grad()
    def _leaving(self, logits: torch.Tensor) -> torch.Tensor:
        own = self.config
        criterion = own.exit_strategy, own.exit_threshold, own.exit_patience
        if not torch.compiler.is_compiling():  # which pydantic's checks can't be
            model_exits(*criterion)
        threshold, patience = threshold_and_patience(*criterion, self.num_exits)
        return exit_indices(CRITERIA[own.exit_strategy].make(threshold, patience, own.num_labels), logits)


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
    # post_init leaves an encoder alone that is initialised already; the exits are new in any case.
    model._init_weights(model.heads)
    return model


def load_model(folder: str | Path) -> LeebertForSequenceClassification:
    """A saved model, from safetensors and without a hub. Raises CheckpointError for a damaged or foreign folder."""
    return load_saved(folder, {LeebertConfig.model_type: LeebertForSequenceClassification})


AutoModelForSequenceClassification.register(LeebertConfig, LeebertForSequenceClassification, exist_ok=True)
