"""Quantise the graphs of segments to int8: products, attention and convolutions of the layers, and large embeddings.

Weights are int8 with one scale per output; a table of embeddings has one per row. Activations are uint8. Their range is
computed for each batch (dynamic), or measured once on calibration samples (static). Convolutions are always static: ONNX
Runtime's `ConvInteger` for dynamic ranges is slower than a convolution in float32.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from leebert.export.segments import Graph

#: The smallest and largest value of an activation, by the name of the node that takes it: whatever the segments are, nodes
#: have the same names.
Ranges = Mapping[str, tuple[float, float]]

#: Operators whose inputs and weights become int8.
QUANTISED = ("MatMul", "Attention", "Conv")

#: Elements from which a table of embeddings is quantised.
_LARGE = 100_000


def activations(graph: Graph) -> dict[str, str]:
    """Return the tensors whose ranges :func:`quantised` needs, by the name of the node that takes each.

    The output of a convolution, or of the ReLU that alone reads it, has the key :func:`_after` of the convolution's name.
    """
    weights = {tensor.name for tensor in graph.model.graph.initializer}
    nodes = [node for node in graph.model.graph.node if _quantisable(node, weights)]
    outputs = {value.name for value in graph.model.graph.output}
    readers = _readers(graph.model)
    after = {
        _after(node.name): (_relu(node, readers, outputs) or node).output[0] for node in nodes if node.op_type == "Conv"
    }
    return {node.name: node.input[0] for node in nodes} | after


def _after(name: str) -> str:
    """The key of the range of a convolution's output."""
    return f"{name}.after"


def _readers(model: onnx.ModelProto) -> Mapping[str, list[onnx.NodeProto]]:
    """The nodes that take each tensor."""
    readers: dict[str, list[onnx.NodeProto]] = collections.defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    return readers


def _relu(
    node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], outputs: set[str]
) -> onnx.NodeProto | None:
    """The ReLU that alone reads a convolution: integers that end at 0 make it superfluous."""
    after = readers.get(node.output[0], [])
    return after[0] if len(after) == 1 and after[0].op_type == "Relu" and node.output[0] not in outputs else None


def quantised(graph: Graph, ranges: Ranges | None = None, *, reduced: bool = False) -> Graph:
    """Quantise a segment.

    Args:
        graph: The segment in float32.
        ranges: Ranges of all :func:`activations`; None: dynamic.
        reduced: Whether weights take 7 bits instead of 8. On CPUs without VNNI, sums of two products of 8 bits overflow.

    Returns:
        The segment in int8; its exit stays in float32.
    """
    return dataclasses.replace(graph, model=_Quantiser(graph.model, ranges, 63 if reduced else 127).model())


def _quantisable(node: onnx.NodeProto, weights: set[str]) -> bool:
    return node.op_type in QUANTISED and node.name.startswith("layer") and node.input[1] in weights


