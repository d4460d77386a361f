"""Changes of a model at the start of a stage: remove exits, layers or widths, or skip layers at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from leebert.errors import ConfigError
from leebert.evaluate import layers_of
from leebert.losses import cross_entropy_per_exit
from leebert.record import Batch, Record
from leebert.slim.importance import head_importance, weight_importance
from leebert.slim.layerdrop import LayerDrop
from leebert.slim.layers import check_kept
from leebert.slim.parts import blocks, layer_paths
from leebert.stages import Examined


@dataclasses.dataclass(frozen=True)
class LastExit:
    """Keep only the last exit."""

    def check(self, model: Any) -> None:
        if not hasattr(model, "keep_exits"):
            raise ConfigError(
                f"this method keeps one exit, and {type(model).__name__} has no `keep_exits` to remove the others; "
                "use a method that trains all exits"
            )

    def plan(self, model: Any, examined: Examined | None) -> Any:
        exits = layers_of(model)[0] or (model.num_exits,)
        return [exits[-1]]

    def apply(self, model: Any, plan: Any) -> Any:
        model.keep_exits(plan)
        return model


def require(model: Any, parts: str) -> None:
    """Raise ConfigError if a model has no removable parts."""
    if not hasattr(model, "reduce"):
        raise ConfigError(f"this method removes {parts} of an encoder; {type(model).__name__} has no {parts} to remove")


def require_exit_after_each_layer(model: Any) -> None:
    """Raise ConfigError if a model has fewer exits than layers, since methods count layers by exits."""
    exits, count = layers_of(model)[0], len(model.stack.layers())
    if exits != tuple(range(1, count + 1)):
        raise ConfigError(
            f"this method keeps a share of the layers and needs a model with an exit after each of its {count}; "
            f"here exits follow layers {exits}"
        )


def share_of(count: int, share: float) -> int:
    """Return the share of a number, rounded half to even, at least 1."""
    return max(1, round(share * count))


def first_layers(depth: int, keep: float) -> tuple[int, ...]:
    """Select the first layers, from 0."""
    return tuple(range(share_of(depth, keep)))


def spaced_layers(depth: int, keep: float) -> tuple[int, ...]:
    """Select evenly spaced layers, from 0, the first included; with `keep` 0.5, every second layer of an even depth."""
    count = share_of(depth, keep)
    return tuple(i * depth // count for i in range(count))


@dataclasses.dataclass(frozen=True)
class KeepLayers:
    """Keep only some layers, from 0, with one exit after the last of them."""

    layers: tuple[int, ...]

    def check(self, model: Any) -> None:
        require(model, "layers")
        depth = len(model.stack.layers())
        if self.layers[-1] >= depth:
            raise ConfigError(f"this method needs at least {self.layers[-1] + 1} layers; this encoder has {depth}")
        require_exit_after_each_layer(model)
        check_kept(model.backbone, self.layers)

    def plan(self, model: Any, examined: Examined | None) -> Any:
        return list(self.layers)

    def apply(self, model: Any, plan: Any) -> Any:
        model.path = None
        model.reduce(layers=plan)
        model.keep_exits([len(plan)])
        return model


@dataclasses.dataclass(frozen=True)
class Successors(KeepLayers):
    """Keep the first layers; each replaces a group, so their number must divide the depth (BERT-of-Theseus)."""

    def check(self, model: Any) -> None:
        super().check(model)
        depth = len(model.stack.layers())
        if depth % len(self.layers):
            raise ConfigError(
                f"{len(self.layers)} layers can't replace {depth} layers in groups of equal size: "
                "give theseus a `keep` of 1 over a whole number that divides the layers"
            )


@dataclasses.dataclass(frozen=True)
class Alone(KeepLayers):
    """Keep the present layers, and remove the `path` that replaces them (BERT-of-Theseus)."""

    def check(self, model: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class SkipLayers:
    """Keep the last exit, and skip each layer with probability p in training."""

    p: float

    def check(self, model: Any) -> None:
        require(model, "layers")

    def plan(self, model: Any, examined: Examined | None) -> Any:
        return None

    def apply(self, model: Any, plan: Any) -> Any:
        model.keep_exits(model.exit_layers[-1:])
        model.path = LayerDrop(self.p)
        return model


@dataclasses.dataclass(frozen=True)
class PruneHeads:
    """Prune attention heads, the least important of all layers first, to a share of the unreduced network's.

    Importance is |∂L/∂ξ| of a factor ξ on the head, normalised within each layer (Michel et al., 2019, sections 4.1 and
    2.3). Each layer keeps at least one head.
    """

    share: float

    def check(self, model: Any) -> None:
        require(model, "attention heads")

    def plan(self, model: Any, examined: Examined | None) -> Any:
        all_blocks = blocks(model.backbone)
        total = share_of(_heads_before(model) * len(all_blocks), self.share)
        if examined is None:  # spread evenly, since the importance of heads needs data
            each, remainder = divmod(max(total, len(all_blocks)), len(all_blocks))
            return [list(range(each + (i < remainder))) for i in range(len(all_blocks))]
        loss = _loss_of(model, examined, slice(-1, None))
        scores = head_importance(model, examined.batches(), loss, examined.accumulate)
        normal = [score / score.norm().clamp(min=1e-12) for score in scores]
        return best_of_all(normal, total)

    def apply(self, model: Any, plan: Any) -> Any:
        model.reduce(heads=plan)
        return model


@dataclasses.dataclass(frozen=True)
class Slenderise:
    """Reduce heads, inner width and the rank of embeddings to a share of the unreduced network's; the depth stays.

    Heads and neurons are ranked by |weight| · Σ|gradient| of the sum over exits, equally many per layer; embeddings are
    reduced by truncated SVD unless they are already factorised (Shen et al., 2022, section 3.1).
    """

    share: float

    def check(self, model: Any) -> None:
        require(model, "heads, neurons and embeddings")

    def plan(self, model: Any, examined: Examined | None) -> Any:
        all_blocks = blocks(model.backbone)
        heads = share_of(_heads_before(model), self.share)
        neurons = share_of(_neurons_before(model), self.share)
        plan: dict[str, Any] = {"embedding_rank": _rank(model, self.share)}
        if examined is None:
            return {
                **plan,
                "heads": [list(range(heads))] * len(all_blocks),
                "neurons": [list(range(neurons))] * len(all_blocks),
            }
        loss = _loss_of(model, examined, slice(None))
        scores = weight_importance(model, examined.batches(), loss, examined.accumulate)
        return {
            **plan,
            "heads": [best(score, heads) for score in scores.heads],
            "neurons": [best(score, neurons) for score in scores.neurons],
        }

    def apply(self, model: Any, plan: Any) -> Any:
        model.reduce(**plan)
        return model


def best(scores: torch.Tensor, count: int) -> list[int]:
    """Return the indices of the `count` highest scores, ascending; all if there are fewer."""
    order = scores.argsort(descending=True, stable=True)[:count]
    return sorted(int(i) for i in order)


def best_of_all(scores: Sequence[torch.Tensor], count: int) -> list[list[int]]:
    """Return the indices per layer of the `count` highest scores over all layers, with at least one per layer."""
    chosen = [{int(score.argmax())} for score in scores]
    ranked = sorted(
        ((float(value), layer, i) for layer, score in enumerate(scores) for i, value in enumerate(score)),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    for _, layer, i in ranked:
        if sum(map(len, chosen)) >= count:
            break
        chosen[layer].add(i)
    return [sorted(layer) for layer in chosen]


def _heads_before(model: Any) -> int:
    """Heads of a layer of the unreduced network."""
    return int(model.backbone.config.num_attention_heads)


def _neurons_before(model: Any) -> int:
    return int(getattr(model.backbone.config, layer_paths(model.backbone).width))


def _rank(model: Any, share: float) -> int | None:
    """Return the new rank of the embeddings; None for ALBERT, whose embeddings are already narrower than the states."""
    embeddings = model.backbone.get_input_embeddings()
    if embeddings.embedding_dim != model.backbone.config.hidden_size:
        return None
    return share_of(min(embeddings.num_embeddings, embeddings.embedding_dim), share)


def _loss_of(model: Any, examined: Examined, exits: slice) -> Callable[[Batch], torch.Tensor]:
    """Make a loss: the sum of some exits' cross-entropies on a batch."""

    def loss(batch: Batch) -> torch.Tensor:
        with examined.runtime.autocast():
            record = Record.of(model, batch)
        labels = record.labels_by_exit
        assert labels is not None
        return cross_entropy_per_exit(record.logits[exits], labels if labels.ndim == 1 else labels[exits]).sum()

    return loss
