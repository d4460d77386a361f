"""What becomes of a model when a stage begins: exits, layers or widths that go, layers that are skipped at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from leebert.errors import ConfigError
from leebert.evaluate import layers_of
from leebert.losses import cross_entropy_per_exit
from leebert.record import Batch
from leebert.slim.importance import head_importance, weight_importance
from leebert.slim.layerdrop import LayerDrop
from leebert.slim.layers import check_kept
from leebert.slim.parts import blocks, places
from leebert.stages import Examined


@dataclasses.dataclass(frozen=True)
class LastExit:
    """Only the last exit stays."""

    def check(self, model: Any) -> None:
        if not hasattr(model, "keep_exits"):
            raise ConfigError(
                f"this method leaves one exit, and {type(model).__name__} has no `keep_exits` that drops the others; "
                "take a method that trains all exits"
            )

    def plan(self, model: Any, examined: Examined | None) -> Any:
        exits = layers_of(model)[0] or (model.num_exits,)
        return [exits[-1]]

    def apply(self, model: Any, plan: Any) -> Any:
        model.keep_exits(plan)
        return model


def require(model: Any, what: str) -> None:
    """Raises ConfigError where a model has no parts that can be taken out."""
    if not hasattr(model, "reduce"):
        raise ConfigError(f"this method takes {what} out of an encoder; {type(model).__name__} has no {what} to take")


def require_exit_after_each_layer(model: Any) -> None:
    """Raises ConfigError where exits are fewer than layers: methods count a model's layers by its exits."""
    exits, there = layers_of(model)[0], len(model.stack.layers())
    if exits != tuple(range(1, there + 1)):
        raise ConfigError(
            f"this method takes a share of the layers and needs a model with an exit after each of its {there}; "
            f"here exits follow layers {exits}"
        )


def share_of(count: int, share: float) -> int:
    """How many of `count` things a share is: the nearest whole number, of two the even one, at least one."""
    return max(1, round(share * count))


def first_layers(depth: int, keep: float) -> tuple[int, ...]:
    """The first layers, from 0."""
    return tuple(range(share_of(depth, keep)))


def spaced_layers(depth: int, keep: float) -> tuple[int, ...]:
    """Evenly spaced layers, from 0: every other one of an even depth at one half, the first among them."""
    count = share_of(depth, keep)
    return tuple(i * depth // count for i in range(count))


@dataclasses.dataclass(frozen=True)
class KeepLayers:
    """Only these layers, from 0, stay, with one exit after the last of them."""

    layers: tuple[int, ...]

    def check(self, model: Any) -> None:
        require(model, "layers")
        there = len(model.stack.layers())
        if self.layers[-1] >= there:
            raise ConfigError(f"{self.layers[-1] + 1} layers are needed: this encoder has {there}")
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
    """The first layers, as many as divide those of the model: each stands in for a group (BERT-of-Theseus)."""

    def check(self, model: Any) -> None:
        super().check(model)
        depth = len(model.stack.layers())
        if depth % len(self.layers):
            raise ConfigError(
                f"{len(self.layers)} layers can't stand in for {depth} in groups of one size: "
                "give theseus a `keep` of 1 over a whole number that divides the layers"
            )


@dataclasses.dataclass(frozen=True)
class Alone(KeepLayers):
    """The layers that the model has stay, and nothing runs in their place any more."""

    def check(self, model: Any) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class SkipLayers:
    """The last exit stays, and each layer is skipped with probability p in training."""

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
    """Attention heads go until this share of the network's own is left, the least important of all layers first.

    Importance is |∂L/∂ξ| of a factor ξ on the head, normalised within each layer (Michel et al., 2019, sections 4.1 and
    2.3); one head of each layer stays.
    """

    share: float

    def check(self, model: Any) -> None:
        require(model, "attention heads")

    def plan(self, model: Any, examined: Examined | None) -> Any:
        found = blocks(model.backbone)
        total = share_of(_heads_before(model) * len(found), self.share)
        if examined is None:  # as evenly as it goes: which layers keep more takes data
            each, more = divmod(max(total, len(found)), len(found))
            return [list(range(each + (i < more))) for i in range(len(found))]
        loss = _loss_of(model, examined, slice(-1, None))
        scores = head_importance(model, examined.batches(), loss, examined.accumulate)
        normal = [score / score.norm().clamp(min=1e-12) for score in scores]
        return best_of_all(normal, total)

    def apply(self, model: Any, plan: Any) -> Any:
        model.reduce(heads=plan)
        return model


@dataclasses.dataclass(frozen=True)
class Slenderise:
    """Heads, inner width and the rank of the embeddings shrink to a share of the network's own; its depth stays.

    Heads and neurons go by |weight| · Σ|gradient| of the sum over exits, as many in each layer; embeddings by truncated
    SVD where they are not factorised already (Shen et al., 2022, section 3.1).
    """

    share: float

    def check(self, model: Any) -> None:
        require(model, "heads, neurons and embeddings")

    def plan(self, model: Any, examined: Examined | None) -> Any:
        found = blocks(model.backbone)
        heads = share_of(_heads_before(model), self.share)
        neurons = share_of(_neurons_before(model), self.share)
        plan: dict[str, Any] = {"embedding_rank": _rank(model, self.share)}
        if examined is None:
            return {**plan, "heads": [list(range(heads))] * len(found), "neurons": [list(range(neurons))] * len(found)}
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
    """The indices of the `count` highest scores (all, where there are fewer), ascending."""
    order = scores.argsort(descending=True, stable=True)[:count]
    return sorted(int(i) for i in order)


def best_of_all(scores: Sequence[torch.Tensor], count: int) -> list[list[int]]:
    """The `count` highest scores of all layers together, and of each layer its highest in any case; indices per layer."""
    kept = [{int(score.argmax())} for score in scores]
    ranked = sorted(
        ((float(value), layer, i) for layer, score in enumerate(scores) for i, value in enumerate(score)),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    for _, layer, i in ranked:
        if sum(map(len, kept)) >= count:
            break
        kept[layer].add(i)
    return [sorted(layer) for layer in kept]


def _heads_before(model: Any) -> int:
    """Heads of a layer of the unreduced network."""
    return int(model.backbone.config.num_attention_heads)


def _neurons_before(model: Any) -> int:
    return int(getattr(model.backbone.config, places(model.backbone).width))


def _rank(model: Any, share: float) -> int | None:
    """The embeddings' rank; None for ALBERT, whose are narrower than the states already."""
    words = model.backbone.get_input_embeddings()
    if words.embedding_dim != model.backbone.config.hidden_size:
        return None
    return share_of(min(words.num_embeddings, words.embedding_dim), share)


def _loss_of(model: Any, examined: Examined, exits: slice) -> Callable[[Batch], torch.Tensor]:
    """The sum of some exits' cross-entropies on a batch."""

    def loss(batch: Batch) -> torch.Tensor:
        with examined.runtime.autocast():
            record = model.record(batch)
        assert record.labels is not None
        return cross_entropy_per_exit(record.logits[exits], record.labels).sum()

    return loss