class _Quantiser:
    """The quantisation of one graph."""

    def __init__(self, model: onnx.ModelProto, ranges: Ranges | None, most: int) -> None:
        self.source, self.ranges, self.most = model, ranges, most
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.added: dict[str, onnx.TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.readers = _readers(model)
        #: Tensors that exist as uint8: the names of values, scale and zero point.
        self.integers: dict[str, tuple[str, str, str]] = {}
        self.outputs = {value.name for value in model.graph.output}

    def model(self) -> onnx.ModelProto:
        """Make the quantised model."""
        merged: set[str] = set()
        for node in self.source.graph.node:
            if node.name in merged:
                continue
            if not _quantisable(node, set(self.weights)):
                if node.op_type == "Gather" and self._large(node.input[0]):
                    self._gather(node)
                else:
                    self.nodes.append(node)
            elif node.op_type == "Attention":
                self._attention(node)
            elif node.op_type == "Conv":
                relu = _relu(node, self.readers, self.outputs)
                self._convolution(node, relu)
                merged.update([relu.name] if relu else [])
            else:
                add = self._bias(node)
                self._product(node, add)
                merged.update([add.name] if add else [])
        result = onnx.ModelProto()
        result.CopyFrom(self.source)
        del result.graph.node[:], result.graph.initializer[:]
        result.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        every = {**self.weights, **self.added}
        result.graph.initializer.extend(every[name] for name in every if name in read)
        return result

    def _large(self, name: str) -> bool:
        tensor = self.weights.get(name)
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= _LARGE

    def _bias(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The addition of a bias to a product, if nothing else reads the product."""
        readers = self.readers[node.output[0]]
        if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] in self.outputs:
            return None
        other = [name for name in readers[0].input if name != node.output[0]]
        return readers[0] if len(other) == 1 and other[0] in self.weights else None

    def _constant(self, name: str, values: np.ndarray) -> str:
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(values, name)
        return name

    def _weight(self, name: str, axis: int) -> tuple[str, str]:
        """Quantise weights, with one scale for each index of `axis`; returns the names of values and scales."""
        if f"{name}.int8" not in self.added:
            weight = numpy_helper.to_array(self.weights[name])
            others = tuple(i for i in range(weight.ndim) if i != axis)
            highest = np.abs(weight).max(axis=others)
            scale = (np.where(highest > 0, highest, 1) / self.most).astype(np.float32)
            rounded = np.rint(weight / np.expand_dims(scale, others)).clip(-self.most, self.most).astype(np.int8)
            self._constant(f"{name}.int8", rounded)
            self._constant(f"{name}.scale", scale)
            self._constant(f"{name}.zero", np.zeros(len(scale), np.int8))
        return f"{name}.int8", f"{name}.scale"

    def _activation(self, node: onnx.NodeProto) -> tuple[str, str, str]:
        """Quantise an activation to uint8; returns the names of values, scale and zero point."""
        name = node.input[0]
        names = (f"{node.name}.uint8", f"{node.name}.in_scale", f"{node.name}.in_zero")
        if self.ranges is None:
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [name], names, name=f"{node.name}.quantise"))
            return names
        self._range(node.name, names[1], names[2])
        self.nodes.append(
            helper.make_node("QuantizeLinear", [name, *names[1:]], names[:1], name=f"{node.name}.quantise")
        )
        return names

    def _range(self, key: str, scale_name: str, zero_name: str) -> float:
        """Make the scale and the zero point of a measured range; returns the scale."""
        assert self.ranges is not None
        low, high = self.ranges[key]
        scale = np.float32(max(high - low, 1e-6) / 255)
        self._constant(scale_name, np.array(scale))
        self._constant(zero_name, np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8))
        return float(scale)

    def _convolution(self, node: onnx.NodeProto, relu: onnx.NodeProto | None) -> None:
        """Convolve integers; the result is also converted to float32 if something else than a convolution reads it."""
        values, scale = self._weight(node.input[1], 0)
        if node.input[0] not in self.integers:
            self.integers[node.input[0]] = self._activation(node)
        activation, in_scale, in_zero = self.integers[node.input[0]]
        inputs = [activation, in_scale, in_zero, values, scale, f"{node.input[1]}.zero"]
        output = (relu or node).output[0]
        integers = (f"{node.name}.out_uint8", f"{node.name}.out_scale", f"{node.name}.out_zero")
        self._range(_after(node.name), *integers[1:])
        inputs += integers[1:]
        if len(node.input) > 2:
            step = numpy_helper.to_array(self.added[in_scale]) * numpy_helper.to_array(self.added[scale])
            bias = np.rint(numpy_helper.to_array(self.weights[node.input[2]]) / step).astype(np.int32)
            inputs.append(self._constant(f"{node.name}.bias", bias))
        made = helper.make_node("QLinearConv", inputs, integers[:1], name=node.name)
        made.attribute.extend(node.attribute)
        self.nodes.append(made)
        self.integers[output] = integers
        if output in self.outputs or not all(_quantisable(one, set(self.weights)) for one in self.readers[output]):
            self.nodes.append(helper.make_node("DequantizeLinear", integers, [output], name=f"{node.name}.dequantise"))

    def _product(self, node: onnx.NodeProto, add: onnx.NodeProto | None) -> None:
        values, scale = self._weight(node.input[1], 1)
        zero = f"{node.input[1]}.zero"
        bias = next((name for name in add.input if name in self.weights), "") if add else ""
        output = add.output if add else node.output
        if self.ranges is None:
            inputs, operator = [node.input[0], values, scale, zero, bias], "DynamicQuantizeMatMul"
        else:
            activation, in_scale, in_zero = self._activation(node)
            inputs, operator = [activation, values, in_scale, scale, in_zero, zero, bias], "MatMulIntegerToFloat"
        self.nodes.append(helper.make_node(operator, inputs, output, name=node.name, domain="com.microsoft"))

    def _attention(self, node: onnx.NodeProto) -> None:
        _, weight, bias, mask = node.input
        values, scale = self._weight(weight, 1)
        activation, in_scale, in_zero = self._activation(node)
        inputs = [activation, values, bias, in_scale, scale, mask, in_zero, f"{weight}.zero"]
        made = helper.make_node("QAttention", inputs, node.output, name=node.name, domain="com.microsoft")
        made.attribute.extend(node.attribute)
        self.nodes.append(made)

    def _gather(self, node: onnx.NodeProto) -> None:
        """Look up rows of an int8 table and their scales."""
        table, ids = node.input
        values, scale = self._weight(table, 0)
        column = self._constant(f"{scale}.column", numpy_helper.to_array(self.added[scale])[:, None])
        rows, floats, scales = (f"{node.name}.{part}" for part in ("rows", "floats", "scales"))
        self.nodes += [
            helper.make_node("Gather", [values, ids], [rows], name=f"{node.name}.rows"),
            helper.make_node("Cast", [rows], [floats], name=f"{node.name}.cast", to=TensorProto.FLOAT),
            helper.make_node("Gather", [column, ids], [scales], name=f"{node.name}.scale"),
            helper.make_node("Mul", [floats, scales], node.output, name=node.name),
        ]
