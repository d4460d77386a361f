"""Trace a model piece by piece: its input, each layer and each exit become small ONNX graphs.

Segments are composed of pieces (:mod:`leebert.export.segments`), so each layer is traced once, whatever the segments are, and
an operator that ONNX lacks is reported with its layer.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from leebert.errors import ConfigError
from leebert.export.fused import layered

#: The version of ONNX's operators: the first with Gelu, on which ONNX Runtime's fusions are tested.
OPSET = 20

#: Names of tensors between pieces.
STATES, MASK, LOGITS = "states", "mask", "logits"


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A model as ONNX graphs.

    Attributes:
        start: From the model's inputs to the states before the first layer.
        layers: From `states` (and `mask`, for texts) to `states`; layers that share weights are one object.
        exits: From `states` (and `attention_mask`, for texts) to `logits` (B, K).
        exit_layers: Layers below each exit.
    """

    start: onnx.ModelProto
    layers: tuple[onnx.ModelProto, ...]
    exits: tuple[onnx.ModelProto, ...]
    exit_layers: tuple[int, ...]


class _Call(nn.Module):
    """A function of named tensors as a module.

    Args:
        function: The function.
        *modules: The modules whose weights it uses.
    """

    def __init__(self, function: Callable[..., torch.Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function
        self.names: tuple[str, ...] = ()

    def forward(self, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        return self.function(**dict(zip(self.names, (first, second), strict=False)))


def trace(model: Any) -> Pieces:
    """Trace an early-exit model of texts or images.

    Args:
        model: The model, in evaluation mode and in float32.

    Returns:
        Its pieces.

    Raises:
        ConfigError: ONNX lacks an operator that the model uses.
    """
    with torch.no_grad(), _quiet(), _one_registry():
        return _trace_texts(model) if hasattr(model, "stack") else _trace_images(model)


def _trace_texts(model: Any) -> Pieces:
    stack = layered(model.backbone)
    encoder = stack.encoder
    ids = torch.full((2, 3), 5)
    attention_mask = torch.ones_like(ids)
    inputs = {"input_ids": ids}
    if (getattr(encoder.config, "type_vocab_size", None) or 1) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    states, mask = model.begin({**inputs, "attention_mask": attention_mask})[0], attention_mask.to(torch.int32)
    layers = stack.layers()[: model.exit_layers[-1]]
    parts = _without(encoder, stack.layers())
    tracer = _Tracer(2)
    start = tracer.trace(
        "the embeddings", _Call(lambda **given: stack.family.embed(encoder, given), *parts), inputs, STATES
    )
    done: dict[nn.Module, onnx.ModelProto] = {}  # ALBERT's layers share weights
    for number, layer in enumerate(layers, start=1):
        if layer not in done:
            done[layer] = tracer.trace(f"layer {number}", _layer(layer), {STATES: states, MASK: mask}, STATES)
    exits = tuple(
        tracer.trace(f"exit {number}", _exit(model, head), {STATES: states, "attention_mask": attention_mask}, LOGITS)
        for number, head in enumerate(model.heads, start=1)
    )
    return Pieces(start, tuple(done[layer] for layer in layers), exits, tuple(model.exit_layers))


def _trace_images(model: Any) -> Pieces:
    size = model.config.image_size
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    begin = _Call(lambda pixel_values: model.begin({"images": pixel_values}), model.preprocess, model.conv, model.norm)
    tracer = _Tracer(1)
    start = tracer.trace("the first convolution", begin, {"pixel_values": images}, STATES)
    states = model.begin({"images": images})
    layers: list[onnx.ModelProto] = []
    exits: list[onnx.ModelProto] = []
    for number, block in enumerate(model.blocks[: model.exit_layers[-1]], start=1):
        layers.append(tracer.trace(f"block {number}", _layer(block), {STATES: states}, STATES))
        states = block(states)
        if number in model.exit_layers:
            head = model.heads[model.exit_layers.index(number)]
            call = _Call(lambda states, head=head: head(states.mean(dim=(2, 3))), head)
            exits.append(tracer.trace(f"exit {len(exits) + 1}", call, {STATES: states}, LOGITS))
    return Pieces(start, tuple(layers), tuple(exits), tuple(model.exit_layers))


def _layer(layer: nn.Module) -> _Call:
    return _Call(lambda states, mask=None: layer(states) if mask is None else layer(states, mask), layer)


def _exit(model: Any, head: nn.Module) -> _Call:
    """Pooling and classifier of one exit."""
    if model.config.pooling == "mean":
        return _Call(lambda states, attention_mask: head(_mean(states, attention_mask)), head)
    pooler = [model.backbone.pooler] if model.config.pooling == "pooler" else []
    return _Call(lambda states, attention_mask: head(model.pool(states, attention_mask)), head, *pooler)


def _mean(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Average (B, L, H) over tokens as one product, which is faster than a sum of masked states."""
    mask = attention_mask.to(states.dtype)
    shares = mask / mask.sum(dim=1, keepdim=True)
    return torch.matmul(shares.unsqueeze(1), states).squeeze(1)


def _without(encoder: nn.Module, layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the largest modules of an encoder that contain none of its layers."""
    within = {id(module) for layer in layers for module in layer.modules()}
    if id(encoder) in within:
        return []
    if not any(id(module) in within for module in encoder.modules()):
        return [encoder]
    return [part for child in encoder.children() for part in _without(child, layers)]


class _Tracer:
    """Traces modules; of those that differ only in their weights, the first alone.

    Args:
        dynamic: How many of the first dimensions vary: samples, and tokens of texts.
    """

    def __init__(self, dynamic: int) -> None:
        self.sizes = dict(enumerate((torch.export.Dim("batch"), torch.export.Dim("length"))[:dynamic]))
        self.done: dict[tuple[Any, ...], onnx.ModelProto] = {}

    def trace(self, name: str, call: _Call, inputs: Mapping[str, torch.Tensor], output: str) -> onnx.ModelProto:
        """Trace a function.

        Args:
            name: What it is, for messages.
            call: The function with its weights.
            inputs: Examples of its inputs by name.
            output: Name of its output.

        Returns:
            The graph.

        Raises:
            ConfigError: ONNX lacks an operator.
        """
        weights = {key: tensor.detach() for key, tensor in call.eval().state_dict().items()}
        shapes = tuple((key, tuple(tensor.shape)) for key, tensor in (*weights.items(), *inputs.items()))
        alike = self.done.get((repr(call), shapes))
        if alike is not None and (copied := _with_weights(alike, weights)) is not None:
            return copied
        call.names = tuple(inputs)
        try:
            program = torch.onnx.export(
                call, tuple(inputs.values()), dynamic_shapes=tuple(self.sizes for _ in inputs),
                input_names=list(inputs), output_names=[output], opset_version=OPSET, dynamo=True, verbose=False,
            )  # fmt: skip
        except Exception as error:
            raise ConfigError(f"{name} can't be exported: {_reason(error)}") from None
        assert program is not None
        model = program.model_proto
        del model.graph.value_info[:], model.metadata_props[:]
        for node in model.graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        self.done[repr(call), shapes] = model
        return model


def _with_weights(model: onnx.ModelProto, weights: Mapping[str, torch.Tensor]) -> onnx.ModelProto | None:
    """Copy a graph with other weights; None if the exporter has computed with its weights."""
    names = {tensor.name for tensor in model.graph.initializer}
    if not all(name in names for name, tensor in weights.items() if tensor.is_floating_point()):
        return None
    copied = copy.deepcopy(model)
    for tensor in copied.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name))
    return copied


def _reason(error: BaseException) -> str:
    """Name the operator that ONNX lacks; else the innermost error in one line."""
    texts = []
    current: BaseException | None = error
    while current is not None:
        texts.append(str(current))
        current = current.__cause__ or current.__context__
    if operator := re.search(
        r"No (?:ONNX function|decompositions?)[^\n]*? for [^\n]*?op='([\w.:]+)'", "\n".join(texts)
    ):
        return f"ONNX has no operator for {operator[1]}; replace it in the model"
    lines = [line for line in texts[-1].strip().splitlines() if line.strip()] or [type(error).__name__]
    return lines[0]


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Let the exporter read its table of operators once instead of for each piece, which takes half of the time."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, KeyError):  # a private name, without which export is only slower
        yield
        return
    once = functools.cache(ONNXRegistry.from_torchlib)
    ONNXRegistry.from_torchlib = staticmethod(once)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about packages that the model does not use off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
