"""Measure the ranges of activations on calibration samples, for static int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from leebert.export.quantise import activations
from leebert.export.segments import Graph


def measure_ranges(
    graphs: Sequence[Graph], batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, tuple[float, float]]:
    """Run segments in float32, and keep the smallest and largest value of each activation that int8 quantises.

    Args:
        graphs: The segments, in order.
        batches: Inputs of the model, without padding, so that padding sets no range.

    Returns:
        (lowest, highest) by the name of the node that takes the activation; the range includes 0.
    """
    ranges: dict[str, tuple[float, float]] = {}
    values = [dict(batch) for batch in batches]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for graph in graphs:
        names = activations(graph)
        shown = onnx.ModelProto()
        shown.CopyFrom(graph.model)
        inner = [name for name in dict.fromkeys(names.values()) if name not in (*graph.inputs, *graph.outputs)]
        shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
        # Without optimisations, which would rename or fuse the tensors.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = [value.name for value in session.get_outputs()]
        for batch in values:
            results = dict(zip(outputs, session.run(None, {name: batch[name] for name in graph.inputs}), strict=True))
            for node, name in names.items():
                tensor = results[name] if name in results else batch[name]
                low, high = ranges.get(node, (0.0, 0.0))
                ranges[node] = (min(low, float(tensor.min())), max(high, float(tensor.max())))
            batch.update({name: results[name] for name in graph.outputs})
    return ranges
