"""Lowerings that reduce along axes: sums, means, norms, maxima."""

from __future__ import annotations

import math
from collections.abc import Sequence

from privserve.compiler import moves
from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.comparisons import maximum
from privserve.compiler.lowering import Lowering, SmoothFunction, Tensor
from privserve.compiler.products import square
from privserve.compiler.registry import lowers
from privserve.compiler.traced import Traced


@lowers("ReduceMean", "ReduceSum")
def reduce_sum(
    c: Lowering,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    """Sums over windows that cover what is reduced; a mean is a sum with a smaller step."""
    b, x = c.builder, c.traced(0)
    gone = _reduced_axes(c, len(x.shape), axes, noop_with_empty_axes)
    out = _summed(b, x, gone)
    if c.op == "ReduceMean":
        out = b.with_step(out, 1 / math.prod(x.shape[a] for a in gone))
    return moves.reshape(b, out, _kept_shape(x, gone, keepdims))


@lowers("ReduceSumSquare")
def reduce_sum_square(
    c: Lowering,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    """The sum of x * x, exact up to the truncation of x."""
    return _sum_of_squares(c, axes, keepdims, noop_with_empty_axes)


@lowers("ReduceL2")
def reduce_l2(
    c: Lowering,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    """The root of the sum of x * x: a spline, or at the end of a model the client's."""
    squares = _sum_of_squares(c, axes, keepdims, noop_with_empty_axes)
    return SmoothFunction(squares, ["sqrt", "x"], c.layer)


def _sum_of_squares(
    c: Lowering, axes: Sequence[int] | None, keepdims: int, noop_with_empty_axes: int
) -> Traced:
    b, x = c.builder, c.traced(0)
    gone = _reduced_axes(c, len(x.shape), axes, noop_with_empty_axes)
    if not gone:
        raise c.refuse("noop_with_empty_axes: ONNX does not say whether it squares then")
    out = _summed(b, square(b, x), gone)
    return moves.reshape(b, out, _kept_shape(x, gone, keepdims))


def _summed(b: ProgramBuilder, x: Traced, axes: list[int]) -> Traced:
    """The sums over the axes, as (kept, 1, 1)."""
    rows = _rows(b, x, axes)
    return b.sum_pool(rows, (rows.shape[1], 1), (1, 1), (0, 0, 0, 0))


@lowers("ReduceMax", "ReduceMin")
def reduce_max(
    c: Lowering,
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    """A tree of comparisons."""
    b, x = c.builder, c.traced(0)
    gone = _reduced_axes(c, len(x.shape), axes, noop_with_empty_axes)
    rows = b.truncate(_rows(b, x, gone))
    if c.op == "ReduceMin":
        out = b.negate(max_along_axis(b, b.negate(rows), 1))
    else:
        out = max_along_axis(b, rows, 1)
    return moves.reshape(b, out, _kept_shape(x, gone, keepdims))


def _reduced_axes(c: Lowering, rank: int, axes: Sequence[int] | None, noop: int) -> list[int]:
    """The axes that go, the batch's not counted: the attribute's, or since opset 18 an input's.

    None means all of them, and with `noop` none of them.
    """
    given = c.constant(1)
    listed = list(axes or ()) if given is None else given.tolist()
    if not listed and not noop:
        listed = list(range(rank + 1))
    wanted = sorted({int(a) % (rank + 1) for a in listed})
    if 0 in wanted:
        raise c.refuse("it works across the batch")
    return [a - 1 for a in wanted]


def _rows(b: ProgramBuilder, x: Traced, axes: list[int]) -> Traced:
    """x as (kept, reduced, 1)."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    moved = moves.transpose(b, x, [*kept, *axes])
    count = math.prod(x.shape[a] for a in axes)
    return moves.reshape(b, moved, (math.prod(x.shape) // count, count, 1))


def _kept_shape(x: Traced, axes: list[int], keepdims: int) -> tuple[int, ...]:
    if keepdims:
        return tuple(1 if a in axes else d for a, d in enumerate(x.shape))
    return tuple(d for a, d in enumerate(x.shape) if a not in axes)


def max_along_axis(b: ProgramBuilder, x: Traced, axis: int) -> Traced:
    """Return the maximum over one axis, which stays with length 1."""
    return max_of_windows(b, x, axis, x.shape[axis], 1, 1)


def max_of_windows(
    b: ProgramBuilder, x: Traced, axis: int, size: int, stride: int, dilation: int
) -> Traced:
    """Return the maximum over windows along one axis: a tree, one comparison per level."""
    count = (x.shape[axis] - dilation * (size - 1) - 1) // stride + 1

    def tap(index: int) -> Traced:
        cut = [slice(0, d, 1) for d in x.shape]
        start = index * dilation
        cut[axis] = slice(start, start + stride * (count - 1) + 1, stride)
        return moves.slice_(b, x, cut)

    taps = [tap(i) for i in range(size)]
    while len(taps) > 1:
        pairs = len(taps) // 2
        one = moves.concat(b, taps[0 : 2 * pairs : 2], 0)
        other = moves.concat(b, taps[1 : 2 * pairs : 2], 0)
        best = maximum(b, one, other)
        each = best.shape[0] // pairs
        rest = taps[2 * pairs :]
        taps = []
        for i in range(pairs):
            cut = [slice(i * each, (i + 1) * each, 1), *(slice(0, d, 1) for d in best.shape[1:])]
            taps.append(moves.slice_(b, best, cut))
        taps += rest
    return taps[0]
