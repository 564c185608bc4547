"""Lowerings that move elements around: shapes, orders, pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privserve.compiler import moves
from privserve.compiler.lowering import Lowering, Tensor
from privserve.compiler.onnx_graph import FLOATS, type_name
from privserve.compiler.registry import lowers
from privserve.compiler.traced import Traced


@lowers("Identity")
def identity(c: Lowering) -> Tensor:
    """x itself."""
    return c.traced(0)


@lowers("Dropout")
def dropout(c: Lowering, *, ratio: float = 0.5, seed: int = 0) -> Tensor:
    """Nothing, at inference."""
    training = c.constant(2)
    if training is not None and training.any():
        raise c.refuse("training_mode is on: it drops elements at random; export for inference")
    return c.traced(0)


@lowers("Cast")
def cast(c: Lowering, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Nothing between floats; saturate and round_mode are those of the 8-bit ones."""
    if to not in FLOATS:
        raise c.refuse(f"computed values can be cast between floats only, not to {type_name(to)}")
    return c.traced(0)


@lowers("Transpose")
def transpose(c: Lowering, *, perm: Sequence[int] | None = None) -> Tensor:
    """In another order of axes, of which the batch stays first."""
    x = c.traced(0)
    order = list(perm or range(len(x.shape), -1, -1))
    if order[0] != 0:
        raise c.refuse("it moves the batch axis")
    return moves.transpose(c.builder, x, [a - 1 for a in order[1:]])


@lowers("Reshape")
def reshape(c: Lowering, *, allowzero: int = 0) -> Tensor:
    """0 keeps an axis, -1 takes what is left."""
    x, target = c.traced(0), c.constant(1)
    if target is None:
        raise c.refuse("its shape must be a constant")
    if allowzero and not np.all(target):
        raise c.refuse("allowzero is set: the result has no elements")
    full = (1, *x.shape)
    dims = [full[i] if d == 0 and i < len(full) else int(d) for i, d in enumerate(target.tolist())]
    return _reshaped(c, x, dims[1:])


@lowers("Flatten")
def flatten(c: Lowering, *, axis: int = 1) -> Tensor:
    """One row per sample."""
    if axis != 1:
        raise c.refuse("only axis 1 keeps the batch apart")
    x = c.traced(0)
    return _reshaped(c, x, [math.prod(x.shape)])


@lowers("Squeeze")
def squeeze(c: Lowering, *, axes: Sequence[int] | None = None) -> Tensor:
    """Axes of length 1 go: those that are given, or all of them."""
    x = c.traced(0)
    given = [c.axis(a, len(x.shape)) for a in _axes(c, axes)]
    gone = given or [i for i, d in enumerate(x.shape) if d == 1]
    return _reshaped(c, x, [d for i, d in enumerate(x.shape) if i not in gone])


@lowers("Unsqueeze")
def unsqueeze(c: Lowering, *, axes: Sequence[int] | None = None) -> Tensor:
    """With axes of length 1, at the places that they have in the result."""
    x = c.traced(0)
    shape, added = list(x.shape), _axes(c, axes)
    for axis in sorted(c.axis(a, len(shape) + len(added)) for a in added):
        shape.insert(axis, 1)
    return _reshaped(c, x, shape)


def _axes(c: Lowering, attribute: Sequence[int] | None) -> list[int]:
    """Opset 13 made an input of the axes."""
    given = c.constant(1)
    return [int(a) for a in (attribute or [] if given is None else given.tolist())]


def _reshaped(c: Lowering, x: Traced, shape: list[int]) -> Traced:
    """x in a shape where one length may be -1."""
    if -1 in shape:
        known = math.prod(d for d in shape if d != -1)
        shape[shape.index(-1)] = math.prod(x.shape) // max(known, 1)
    if math.prod(shape) != math.prod(x.shape):
        raise c.refuse(f"it reshapes (B, {x.shape}) across the batch")
    return moves.reshape(c.builder, x, tuple(shape))


@lowers("Concat")
def concat(c: Lowering, *, axis: int) -> Tensor:
    """Side by side, with one common step."""
    parts = [c.traced(i) for i in range(len(c.inputs))]
    return moves.concat(c.builder, parts, c.axis(axis, len(parts[0].shape)))


