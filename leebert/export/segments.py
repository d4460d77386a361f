"""Compose the pieces of a model into the ONNX graphs of its segments, each of which ends with an exit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from leebert.export.pieces import LOGITS, MASK, OPSET, STATES, Pieces

#: The name of the tokens' mask among the model's inputs.
ATTENTION_MASK = "attention_mask"


@dataclasses.dataclass(frozen=True)
class Graph:
    """The graph of one segment.

    Attributes:
        model: The graph, with its weights.
        first: Its first layer, from 1.
        last: Its last layer, which its exit follows.
    """

    model: onnx.ModelProto
    first: int
    last: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs."""
        return tuple(value.name for value in self.model.graph.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return tuple(value.name for value in self.model.graph.output)


def compose(pieces: Pieces, exit_layers: Sequence[int]) -> list[Graph]:
    """Compose one segment for each of some exits.

    Args:
        pieces: The model's pieces.
        exit_layers: The layers of the exits to keep, ascending.

    Returns:
        The segments. Between segments, `states_N` holds the states after layer N.
    """
    below = [0, *exit_layers[:-1]]
    return [
        Graph(_segment(pieces, first + 1, last, final=last == exit_layers[-1]), first + 1, last)
        for first, last in zip(below, exit_layers, strict=True)
    ]


def _segment(pieces: Pieces, first: int, last: int, *, final: bool) -> onnx.ModelProto:
    join = _Join()
    if first == 1:
        states = join.add(pieces.start, "start", "start", {})
    else:
        states = join.input(f"{STATES}_{first - 1}", pieces.layers[first - 1].graph.input[0])
    for number in range(first, last + 1):
        layer = pieces.layers[number - 1]
        weights = next(i for i, other in enumerate(pieces.layers, start=1) if other is layer)  # ALBERT shares them
        states = join.add(layer, f"layer{number}", f"layer{weights}", {STATES: states})
    exit_ = pieces.exits[pieces.exit_layers.index(last)]
    logits = join.add(exit_, f"exit{last}", f"exit{last}", {STATES: states})
    outputs = {logits: LOGITS} if final else {states: f"{STATES}_{last}", logits: LOGITS}
    return join.model(outputs)


class _Join:
    """A graph to which pieces are added one after the other."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.inputs: dict[str, onnx.ValueInfoProto] = {}
        self.types: dict[str, onnx.ValueInfoProto] = {}
        self.masked = ""

    def input(self, name: str, value: onnx.ValueInfoProto) -> str:
        """Make a tensor an input of the graph."""
        if name not in self.inputs:
            self.inputs[name] = _renamed(value, name)
        return name

    def mask(self, value: onnx.ValueInfoProto) -> str:
        """Convert the attention mask to int32, once for all layers."""
        if not self.masked:
            self.masked = MASK
            self.input(ATTENTION_MASK, _renamed(value, ATTENTION_MASK, TensorProto.INT64))
            self.nodes.append(helper.make_node("Cast", [ATTENTION_MASK], [MASK], name=MASK, to=TensorProto.INT32))
        return self.masked

    def add(self, piece: onnx.ModelProto, prefix: str, weights: str, given: Mapping[str, str]) -> str:
        """Add a piece.

        Args:
            piece: The piece.
            prefix: The prefix of its tensors and nodes.
            weights: The prefix of its weights; pieces with the same one share them.
            given: Tensors of this graph for inputs of the piece; other inputs are the model's.

        Returns:
            The tensor of the piece's output.
        """
        graph = piece.graph
        names = dict(given)
        for value in graph.input:
            if value.name not in names:
                names[value.name] = self.mask(value) if value.name == MASK else self.input(value.name, value)
        for tensor in graph.initializer:
            names[tensor.name] = f"{weights}.{tensor.name}"
            if names[tensor.name] not in self.weights:
                self.weights[names[tensor.name]] = onnx.TensorProto()
                self.weights[names[tensor.name]].CopyFrom(tensor)
                self.weights[names[tensor.name]].name = names[tensor.name]
        for number, node in enumerate(graph.node):
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = f"{prefix}.{number}.{node.op_type}"
            names.update((output, f"{prefix}.{output}") for output in node.output if output)
            copied.input[:] = [names[name] if name else "" for name in node.input]
            copied.output[:] = [names[name] if name else "" for name in node.output]
            self.nodes.append(copied)
        result = names[graph.output[0].name]
        self.types[result] = graph.output[0]
        return result

    def model(self, outputs: Mapping[str, str]) -> onnx.ModelProto:
        """Make the model.

        Args:
            outputs: Tensors that are outputs, and their new names.
        """
        for node in self.nodes:
            node.input[:] = [outputs.get(name, name) for name in node.input]
            node.output[:] = [outputs.get(name, name) for name in node.output]
        self._unfuse()
        values = [_renamed(self.types[tensor], name) for tensor, name in outputs.items()]
        graph = helper.make_graph(self.nodes, "segment", list(self.inputs.values()), values, [*self.weights.values()])
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="leebert")

    def _unfuse(self) -> None:
        """Keep ONNX Runtime from fusing a sum and its normalisation into `SkipLayerNormalization`.

        On CPUs that operator takes eight times as long as the two together, a fifth of a layer in int8: its loops are not
        vectorised. The fusion looks for `Add`.
        """
        normalised = {node.input[0] for node in self.nodes if node.op_type == "LayerNormalization"}
        for node in self.nodes:
            if node.op_type == "Add" and node.output[0] in normalised:
                node.op_type = "Sum"


def _renamed(value: onnx.ValueInfoProto, name: str, element: int | None = None) -> onnx.ValueInfoProto:
    copied = onnx.ValueInfoProto()
    copied.CopyFrom(value)
    copied.name = name
    if element is not None:
        copied.type.tensor_type.elem_type = element
    return copied
