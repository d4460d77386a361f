"""The interfaces of models and data: trainer, objectives, exits and metrics use a model only through its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch  # not imported at run time: checks of search spaces use these protocols without torch

#: Tensors by name, each with the sample as its first dimension.
Batch = Mapping[str, "torch.Tensor"]

#: What a forward pass keeps: logits only; also the input of an exit after each layer; or also all states.
Keep = Literal["logits", "hidden", "states"]


@dataclasses.dataclass(frozen=True)
class Record:
    """The result of one forward pass on B samples.

    Attributes:
        logits: (M, B, K) float32 of all exits; exit 0 is the shallowest.
        labels: (B,) int64; None for unlabelled samples.
        hidden: (D, B, H) pooled input of an exit after each of the D layers, with `keep="hidden"`; else None.
        states: (D + 1, B, …) states before the first layer and after each layer, with `keep="states"`; else None.
        mask: (B, …) marks the positions of `states` that count; None: all.
        exit_labels: (B, E) labels that replace `labels` in the cross-entropies of the first E exits; None: none.
    """

    logits: torch.Tensor
    labels: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    states: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    exit_labels: torch.Tensor | None = None

    def detach(self) -> Record:
        """Return the record without an autograd graph."""
        others = (self.labels, self.hidden, self.states, self.mask, self.exit_labels)
        return Record(self.logits.detach(), *(_detached(tensor) for tensor in others))

    @classmethod
    def joined(cls, parts: Sequence[Record]) -> Record:
        """Concatenate records of one model along the samples.

        Args:
            parts: Records of B1, B2, … samples, all with the same optional attributes.

        Returns:
            One record of B1 + B2 + … samples.
        """

        import torch

        def along(name: str, dim: int) -> Any:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors, dim=dim)

        by_sample = {name: along(name, 0) for name in ("labels", "mask", "exit_labels")}
        return cls(along("logits", 1), hidden=along("hidden", 1), states=along("states", 1), **by_sample)

    @classmethod
    def of(cls, model: Any, batch: Batch, keep: Keep = "logits") -> Record:
        """Run all exits of a model on a batch, for training: with the batch's `exit_labels`, if it has them.

        Args:
            model: The model.
            batch: Tensors by name, with B samples.
            keep: What the record holds besides logits.
        """
        # Models whose `record` takes no `keep` suffice for methods that need logits only.
        record: Record = model.record(batch) if keep == "logits" else model.record(batch, keep)
        return dataclasses.replace(record, exit_labels=batch["exit_labels"]) if "exit_labels" in batch else record

    @property
    def labels_by_exit(self) -> torch.Tensor | None:
        """The labels of each exit's cross-entropy: (B,) if all exits have the same, else (M, B); None without labels."""
        if self.labels is None or self.exit_labels is None:
            return self.labels
        labels = self.labels.repeat(len(self.logits), 1)
        own = self.exit_labels.T[: len(labels)]
        labels[: len(own)] = own
        return labels


def _detached(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach()


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into parts of nearly equal size, in order.

    Parts keep the padding of the whole batch, since only the model knows which positions are padding.

    Args:
        batch: Tensors by name, with B samples.
        count: Number of parts.

    Returns:
        min(`count`, B) batches.
    """
    samples = len(next(iter(batch.values())))
    parts = {name: t.tensor_split(min(count, samples)) for name, t in batch.items()}
    return [dict(zip(parts, tensors, strict=True)) for tensors in zip(*parts.values(), strict=True)]


@runtime_checkable
class MultiExit(Protocol):
    """A :class:`torch.nn.Module` with several exits, for texts, images or plain tensors.

    The names of the parameters of exit i, from 0, start with ``heads.{i}.``. Optional attributes and methods:

    * `exit_layers`, (M,): layers below each exit, and `depth`: layers of the unreduced network, the reference of speed-ups.
      The default is one exit after each layer.
    * `keep_exits(layers)`: remove all exits except those after these layers, from 1. Methods with one exit need it.
    * `gradient_equilibrium`, bool, set by training: apply :func:`leebert.equilibrium.branch_and_trunk` in `record`.

    Attributes:
        num_exits: M.
    """

    num_exits: int

    def record(self, batch: Batch, keep: Keep = "logits") -> Record:
        """Run all exits on one batch.

        Args:
            batch: Tensors by name, with B samples.
            keep: What the record holds besides logits; passed only if an objective needs it.

        Returns:
            Logits (M, B, K) of all exits, and labels if the batch has them.
        """
        ...


class SampleSet(Protocol):
    """N labelled samples, of which any can be collated into a batch of tensors with `labels` (B,)."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> object:
        """(N,) cost of each sample, such as its tokens, for batches of similar length."""
        ...

    def collate(self, indices: object) -> Batch:
        """Make a batch of some samples.

        Args:
            indices: (B,) positions of the samples, from 0.

        Returns:
            Tensors by name, with B samples; `labels` is (B,) int64.
        """
        ...


class TensorSamples:
    """Samples in tensors whose first dimension is the sample: the simplest :class:`SampleSet`.

    Args:
        **columns: Tensors of N samples by name, `labels` (N,) among them.

    Raises:
        ValueError: There is no column `labels`.
    """

    def __init__(self, **columns: torch.Tensor) -> None:
        import torch

        if "labels" not in columns:
            raise ValueError("TensorSamples: column 'labels' is missing; add the class ids, (N,)")
        self.columns = columns
        self.lengths = torch.ones(len(columns["labels"]), dtype=torch.int32).numpy()

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def collate(self, indices: object) -> dict[str, torch.Tensor]:
        """Make a batch of the samples at these positions (B,)."""
        import torch

        index = torch.as_tensor(indices, dtype=torch.long)
        return {name: column[index] for name, column in self.columns.items()}
