"""Maxima and minima with constants, as what every engine knows: Clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from converters.onnx_nodes import Nodes, make, refusal
from converters.onnx_opsets.rules import Scope, rule


@rule("Max", "Min")
def bounded(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Between computed values as they are; with constants a Clip, about them if they differ."""
    computed = [name for name in node.input if name not in s.constants]
    constants = [s.constants[name] for name in node.input if name in s.constants]
    if not constants or not computed:
        return [node]
    pairwise = np.maximum if node.op_type == "Max" else np.minimum
    bound = np.asarray(constants[0], np.float32)
    for other in constants[1:]:
        bound = pairwise(bound, np.asarray(other, np.float32))
    nodes: Nodes = []
    source = computed[0]
    if len(computed) > 1:
        source = s.name("among")
        nodes.append(make(node.op_type, computed, source, node))
    if bound.size == 1:
        limit = s.add(bound.reshape(()))
        limits = [limit] if node.op_type == "Max" else ["", limit]
        return [*nodes, make("Clip", [source, *limits], node.output[0], node)]
    shape = s.shapes.get(computed[0], [])
    try:
        fits = list(np.broadcast_shapes(tuple(shape), bound.shape)) == list(shape)
    except ValueError:
        fits = False
    if not fits:
        raise refusal(node, f"its constant of shape {bound.shape} does not fit a sample")
    zero = s.add(np.float32(0))
    limits = [zero] if node.op_type == "Max" else ["", zero]
    less, clipped, constant = s.name("less"), s.name("clipped"), s.add(bound)
    return [
        *nodes,
        make("Sub", [source, constant], less, node),
        make("Clip", [less, *limits], clipped, node),
        make("Add", [clipped, constant], node.output[0], node),
    ]
