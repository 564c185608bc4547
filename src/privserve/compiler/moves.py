"""Local ops that move elements around, as functions of the builder that they are emitted by.

Each moves the range's elements alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privserve import local
from privserve.compiler.ranges import joined
from privserve.compiler.traced import Traced

if TYPE_CHECKING:
    from privserve.compiler.builder import ProgramBuilder


def expand(b: ProgramBuilder, x: Traced, shape: tuple[int, ...]) -> Traced:
    """Return x broadcast to `shape`, as NumPy does it."""
    if x.shape == shape:
        return x
    x = reshape(b, x, (1,) * (len(shape) - len(x.shape)) + x.shape)
    return x if x.shape == shape else _local(b, "expand", x, {}, shape)


def reshape(b: ProgramBuilder, x: Traced, shape: tuple[int, ...]) -> Traced:
    """Return x in another shape of the same size."""
    if x.shape == shape:
        return x
    return _local(b, "reshape", x, {}, shape)


def transpose(b: ProgramBuilder, x: Traced, axes: Sequence[int]) -> Traced:
    """Return x with its axes (the batch axis not counted) in another order."""
    if list(axes) == list(range(len(x.shape))):
        return x
    shape = tuple(x.shape[a] for a in axes)
    moved = [a for a in axes if x.shape[a] != 1]
    if moved == sorted(moved):
        return reshape(b, x, shape)
    return _local(b, "transpose", x, {"axes": [int(a) for a in axes]}, shape)


def pad(b: ProgramBuilder, x: Traced, pads: Sequence[tuple[int, int]], real: float) -> Traced:
    """Return x with a public constant around it; pads: (before, after) per axis."""
    if not any(map(any, pads)):
        return x
    value = round(real / x.step)
    shape = tuple(d + sum(ends) for d, ends in zip(x.shape, pads, strict=True))
    bounds = x.range.map(lambda v: np.pad(v, ((0, 0), *pads), constant_values=value * x.step))
    attributes = {"pads": [list(map(int, p)) for p in pads], "value": value}
    return b.emit("pad", (x,), shape, x.step, bounds, attributes)


def slice_(b: ProgramBuilder, x: Traced, slices: Sequence[slice]) -> Traced:
    """Return x[slices]; the slices have positive or negative steps and plain integer ends."""
    triples = [
        [s.start, s.stop if s.stop is not None and s.stop >= 0 else None, s.step] for s in slices
    ]
    shape = tuple(len(range(*slice(*t).indices(d))) for t, d in zip(triples, x.shape, strict=True))
    if shape == x.shape and all(t[2] in (1, None) for t in triples):
        return x
    return _local(b, "slice", x, {"slices": triples}, shape)


def gather(b: ProgramBuilder, x: Traced, rows: NDArray[Any], axis: int) -> Traced:
    """Return x's rows along `axis`, in the order of `rows`, which may repeat."""
    listed = [int(r) for r in rows]
    if listed == list(range(x.shape[axis])):
        return x
    shape = (*x.shape[:axis], len(listed), *x.shape[axis + 1 :])
    return _local(b, "gather", x, {"rows": listed, "axis": axis}, shape)


def concat(b: ProgramBuilder, parts: Sequence[Traced], axis: int) -> Traced:
    """Return the parts side by side along `axis`."""
    if len(parts) == 1:
        return parts[0]
    aligned = b.align(parts)
    shape = list(aligned[0].shape)
    shape[axis] = sum(p.shape[axis] for p in aligned)
    bounds = joined([p.range for p in aligned], axis)
    return b.emit("concat", aligned, tuple(shape), aligned[0].step, bounds, {"axis": axis})


def parted(b: ProgramBuilder, x: Traced, count: int) -> list[Traced]:
    """Return x in `count` parts of one size, cut along its first axis."""
    each = x.shape[0] // count
    rest = [slice(0, d, 1) for d in x.shape[1:]]
    return [slice_(b, x, [slice(j * each, (j + 1) * each, 1), *rest]) for j in range(count)]


def _local(
    b: ProgramBuilder, kind: str, x: Traced, attributes: dict[str, Any], shape: tuple[int, ...]
) -> Traced:
    """Emit an op that only moves elements around, and move the range's alike."""
    bounds = x.range.map(lambda v: np.asarray(local.apply(kind, attributes, [v], shape, False, {})))
    return b.emit(kind, (x,), shape, x.step, bounds, attributes)
