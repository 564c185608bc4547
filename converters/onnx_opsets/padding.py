"""Padding of every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from converters.onnx_nodes import Nodes, make, refusal
from converters.onnx_opsets.rules import Scope, ints, rule


@rule("Pad")
def pad(s: Scope, node: onnx.NodeProto, attributes: dict[str, Any]) -> Nodes:
    """Constants around; a reflection or a repeated edge is picked row by row."""
    mode = attributes.get("mode", "constant")
    amounts = attributes.get("pads", attributes.get("paddings"))
    value: Any = attributes.get("value", 0.0)
    if amounts is None:
        given = s.constant(node, 1)
        if given is None:
            raise refusal(node, "it does not say how much it pads")
        amounts = given.tolist()
        stored = s.constant(node, 2)
        value = 0.0 if stored is None or not stored.size else stored.item()
    rank = s.rank(node)
    if (axes := s.constant(node, 3)) is not None:
        full = [0] * (2 * rank)
        for i, axis in enumerate(int(a) % rank for a in axes.tolist()):
            full[axis], full[axis + rank] = amounts[i], amounts[i + len(axes)]
        amounts = full
    if mode == "constant":
        removed = [max(0, -int(n)) for n in amounts]
        added = [max(0, int(n)) for n in amounts]
        names = [s.add(ints(added)), s.add(np.float32(value))]
        first = _cut(s, node, removed) if any(removed) else []
        source = first[0].output[0] if first else node.input[0]
        return [*first, make("Pad", [source, *names], node.output[0], node)]
    nodes, current = [], node.input[0]
    shape = s.shapes[node.input[0]]
    for axis in range(rank):
        before, after = int(amounts[axis]), int(amounts[axis + rank])
        if not before and not after:
            continue
        if axis == 0:
            raise refusal(node, "it pads the batch axis")
        rows = np.arange(-before, shape[axis] + after)
        if mode == "edge":
            rows = np.clip(rows, 0, shape[axis] - 1)
        elif mode == "wrap":
            rows = rows % shape[axis]
        elif mode == "reflect" and max(before, after) < shape[axis]:
            rows = shape[axis] - 1 - np.abs(shape[axis] - 1 - np.abs(rows))
        else:
            raise refusal(node, f"padding of mode {mode!r} by more than there is")
        output = s.name("padded")
        nodes.append(make("Gather", [current, s.add(ints(rows))], output, node, axis=axis))
        current = output
    return [*nodes, make("Identity", [current], node.output[0], node)]


def _cut(s: Scope, node: onnx.NodeProto, amounts: list[int]) -> Nodes:
    """What a node reads without some elements at the sides: (begin of each axis, end of each)."""
    shape = s.shapes[node.input[0]]
    rank = len(shape)
    # Only what is cut is named: the batch is of any size.
    axes = [a for a in range(rank) if amounts[a] or amounts[a + rank]]
    starts = s.add(ints(amounts[a] for a in axes))
    ends = s.add(ints(shape[a] - amounts[a + rank] for a in axes))
    inputs = [node.input[0], starts, ends, s.add(ints(axes))]
    return [make("Slice", inputs, s.name("cut"), node)]
