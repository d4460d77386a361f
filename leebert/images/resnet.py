"""The residual network for small images (He et al. 2015, section 4.2) with an exit after each of its basic blocks.

A network of 6n + 2 layers has a convolution, three groups of n basic blocks of two convolutions each (16, 32 and 64
channels), and a classifier. Exits "after every two convolutional layers" (LeeBERT, section 4.5) are exits after each
block: 27 for ResNet-56, the last of which is the network's own classifier. The paper does not define
the classifier of an exit: here it is that of the network, a mean over all positions and a linear layer (ours).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from leebert.config import ExitConfig, TrainConfig
from leebert.equilibrium import branch_and_trunk
from leebert.errors import ConfigError
from leebert.images.backbones import blocks_of
from leebert.images.preprocess import Preprocess
from leebert.model_config import EarlyExitConfig
from leebert.record import Keep, Record
from leebert.saved import load_saved

WIDTHS = (16, 32, 64)


class ResNetConfig(EarlyExitConfig):
    """Configuration of a residual network: size, labels, exits, and mean and deviation of the colours."""

    model_type = "leebert-resnet"

    backbone: str = "resnet56"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    image_size: int = 32


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions around a shortcut without parameters (option A: a stride, and zeros for new channels)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, S, S) → (B, outputs, S / stride, S / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(y + x)


class EarlyExitResNet(PreTrainedModel):
    """A residual network with M = 3n exits. Its layers are the basic blocks, so `depth` is M.

    Batches hold `images`, (B, S, S, 3) uint8, and optionally `labels`, (B,). In training mode images are cropped and
    flipped at random (:class:`leebert.images.preprocess.Preprocess`), by torch's generator like dropout.
    """

    config_class = ResNetConfig
    gradient_equilibrium = False  #: set in training only, see :mod:`leebert.equilibrium`; never saved
    main_input_name = "images"

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        per_group = blocks_of(config.backbone)
        self.depth = 3 * per_group
        self.exit_layers = tuple((config.structure or {}).get("exits") or range(1, self.depth + 1))
        self.preprocess = Preprocess(config.mean, config.std)
        self.conv = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        widths = [WIDTHS[0], *(width for width in WIDTHS for _ in range(per_group))]
        self.blocks = nn.ModuleList(
            BasicBlock(before, after, 1 if before == after else 2)
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.heads = nn.ModuleList(nn.Linear(widths[layer], config.num_labels) for layer in self.exit_layers)
        self.dropout = nn.Dropout(config.exit_dropout)
        self.post_init()

    @property
    def num_exits(self) -> int:
        return len(self.exit_layers)

    def keep_exits(self, layers: Iterable[int]) -> None:
        """Keep the exits after the given layers (from 1, ascending) and remove the others. Raises ConfigError."""
        chosen = tuple(layers)
        if missing := [layer for layer in chosen if layer not in self.exit_layers]:
            raise ConfigError(f"layer {missing[0]} has no exit; layers with exits are {self.exit_layers}")
        self.heads = nn.ModuleList(self.heads[self.exit_layers.index(layer)] for layer in chosen)
        self.exit_layers = chosen
        self.config.structure = {"depth": self.depth, "exits": list(chosen)}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def begin(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the input of the first block, (B, 16, S, S)."""
        return F.relu(self.norm(self.conv(self.preprocess(batch["images"]))))

    def advance(self, state: torch.Tensor, exit_: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the blocks from the previous exit to the next one.

        Args:
            state: The output of the previous block.
            exit_: The next exit, from 0.

        Returns:
            The new state, and the exit's logits (B, K), float32.
        """
        below = self.exit_layers[exit_ - 1] if exit_ else 0
        for block in self.blocks[below : self.exit_layers[exit_]]:
            state = block(state)
        return state, self._classify(self._pooled(state), exit_)

    def _pooled(self, state: torch.Tensor) -> torch.Tensor:
        return state.mean(dim=(2, 3), dtype=torch.float32)

    def _classify(self, pooled: torch.Tensor, exit_: int) -> torch.Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            logits: torch.Tensor = self.heads[exit_](self.dropout(pooled))
        return logits

    def record(self, batch: Mapping[str, torch.Tensor], keep: Keep = "logits") -> Record:
        """Run all exits on one batch.

        Args:
            batch: Images (B, S, S, 3) uint8 and, optionally, labels (B,).
            keep: What the record holds besides logits. Hidden states are the inputs of exits, zero-padded to 64 channels.

        Raises:
            ConfigError: `keep="states"`, since the groups' states differ in shape.
        """
        if keep == "states":
            raise ConfigError(
                f"{self.config.backbone}: its blocks' states differ in shape; methods that match states need a text encoder"
            )
        state, logits, hidden = self.begin(batch), [], []
        for ran, block in enumerate(self.blocks[: self.exit_layers[-1]], start=1):
            state = exit_input = block(state)
            exit_ = self.exit_layers.index(ran) if ran in self.exit_layers else None
            if self.gradient_equilibrium and exit_ is not None:
                exit_input, state = branch_and_trunk(state, exit_, self.num_exits)
            if exit_ is not None or keep == "hidden":
                pooled = self._pooled(exit_input)
            if exit_ is not None:
                logits.append(self._classify(pooled, exit_))
            if keep == "hidden":
                hidden.append(F.pad(pooled, (0, WIDTHS[-1] - pooled.shape[1])))
        return Record(torch.stack(logits), batch.get("labels"), torch.stack(hidden) if hidden else None)


def build_resnet(
    backbone: str,
    label_names: tuple[str, ...],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    train: TrainConfig | None = None,
    exits: ExitConfig | None = None,
) -> EarlyExitResNet:
    """Build a network with new weights from torch's generator.

    Args:
        backbone: A name such as `resnet56`.
        label_names: K class names in the order of their ids.
        mean: Mean of each colour over the training images, as a fraction of the brightest value.
        std: Standard deviation of each colour.
        train: The training options; sets the dropout of exits.
        exits: The exit criterion of the saved model.

    Raises:
        ConfigError: There is no such network.
    """
    exits = exits or ExitConfig()
    config = ResNetConfig(
        backbone=backbone,
        mean=mean,
        std=std,
        exit_dropout=(train or TrainConfig()).exit_dropout,
        exit_strategy=exits.criterion,
        exit_threshold=exits.threshold,
        exit_patience=exits.patience,
        id2label=dict(enumerate(label_names)),
        label2id={name: i for i, name in enumerate(label_names)},
    )
    return EarlyExitResNet(config)


def load_resnet(folder: str | Path) -> Any:
    """Load a saved network from safetensors. Raises CheckpointError if the folder is damaged or holds another model."""
    return load_saved(folder, {ResNetConfig.model_type: EarlyExitResNet})
