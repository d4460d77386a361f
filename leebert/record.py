"""What one forward pass leaves behind: all that trainer, objectives, exits and metrics know of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch  # not loaded with this module: what checks a search space knows the protocols here

#: Tensors by name, each with the row as its first dimension.
Batch = Mapping[str, "torch.Tensor"]

#: How much a model's forward keeps: logits only, what exits see after each layer with them, or all states as well.
Keep = Literal["logits", "hidden", "states"]


@dataclasses.dataclass(frozen=True)
class Record:
    """The outcome of one forward pass.

    logits: (M, B, K) float32, every exit's; exit 0 is the shallowest.
    labels: (B,) int64, or None for unlabelled rows.
    hidden: (D, B, H) what an exit sees after each of the D layers, where the model was asked to keep it.
    states: (D + 1, B, …) the states before the first layer and after each, where the model was asked to keep them.
    mask: (B, …) which of a row's positions in `states` count; None: all.
    """

    logits: torch.Tensor
    labels: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    states: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def detach(self) -> Record:
        """The same record without a graph."""
        rest = (self.labels, self.hidden, self.states, self.mask)
        return Record(self.logits.detach(), *(_detached(tensor) for tensor in rest))

    @classmethod
    def joined(cls, parts: Sequence[Record]) -> Record:
        """The record of all rows of some records of one model, one after the other."""

        import torch

        def along(name: str, rows: int) -> Any:
            tensors = [getattr(part, name) for part in parts]
            return None if tensors[0] is None else torch.cat(tensors, dim=rows)

        return cls(along("logits", 1), along("labels", 0), along("hidden", 1), along("states", 1), along("mask", 0))


def _detached(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach()


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """A batch's rows in `count` parts, equal to within a row and in order; one row each where there are fewer rows.

    A part is padded like the whole batch: what padding is only the model knows.
    """
    rows = len(next(iter(batch.values())))
    parts = {name: t.tensor_split(min(count, rows)) for name, t in batch.items()}
    return [dict(zip(parts, tensors, strict=True)) for tensors in zip(*parts.values(), strict=True)]


@runtime_checkable
class MultiExit(Protocol):
    """Any module with several exits: text, images or plain tensors. It must also be a :class:`torch.nn.Module`.

    The parameters of exit i, from 0, have names that begin with ``heads.{i}.``. Where exits don't stand after each
    layer, `exit_layers` (M,) says how many layers each has below it and `depth` how many layers the unreduced network
    has: what a speed-up is relative to (:func:`exit_layers`).
    For methods that leave one exit it has `keep_exits(layers)`, which drops all exits but those after these layers (from 1).
    One with an attribute `gradient_equilibrium: bool` heeds it by :func:`leebert.equilibrium.branch_and_trunk` in
    `record`; training sets it.
    """

    num_exits: int

    def record(self, batch: Batch, keep: Keep = "logits") -> Record:
        """All exits on one batch. `keep` is given only where an objective needs more than logits."""
        ...


class Rows(Protocol):
    """A labelled data set of which any rows can be put into one batch of tensors, `labels` (B,) among them."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> object:
        """(N,) a row's cost, for length buckets; equal numbers where rows cost the same."""
        ...

    def collate(self, indices: object) -> Batch: ...


class TensorRows:
    """Rows held as tensors whose first dimension is the row: the simplest :class:`Rows`."""

    def __init__(self, **columns: torch.Tensor) -> None:
        import torch

        if "labels" not in columns:
            raise ValueError("TensorRows needs a column 'labels'")
        self.columns = columns
        self.lengths = torch.ones(len(columns["labels"]), dtype=torch.int32).numpy()

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def collate(self, indices: object) -> dict[str, torch.Tensor]:
        import torch

        index = torch.as_tensor(indices, dtype=torch.long)
        return {name: column[index] for name, column in self.columns.items()}
