"""Small problems in which it is known which loss terms of eq. 5 help: the reference for optimisers of ω.

A sample is a vector of normal numbers, and its label is drawn from the softmax of a random network of it, another one for
each seed. A network with four exits learns it from so few samples that it overfits. In most problems one exit is *planted*:
its logits come with the samples and get no gradient, so that all other exits have one teacher whose worth is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from leebert.record import Batch, Keep, Record, TensorSamples
from leebert.weights import Terms

#: Whether the marked terms help (`good`) or harm (`bad`).
Worth = Literal["good", "bad"]

#: Mixed into the seeds of samples, so that no network is initialised from the numbers of its samples.
_SAMPLES, _TRUTH = 7_919, 104_729


class PlantedExits(nn.Module):
    """Layers of tanh units with a linear exit after each, and planted exits (:class:`leebert.record.MultiExit`).

    A batch has `features` (B, F). With the column `planted` (B, K), these logits are those of the last exit. With the column
    `order` (B, E, K), the logits of the first E exits are permuted sample by sample, which for their cross-entropies is a
    wrong label.

    Args:
        features: F.
        widths: Units of each layer.
        classes: K.
        planted: Whether the last exit is planted; it has no layer and no parameters.
        gains: Factor on the logits of each exit; a large one makes its gradient large.
        dropout: Probability of dropout before each exit.
    """

    def __init__(
        self,
        features: int,
        widths: Sequence[int],
        classes: int,
        planted: bool = False,
        gains: Sequence[float] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [features, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.heads = nn.ModuleList(nn.Linear(width, classes) for width in widths)
        self.gains = tuple(gains) or (1.0,) * len(widths)
        self.dropout = nn.Dropout(dropout)
        self.num_exits = len(widths) + planted

    def record(self, batch: Batch, keep: Keep = "logits") -> Record:
        """Run all exits on one batch; only logits are kept."""
        x, logits = batch["features"], []
        for layer, head, gain in zip(self.layers, self.heads, self.gains, strict=True):
            x = torch.tanh(layer(x))
            logits.append(gain * head(self.dropout(x)))
        if "planted" in batch:
            logits.append(batch["planted"])
        for exit_ in range(batch["order"].shape[1] if "order" in batch else 0):
            logits[exit_] = logits[exit_].gather(1, batch["order"][:, exit_])
        return Record(torch.stack(logits), batch["labels"])


@dataclasses.dataclass(frozen=True)
class KnownWeights:
    """A problem: samples, a network, and the terms of the loss whose worth is known.

    Subclasses choose the fields' defaults and override :meth:`columns`, :meth:`marked` and, with a planted exit,
    :meth:`teacher`. A problem with the same fields and seed is always the same.

    Attributes:
        train: Number of training samples.
        test: Number of test samples; their labels are clean.
        features: F.
        classes: K.
        widths: Units of each layer.
        sharpness: Standard deviation of the true logits; the larger, the less noise do labels have.
        gains: Factor on the logits of each exit.
        metric: The metric of the score.
        options: Training options under which the problem is what it claims.
    """

    train: int = 128
    test: int = 2000
    features: int = 8
    classes: int = 4
    widths: tuple[int, ...] = (32, 32, 32)
    sharpness: float = 3.0
    gains: tuple[float, ...] = ()
    metric: str = "accuracy"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    name: ClassVar[str]
    title: ClassVar[str]
    worth: ClassVar[Worth] = "bad"
    planted: ClassVar[bool] = False

    @property
    def num_exits(self) -> int:
        """M."""
        return len(self.widths) + self.planted

    @property
    def scored(self) -> tuple[int, ...]:
        """The exits, from 0, whose test scores count."""
        return tuple(range(len(self.widths)))

    def marked(self, terms: Terms) -> torch.Tensor:
        """Mark the terms of the problem's :attr:`worth`; (n,) bool."""
        raise NotImplementedError

    def model(self, seed: int) -> PlantedExits:
        """Make a fresh network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return PlantedExits(
                self.features, self.widths, self.classes, self.planted, self.gains, self.training()["exit_dropout"]
            )

    def training(self) -> dict[str, Any]:
        """Return the options of :class:`leebert.config.TrainConfig` for this problem."""
        defaults = {
            "lr_theta": 1e-2, "batch_size": 8, "max_epochs": 30, "patience": 10**6, "exit_dropout": 0.1, "precision": "fp32",
            "eval_batch_size": 2048,
        }  # fmt: skip
        return {**defaults, **self.options}

    def samples(self, seed: int, split: Literal["train", "test"] = "train") -> TensorSamples:
        """Draw the samples of a split.

        Args:
            seed: Seed of the true network and of the samples.
            split: `train`, or `test` with clean labels and unpermuted logits.
        """
        size, offset = (self.train, 0) if split == "train" else (self.test, 1)
        generator = torch.Generator().manual_seed(_SAMPLES * (2 * seed + offset + 1))
        x = torch.randn(size, self.features, generator=generator)
        posterior = F.softmax(self.true_logits(x, seed), dim=-1)
        labels = torch.multinomial(posterior, 1, generator=generator)[:, 0]
        columns = self.columns(x, labels, posterior, generator) if split == "train" else {}
        if self.planted and split == "test":  # its score does not count
            columns = {"planted": posterior.log()}
        return TensorSamples(features=x, labels=labels, **columns)

    def true_logits(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        """Compute log p(y | x) up to a constant, (n, K), from features (n, F)."""
        generator = torch.Generator().manual_seed(_TRUTH + seed)
        inner = torch.randn(self.features, 24, generator=generator) * (2 / self.features**0.5)
        bias = torch.randn(24, generator=generator)
        outer = torch.randn(24, self.classes, generator=generator)
        typical = torch.randn(4096, self.features, generator=generator)
        scale = (torch.tanh(typical @ inner + bias) @ outer).std(dim=0, keepdim=True)
        centre = (torch.tanh(typical @ inner + bias) @ outer).mean(dim=0, keepdim=True)
        return self.sharpness * (torch.tanh(x @ inner + bias) @ outer - centre) / scale

    def columns(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Make further columns of the training samples.

        Args:
            x: (n, F) features.
            labels: (n,) labels.
            posterior: (n, K) true probabilities.
            generator: The source of further random numbers.
        """
        return {}


