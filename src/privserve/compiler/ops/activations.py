"""Lowerings of activations that are affine combinations of ReLUs: exact, up to rounding."""

from __future__ import annotations

import numpy as np

from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.comparisons import halves_each, relu_each
from privserve.compiler.lowering import Lowering, PendingRelu, Tensor, affine, emitted
from privserve.compiler.products import multiply
from privserve.compiler.registry import lowers
from privserve.compiler.traced import Traced

UNBOUNDED = 1e30
"""A bound of Clip beyond this is none; float32's largest numbers stand for infinity in files."""


@lowers("Relu")
def relu(c: Lowering) -> Tensor:
    """max(x, 0)."""
    return PendingRelu(c.traced(0), c.layer)


@lowers("LeakyRelu")
def leaky_relu(c: Lowering, *, alpha: float = 0.01) -> Tensor:
    """max(x, 0) + alpha min(x, 0); alpha is public."""
    b = c.builder
    ((positive, negative),) = halves_each(b, [c.traced(0)])
    return b.add(positive, b.multiply_public(negative, alpha)) if alpha else positive


@lowers("PRelu")
def prelu(c: Lowering) -> Tensor:
    """max(x, 0) + slope min(x, 0), the slopes secret."""
    b, slope = c.builder, c.constant(1)
    if slope is None:
        raise c.refuse("its slopes must be constants")
    ((positive, negative),) = halves_each(b, [c.traced(0)])
    return b.add(positive, emitted(b, affine(b, negative, slope.astype(np.float64), 0.0)))


@lowers("Abs")
def absolute(c: Lowering) -> Tensor:
    """max(x, 0) - min(x, 0)."""
    b = c.builder
    ((positive, negative),) = halves_each(b, [c.traced(0)])
    return b.subtract(positive, negative)


@lowers("ThresholdedRelu")
def thresholded_relu(c: Lowering, *, alpha: float = 1.0) -> Tensor:
    """relu(x - t) + t [x > t], the step being relu(u) - relu(u - 1) for whole units u."""
    b, x = c.builder, c.traced(0)
    above = b.offset(b.truncate(x), -alpha)
    positive, less = relu_each(b, (above, b.offset(above, -above.step)))
    unit = b.bounded(b.subtract(positive, less), 0.0, above.step)
    step = b.with_step(unit, 1 / above.step)
    return b.add(positive, b.multiply_public(step, alpha))


@lowers("Clip")
def clip(c: Lowering, *, min: float | None = None, max: float | None = None) -> Tensor:
    """Between its second and its third input; up to opset 10 these were attributes."""
    given = (c.constant(1), c.constant(2))
    low, high = (
        old if bound is None else bound.item() for bound, old in zip(given, (min, max), strict=True)
    )
    finite_low = None if low is None or low <= -UNBOUNDED else float(low)
    finite_high = None if high is None or high >= UNBOUNDED else float(high)
    return _clipped(c.builder, c.traced(0), finite_low, finite_high)


@lowers("HardSigmoid")
def hard_sigmoid(c: Lowering, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha x + beta within [0, 1]."""
    b, x = c.builder, c.traced(0)
    if alpha <= 0:
        raise c.refuse("alpha must be positive")
    return _clipped(b, b.offset(b.with_step(x, alpha), beta), 0.0, 1.0)


@lowers("HardSwish")
def hard_swish(c: Lowering) -> Tensor:
    """x relu6(x + 3) / 6, both ReLUs of it in one comparison, which gives x as well."""
    b, x = c.builder, c.traced(0)
    (above, below), (over, _) = halves_each(b, (b.offset(x, 3.0), b.offset(x, -3.0)))
    gate = b.bounded(b.subtract(above, over), 0.0, 6.0)
    truncated = b.offset(b.add(above, below), -3.0)
    return b.with_step(multiply(b, truncated, gate), 1 / 6)


def _clipped(b: ProgramBuilder, x: Traced, low: float | None, high: float | None) -> Traced:
    """low + relu(x - low) - relu(x - high)."""
    if low is None and high is None:
        return x
    if low is None:  # min(x, high) = high - relu(high - x)
        assert high is not None
        flipped = b.relu(b.offset(b.negate(x), high))
        return b.offset(b.negate(flipped), high)
    if high is None:
        return b.offset(b.relu(b.offset(x, -low)), low)
    above, over = relu_each(b, (b.offset(x, -low), b.offset(x, -high)))
    return b.bounded(b.offset(b.subtract(above, over), low), low, high)
