"""Nodes of ONNX graphs: reading their attributes, making new ones, refusing them by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from converters.errors import ConversionError

OPSET = 17
IR_VERSION = 8  # the one that opset 17 came with; the checker and old runtimes accept it

Array = NDArray[Any]
Nodes = list[onnx.NodeProto]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes: numbers, texts, lists of them; tensors and graphs as they are."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: _decoded(value) for name, value in values.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def make(
    op: str, inputs: Sequence[str], output: str, like: onnx.NodeProto, **attributes: Any
) -> onnx.NodeProto:
    """Return a node that takes its name from the one that it replaces."""
    return helper.make_node(op, inputs, [output], name=like.name or output, **attributes)


def refusal(node: onnx.NodeProto, why: str) -> ConversionError:
    """Return an error that names the node and its operator."""
    name = node.name or (node.output[0] if node.output else "")
    return ConversionError(f"node {name!r} ({node.op_type}): {why}")


def needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> Nodes:
    """Return the nodes that `outputs` are computed from, in their order."""
    wanted = set(outputs)
    kept: Nodes = []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.output):
            continue
        wanted.update(filter(None, node.input))
        kept.append(node)
    return kept[::-1]


def to_initializer(name: str, array: Array) -> onnx.TensorProto:
    """Return a constant as the model stores it."""
    return numpy_helper.from_array(np.asarray(array), name)