@dataclasses.dataclass(frozen=True)
class PlantedTeacher(KnownWeights):
    """A problem whose last exit is planted. Marked are the distillation terms in which it teaches; it is not scored."""

    planted: ClassVar[bool] = True

    def marked(self, terms: Terms) -> torch.Tensor:
        teacher = torch.full((len(terms),), -1)
        teacher[terms.is_distillation] = terms.pairs[1]
        return teacher == self.num_exits - 1

    def columns(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        return {"planted": self.teacher(x, labels, posterior, generator)}

    def teacher(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Compute the planted logits.

        Args:
            x: (n, F) features.
            labels: (n,) class ids.
            posterior: (n, K) true probabilities.
            generator: Source of further random numbers.

        Returns:
            (n, K).
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ConstantTeacher(PlantedTeacher):
    """The planted exit gives the same confident answer to every sample: its distillation terms are bad.

    Their loss falls to about 0 once the students give the same answer, which no useful term's does.
    """

    name: ClassVar[str] = "constant"
    title: ClassVar[str] = "a teacher with one answer"

    strength: float = 6.0

    def teacher(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return self.strength * F.one_hot(torch.zeros_like(labels), self.classes).float()


@dataclasses.dataclass(frozen=True)
class RandomTeacher(PlantedTeacher):
    """The planted exit is confident of a random class for each sample: its distillation terms are bad."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "a teacher that guesses"

    strength: float = 48.0
    sharpness: float = 6.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"temperature": 4.0})

    def teacher(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        guesses = torch.randint(0, self.classes, labels.shape, generator=generator)
        return self.strength * F.one_hot(guesses, self.classes).float()


@dataclasses.dataclass(frozen=True)
class OutdatedTeacher(PlantedTeacher):
    """The planted exit is a noisy linear model, confident and often wrong: its distillation terms are bad."""

    name: ClassVar[str] = "outdated"
    title: ClassVar[str] = "a teacher that is an old, poor model"

    strength: float = 32.0
    sharpness: float = 6.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"temperature": 4.0})

    def teacher(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        few = x[:32]
        targets = F.one_hot(labels[:32], self.classes).float()
        weights: torch.Tensor = torch.linalg.solve(few.T @ few + torch.eye(self.features), few.T @ targets)
        noise = torch.randn(weights.shape, generator=generator) * weights.std()
        logits = x @ (weights + noise)
        return self.strength * logits / logits.std()


@dataclasses.dataclass(frozen=True)
class PerfectTeacher(PlantedTeacher):
    """The planted exit gives the true probabilities p(y | x): its distillation terms are good."""

    name: ClassVar[str] = "perfect"
    title: ClassVar[str] = "a teacher that knows p(y | x)"
    worth: ClassVar[Worth] = "good"

    def teacher(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        return posterior.log()


@dataclasses.dataclass(frozen=True)
class NoisyLabels(KnownWeights):
    """Two exits see wrong labels on a share of the training samples: all terms in which they learn or teach are bad.

    Each of their training logits is permuted on these samples. They are not scored.

    Attributes:
        share: Share of the samples with a wrong label.
        noisy: Number of exits, the first ones, with wrong labels.
    """

    widths: tuple[int, ...] = (4, 4, 4, 4)
    gains: tuple[float, ...] = (8.0, 8.0, 1.0, 1.0)
    sharpness: float = 6.0
    train: int = 256
    share: float = 0.75
    noisy: int = 2

    name: ClassVar[str] = "noisy_labels"
    title: ClassVar[str] = "wrong labels at two exits"

    @property
    def scored(self) -> tuple[int, ...]:
        return tuple(range(self.noisy, len(self.widths)))

    def marked(self, terms: Terms) -> torch.Tensor:
        bad = terms.student < self.noisy
        bad[terms.is_distillation] |= terms.pairs[1] < self.noisy
        return bad

    def columns(
        self, x: torch.Tensor, labels: torch.Tensor, posterior: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        shape = (len(x), self.noisy)
        shift = torch.randint(1, self.classes, shape, generator=generator)
        shift *= torch.rand(shape, generator=generator) < self.share
        return {"order": (torch.arange(self.classes) + shift[..., None]) % self.classes}


@dataclasses.dataclass(frozen=True)
class HarmfulExit(NoisyLabels):
    """The first exit, on a narrow layer, gets random labels and large gradients: it can't learn, and the others suffer.

    All terms in which it learns or teaches are bad. It is not scored.
    """

    widths: tuple[int, ...] = (5, 16, 16, 16)
    gains: tuple[float, ...] = (32.0, 1.0, 1.0, 1.0)
    sharpness: float = 3.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"max_epochs": 20})
    noisy: int = 1

    name: ClassVar[str] = "harmful_exit"
    title: ClassVar[str] = "a shallow exit that can't learn"


@dataclasses.dataclass(frozen=True)
class Imbalance(ConstantTeacher):
    """Two of three samples are of one class, which the planted exit answers: its distillation terms are bad.

    It is mostly right, so that accuracy hardly notices; the score is macro F1.
    """

    metric: str = "macro_f1"
    train: int = 256

    name: ClassVar[str] = "imbalance"
    title: ClassVar[str] = "rare classes, a teacher that answers the frequent one"

    def true_logits(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        prior = torch.zeros(self.classes)
        prior[0] = 5.0
        return super().true_logits(x, seed) + prior


#: The problems by name, in the order of tables.
PROBLEMS: dict[str, KnownWeights] = {
    problem.name: problem
    for problem in (
        ConstantTeacher(), RandomTeacher(), OutdatedTeacher(), PerfectTeacher(), NoisyLabels(), HarmfulExit(), Imbalance(),
    )
}  # fmt: skip
