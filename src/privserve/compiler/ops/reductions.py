"""Lowerings that reduce along axes, and of what broadcasts: sums, means, maxima, Expand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx

from privserve.compiler.builder import Traced
from privserve.compiler.compile import Tensor, _Compiler, _layer, lowers
from privserve.compiler.ops.activations import negated
from privserve.compiler.ops.linear import first_input, max_along_axis

Attributes = dict[str, Any]


def _reduced_axes(
    c: _Compiler, node: onnx.NodeProto, attributes: Attributes, rank: int
) -> list[int]:
    """The axes that go, the batch's not counted."""
    axes = attributes.get("axes")
    if axes is None:
        given = c.constant(node, 1)
        axes = range(rank + 1) if given is None else given.tolist()
    wanted = sorted({int(a) % (rank + 1) for a in axes})
    if 0 in wanted:
        raise c.refuse(node, "it works across the batch")
    return [a - 1 for a in wanted]


def _rows(c: _Compiler, x: Traced, axes: list[int], layer: str) -> Traced:
    """x as (kept, reduced, 1)."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    moved = c.builder.transpose(x, [*kept, *axes], layer)
    count = math.prod(x.shape[a] for a in axes)
    return c.builder.reshape(moved, (math.prod(x.shape) // count, count, 1), layer)


def _kept_shape(x: Traced, axes: list[int], attributes: Attributes) -> tuple[int, ...]:
    if attributes.get("keepdims", 1):
        return tuple(1 if a in axes else d for a, d in enumerate(x.shape))
    return tuple(d for a, d in enumerate(x.shape) if a not in axes)


@lowers("ReduceMean", "ReduceSum")
def reduce_sum(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """Sums over windows that cover what is reduced; a mean is a sum with a smaller step."""
    b, layer, x = c.builder, _layer(node), c.traced(first_input(node))
    axes = _reduced_axes(c, node, attributes, len(x.shape))
    rows = _rows(c, x, axes, layer)
    count = rows.shape[1]
    out = b.sum_pool(rows, (count, 1), (1, 1), (0, 0, 0, 0), layer)
    if node.op_type == "ReduceMean":
        out = b.with_step(out, 1 / count, layer)
    return b.reshape(out, _kept_shape(x, axes, attributes), layer)


@lowers("ReduceMax", "ReduceMin")
def reduce_max(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """A tree of comparisons."""
    b, layer, x = c.builder, _layer(node), c.traced(first_input(node))
    axes = _reduced_axes(c, node, attributes, len(x.shape))
    rows = b.truncate(_rows(c, x, axes, layer), layer)
    if node.op_type == "ReduceMin":
        out = negated(c, max_along_axis(c, negated(c, rows, layer), 1, layer), layer)
    else:
        out = max_along_axis(c, rows, 1, layer)
    return b.reshape(out, _kept_shape(x, axes, attributes), layer)


@lowers("Expand")
def expand(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, target = c.traced(first_input(node)), c.constant(node, 1)
    if target is None:
        raise c.refuse(node, "its shape must be a constant")
    sizes = [int(d) for d in target.tolist()]
    if len(sizes) > len(x.shape) + 1 or (len(sizes) == len(x.shape) + 1 and sizes[0] != 1):
        raise c.refuse(node, "it repeats along the batch")
    shape = np.broadcast_shapes(x.shape, tuple(sizes[-len(x.shape) :]))
    return c.builder.expand(x, shape, _layer(node))


@lowers("HardSwish")
def hard_swish(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """x relu6(x + 3) / 6, both ReLUs of it in one comparison."""
    b, layer, x = c.builder, _layer(node), c.traced(first_input(node))
    both = b.relu(b.concat((b.offset(x, 3.0, layer), b.offset(x, -3.0, layer)), 0, layer), layer)
    half, rest = x.shape[0], [slice(0, d, 1) for d in x.shape[1:]]
    above = b.slice(both, [slice(0, half, 1), *rest], layer)
    over = b.slice(both, [slice(half, 2 * half, 1), *rest], layer)
    gate = b.bounded(b.subtract(above, over, layer), 0.0, 6.0)
    return b.with_step(b.multiply(x, gate, layer), 1 / 6, layer)
