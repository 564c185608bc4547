"""What another opset writes in another way: settings as inputs, inputs as settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from converters.onnx_nodes import Nodes, make, refusal
from converters.onnx_opsets.rules import Scope, ints, rule


@rule("Dropout")
def dropout(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Nothing, at inference."""
    return [make("Identity", node.input[:1], node.output[0], node)]


@rule("Cast", "CastLike")
def cast(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Nothing between floats, which are all computed alike here."""
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
    source = s.types.get(node.input[0])
    target = attributes.get("to", s.types.get(node.output[0]))
    if source in floats and target in floats:  # an unknown source is an operator's result
        return [make("Identity", node.input[:1], node.output[0], node)]
    raise refusal(node, "computed values can be cast between floats only")


@rule("Clip")
def clip(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 11 made inputs of the bounds."""
    if not {"min", "max"} & set(attributes):
        return [node]
    bounds = [
        s.add(np.float32(attributes[key])) if key in attributes else "" for key in ("min", "max")
    ]
    return [make("Clip", [node.input[0], *bounds], node.output[0], node)]


@rule("Softmax", "LogSoftmax")
def softmax(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Up to opset 12 it went over all axes from `axis` on, by default 1."""
    if s.version >= 13:
        return [node]
    axis = attributes.get("axis", 1)
    shape = s.shapes.get(node.input[0])
    if shape is None:
        raise refusal(node, "the shape of what it reads cannot be inferred")
    axis %= len(shape)
    if any(d != 1 for d in shape[axis + 1 :]):
        raise refusal(node, "opset 12 and older: it runs over several axes; export it anew")
    return [make(node.op_type, node.input, node.output[0], node, axis=axis)]


@rule("Split")
def split(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """A slice per output."""
    if node.input[0] not in s.shapes:
        raise refusal(node, "the shape of what it reads cannot be inferred")
    shape = s.shapes[node.input[0]]
    axis = attributes.get("axis", 0) % len(shape)
    sizes = attributes.get("split")
    if (given := s.constant(node, 1)) is not None:
        sizes = given.tolist()
    if sizes is None:  # equal parts, the last one smaller
        each = -(-shape[axis] // len(node.output))
        sizes = [min(each, shape[axis] - i * each) for i in range(len(node.output))]
    if axis == 0:
        raise refusal(node, "it works across the batch")
    if min(sizes) < 1 or sum(sizes) != shape[axis] or len(sizes) != len(node.output):
        raise refusal(node, f"its parts {list(sizes)} do not make up an axis of {shape[axis]}")
    nodes, start = [], 0
    for output, size in zip(node.output, sizes, strict=True):
        ends = [s.add(ints([v])) for v in (start, start + size, axis)]
        if output:
            nodes.append(helper.make_node("Slice", [node.input[0], *ends], [output], name=output))
        start += size
    return nodes


@rule("Slice")
def slice_(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 10 made inputs of its ends."""
    if "starts" not in attributes:
        return [node]
    starts = attributes["starts"]
    parts = [starts, attributes["ends"], attributes.get("axes", range(len(starts)))]
    names = [s.add(ints(part)) for part in parts]
    return [make("Slice", [node.input[0], *names], node.output[0], node)]


@rule("BatchNormalization", "MaxPool")
def first_output(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """What training needs, and where a maximum was, nobody reads."""
    for old in ("spatial", "storage_order"):
        attributes.pop(old, None)
    return [make(node.op_type, node.input, node.output[0], node, **attributes)]


@rule("AveragePool")
def average_pool(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 19 added dilations."""
    if any(d != 1 for d in attributes.pop("dilations", [])):
        raise refusal(node, "dilated average pooling is not supported")
    return [make("AveragePool", node.input, node.output[0], node, **attributes)]