@lowers("Pad")
def pad(
    c: Lowering, *, mode: str = "constant", pads: Sequence[int] | None = None, value: float = 0.0
) -> Tensor:
    """By a constant; amounts and the constant were attributes up to opset 10."""
    x, given, stated = c.traced(0), c.constant(1), c.constant(2)
    amounts = pads if given is None else given.tolist()
    if mode != "constant" or amounts is None:
        raise c.refuse("only constant padding by constant amounts is supported")
    flat = [int(p) for p in amounts]
    rank = len(x.shape) + 1
    if (axes := c.constant(3)) is not None:
        full = [0] * (2 * rank)
        for i, axis in enumerate(int(a) % rank for a in axes.tolist()):
            full[axis], full[axis + rank] = flat[i], flat[i + len(axes)]
        flat = full
    if flat[0] or flat[rank] or min(flat) < 0:
        raise c.refuse("it pads the batch axis, or cuts")
    around = [(flat[i], flat[i + rank]) for i in range(1, rank)]
    return moves.pad(c.builder, x, around, value if stated is None else float(stated.item()))


@lowers("Slice")
def slice_(
    c: Lowering,
    *,
    starts: Sequence[int] | None = None,
    ends: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    """Its ends, axes and steps were attributes up to opset 9."""
    x = c.traced(0)
    first, last, chosen, steps = (
        old if given is None else given.tolist()
        for given, old in zip(
            (c.constant(i) for i in range(1, 5)), (starts, ends, axes, None), strict=True
        )
    )
    if first is None or last is None:
        raise c.refuse("its ends must be constants")
    cut = [slice(0, d, 1) for d in x.shape]
    for i, axis in enumerate(range(len(first)) if chosen is None else chosen):
        at = c.axis(int(axis), len(x.shape))
        step = 1 if steps is None else int(steps[i])
        whole = slice(int(first[i]), int(last[i]), step)
        cut[at] = slice(*whole.indices(x.shape[at]))
    return moves.slice_(c.builder, x, cut)


@lowers("Split")
def split(
    c: Lowering,
    *,
    axis: int = 0,
    split: Sequence[int] | None = None,
    num_outputs: int | None = None,
) -> list[Tensor]:
    """A slice per output, of the given sizes or of equal ones, of which the last may be smaller.

    The sizes were an attribute up to opset 12.
    """
    x, given, count = c.traced(0), c.constant(1), len(c.node.output)
    at = c.axis(axis, len(x.shape))
    length, each = x.shape[at], -(-x.shape[at] // count)
    sizes = split if given is None else given.tolist()
    if sizes is None:
        sizes = [each] * (count - 1) + [length - each * (count - 1)]
    if (
        num_outputs not in (None, count)
        or len(sizes) != count
        or sum(sizes) != length
        or min(sizes) < 1
    ):
        raise c.refuse(f"{count} parts of sizes {list(sizes)} do not make up an axis of {length}")
    parts: list[Tensor] = []
    start = 0
    for size in sizes:
        cut = [slice(0, d, 1) for d in x.shape]
        cut[at] = slice(start, start + size, 1)
        parts.append(moves.slice_(c.builder, x, cut))
        start += size
    return parts


@lowers("Gather")
def gather(c: Lowering, *, axis: int = 0) -> Tensor:
    """By constant places."""
    b, x, indices = c.builder, c.traced(0), c.constant(1)
    axis = axis + len(x.shape) if axis < 0 else axis - 1
    if indices is None or axis < 0:
        raise c.refuse("only constant places along an axis other than the batch's")
    rows = indices.astype(int).ravel() % x.shape[axis]
    out = moves.gather(b, x, rows, axis)
    return moves.reshape(b, out, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@lowers("Tile")
def tile(c: Lowering) -> Tensor:
    """Rows that are gathered again and again."""
    x, repeats = c.traced(0), c.constant(1)
    if repeats is None or int(repeats[0]) != 1:
        raise c.refuse("it repeats along the batch, or not by constants")
    for axis, times in enumerate(repeats.tolist()[1:]):
        if times != 1:
            rows = np.tile(np.arange(x.shape[axis]), int(times))
            x = moves.gather(c.builder, x, rows, axis)
    return x


@lowers("Expand")
def expand(c: Lowering) -> Tensor:
    """Broadcast against a constant shape."""
    x, target = c.traced(0), c.constant(1)
    if target is None:
        raise c.refuse("its shape must be a constant")
    sizes = [int(d) for d in target.tolist()]
    if len(sizes) > len(x.shape) + 1 or (len(sizes) == len(x.shape) + 1 and sizes[0] != 1):
        raise c.refuse("it repeats along the batch")
    shape = np.broadcast_shapes(x.shape, tuple(sizes[-len(x.shape) :]))
    return moves.expand(c.builder, x, shape)
