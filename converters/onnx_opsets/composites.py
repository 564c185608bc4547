"""Operators that are combinations of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from converters.onnx_nodes import Nodes, make, refusal
from converters.onnx_opsets.rules import Scope, ints, rule


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Blocks of pixels become channels, or channels blocks: two reshapes and a transpose."""
    if len(s.shapes.get(node.input[0], ())) != 4:
        raise refusal(node, "it works on images only")
    _, channels, height, width = s.shapes[node.input[0]]
    size = int(attributes["blocksize"])
    if node.op_type == "SpaceToDepth":
        split = [0, channels, height // size, size, width // size, size]
        order = [0, 3, 5, 1, 2, 4]
        shape = [0, channels * size * size, height // size, width // size]
    elif attributes.get("mode", "DCR") == "DCR":
        split = [0, size, size, channels // size**2, height, width]
        order = [0, 3, 4, 1, 5, 2]
        shape = [0, channels // size**2, height * size, width * size]
    else:
        split = [0, channels // size**2, size, size, height, width]
        order = [0, 1, 4, 2, 5, 3]
        shape = [0, channels // size**2, height * size, width * size]
    parts, moved = s.name("parts"), s.name("moved")
    return [
        make("Reshape", [node.input[0], s.add(ints(split))], parts, node),
        make("Transpose", [parts], moved, node, perm=order),
        make("Reshape", [moved, s.add(ints(shape))], node.output[0], node),
    ]


@rule("Gelu")
def gelu(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x (1 + erf(x / sqrt 2)) / 2, or its approximation by tanh."""
    x = node.input[0]
    half, one = s.add(np.float32(0.5)), s.add(np.float32(1.0))
    inner, outer = s.name("inner"), s.name("outer")
    if attributes.get("approximate", "none") == "none":
        scaled = s.name("scaled")
        nodes = [
            make("Mul", [x, s.add(np.float32(np.sqrt(0.5)))], scaled, node),
            make("Erf", [scaled], inner, node),
        ]
    else:
        square, cube, part, total, scaled = (s.name("part") for _ in range(5))
        nodes = [
            make("Mul", [x, x], square, node),
            make("Mul", [square, x], cube, node),
            make("Mul", [cube, s.add(np.float32(0.044715))], part, node),
            make("Add", [x, part], total, node),
            make("Mul", [total, s.add(np.float32(np.sqrt(2 / np.pi)))], scaled, node),
            make("Tanh", [scaled], inner, node),
        ]
    halved = s.name("halved")
    return [
        *nodes,
        make("Add", [inner, one], outer, node),
        make("Mul", [x, half], halved, node),
        make("Mul", [halved, outer], node.output[0], node),
    ]


@rule("Where")
def where(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """torch's Softplus, which is x itself beyond a threshold: there both are alike."""
    test, soft = (s.makers.get(node.input[i]) for i in (0, 2))
    while soft is not None and soft.op_type in ("Mul", "Div") and soft.input[1] in s.constants:
        soft = s.makers.get(soft.input[0])
    if (
        test is not None
        and soft is not None
        and (test.op_type, soft.op_type) == ("Greater", "Softplus")
        and test.input[0] == soft.input[0]
        and np.all(s.constants.get(test.input[1], np.zeros(1)) >= 15)
    ):
        return [make("Identity", [node.input[2]], node.output[0], node)]
    raise refusal(node, "choosing by a computed condition is not supported")


@rule("Mish")
def mish(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x tanh(softplus(x))."""
    soft, bent = s.name("soft"), s.name("bent")
    return [
        make("Softplus", node.input[:1], soft, node),
        make("Tanh", [soft], bent, node),
        make("Mul", [node.input[0], bent], node.output[0], node),
    ]


@rule("Swish")
def swish(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """x sigmoid(alpha x)."""
    scaled, gate = s.name("scaled"), s.name("gate")
    alpha = s.add(np.float32(attributes.get("alpha", 1.0)))
    return [
        make("Mul", [node.input[0], alpha], scaled, node),
        make("Sigmoid", [scaled], gate, node),
        make("Mul", [node.input[0], gate], node.output[0], node),
    ]
