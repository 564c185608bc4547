"""Squeezes and reductions: operators that name the axes that they work along."""

from __future__ import annotations

from typing import Any

import onnx

from converters.onnx_nodes import Nodes, attributes_of, make
from converters.onnx_opsets.rules import Scope, ints, rule


@rule("Squeeze", "Unsqueeze", "ReduceSum")
def axes_as_input(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 13 made an input of the axes."""
    if "axes" not in attributes:
        return reduced(s, node, attributes) if node.op_type == "ReduceSum" else [node]
    axes = s.add(ints(attributes.pop("axes")))
    return [make(node.op_type, [node.input[0], axes], node.output[0], node, **attributes)]


@rule("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
def reduced(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Opset 18 made an input of the axes; up to 17 only ReduceSum has it so."""
    axes = attributes.pop("axes", None)
    if (given := s.constant(node, 1)) is not None:
        axes = given.tolist()
    keeps_all = attributes.pop("noop_with_empty_axes", 0)
    if axes is None or not len(axes):
        if keeps_all:
            return [make("Identity", node.input[:1], node.output[0], node)]
        axes = list(range(s.rank(node)))
    keep = {"keepdims": attributes.get("keepdims", 1)}
    if node.op_type == "ReduceSum":
        names = [node.input[0], s.add(ints(axes))]
        return [make("ReduceSum", names, node.output[0], node, **keep)]
    return [make(node.op_type, node.input[:1], node.output[0], node, axes=list(axes), **keep)]


@rule("ReduceL1", "ReduceL2", "ReduceSumSquare")
def norms(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Sums of absolute values, or of squares, and their root."""
    inner, total = s.name("inner"), s.name("total")
    x = node.input[0]
    if node.op_type == "ReduceL1":
        first = make("Abs", [x], inner, node)
    else:
        first = make("Mul", [x, x], inner, node)
    last = node.output[0] if node.op_type != "ReduceL2" else total
    summed = make("ReduceSum", [inner, *node.input[1:]], last, node)
    summed.attribute.extend(node.attribute)
    s.shapes = {**s.shapes, inner: s.shapes.get(x, ())}
    nodes = [first, *axes_as_input(s, summed, attributes_of(summed))]
    if node.op_type == "ReduceL2":
        nodes.append(make("Sqrt", [total], node.output[0], node))
    return nodes
