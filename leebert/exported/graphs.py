"""Look into ONNX graphs without the package `onnx`, and refuse what could read files or run foreign code.

Nothing of a graph is loaded before this check: ONNX Runtime reads external data while it loads a graph.
"""

from __future__ import annotations

from collections.abc import Iterator

from leebert.errors import CheckpointError
from leebert.exported.manifest import ADVICE

#: Domains of operators that a graph may use: the standard ones and ONNX Runtime's own.
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})

#: Operators of these domains that load compiled code or files of other programs.
REFUSED = frozenset({"EPContext"})

_DEEPEST = 16  # graphs within graphs, of operators such as If and Loop

# Field numbers of onnx.proto3.
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_OPSET_DOMAIN = 1

#: A field of a message: its number, and its bytes; of a number (wire type 0) only whether it differs from 0.
_Field = tuple[int, memoryview | bool]


def check_graph(data: bytes, file: str) -> None:
    """Refuse a graph with operators of other domains, external data or local functions.

    Args:
        data: The contents of an `.onnx` file.
        file: Its name, for messages.

    Raises:
        CheckpointError: The graph has one of these, or the file is damaged.
    """
    try:
        graphs = 0
        for number, value in _fields(memoryview(data)):
            if number == _MODEL_FUNCTIONS:
                raise CheckpointError(f"{file}: the graph defines functions of its own; {ADVICE}")
            if number == _MODEL_TRAINING:
                raise CheckpointError(f"{file}: the graph has training information; {ADVICE}")
            if number == _MODEL_OPSETS:
                for key, domain in _fields(_message(value)):
                    if key == _OPSET_DOMAIN:
                        _check_domain(_text(domain), file, "an operator")
            elif number == _MODEL_GRAPH:
                graphs += 1
                _check_graph(_message(value), file, 0)
    except (IndexError, ValueError):
        raise CheckpointError(f"{file} is no ONNX graph, or damaged; {ADVICE}") from None
    if not graphs:
        raise CheckpointError(f"{file} has no graph; {ADVICE}")


def _check_graph(graph: memoryview, file: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise CheckpointError(f"{file}: graphs are nested more than {_DEEPEST} deep; {ADVICE}")
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            _check_node(_message(value), file, depth)
        elif number == _GRAPH_TENSOR:
            _check_tensor(_message(value), file)
        elif number == _GRAPH_SPARSE:
            _check_sparse(_message(value), file)


def _check_node(node: memoryview, file: str, depth: int) -> None:
    operator = domain = ""
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            _check_attribute(_message(value), file, depth)
    _check_domain(domain, file, f"operator {operator!r}")
    if operator in REFUSED:
        raise CheckpointError(f"{file}: operator {operator!r} loads code or files from outside the graph; {ADVICE}")


def _check_attribute(attribute: memoryview, file: str, depth: int) -> None:
    for number, value in _fields(attribute):
        if number in _ATTRIBUTE_TENSORS:
            _check_tensor(_message(value), file)
        elif number in _ATTRIBUTE_GRAPHS:
            _check_graph(_message(value), file, depth + 1)
        elif number in _ATTRIBUTE_SPARSE:
            _check_sparse(_message(value), file)


def _check_sparse(sparse: memoryview, file: str) -> None:
    """Check the two tensors of a sparse one: values and indices."""
    for number, value in _fields(sparse):
        if number in (1, 2):
            _check_tensor(_message(value), file)


def _check_tensor(tensor: memoryview, file: str) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value):
            raise CheckpointError(
                f"{file}: a tensor's data lies outside the file; {ADVICE}, which keeps weights inside"
            )


def _check_domain(domain: str, file: str, what: str) -> None:
    if domain not in DOMAINS:
        raise CheckpointError(
            f"{file}: {what} is of the domain {domain!r}; a graph may use ai.onnx and com.microsoft only: {ADVICE}"
        )


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield the fields of a message in protocol buffers' wire format.

    Args:
        message: Its bytes.

    Raises:
        IndexError: A number ends outside the message.
        ValueError: A field does, or is of a type that ONNX does not use.
    """
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            number, position = _varint(message, position)
            yield key >> 3, bool(number)
            continue
        if kind == 2:
            size, position = _varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + size > end:
            raise ValueError("a field ends outside its message")
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a number of variable length; returns it and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _message(value: memoryview | bool) -> memoryview:
    if isinstance(value, bool):
        raise ValueError("a number where a message should be")
    return value


def _text(value: memoryview | bool) -> str:
    return bytes(_message(value)).decode("utf-8")
