"""Lowerings of activations that are affine combinations of ReLUs: exact, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from privserve.compiler.builder import Traced
from privserve.compiler.compile import Tensor, _Compiler, _layer, lowers
from privserve.compiler.ops.linear import first_input

Attributes = dict[str, Any]


@lowers("Relu")
def relu(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    return c.builder.relu(c.traced(first_input(node)), _layer(node))


@lowers("LeakyRelu")
def leaky_relu(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """alpha x + (1 - alpha) relu(x); alpha is public."""
    x, layer, b = c.traced(first_input(node)), _layer(node), c.builder
    alpha = float(attributes.get("alpha", 0.01))
    positive = b.multiply_public(b.relu(x, layer), 1 - alpha, layer)
    return b.add(positive, b.multiply_public(b.truncate(x, layer), alpha, layer), layer)


@lowers("PRelu")
def prelu(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """relu(x) - slope relu(-x), the slopes secret."""
    x, layer, slope = c.traced(first_input(node)), _layer(node), c.constant(node, 1)
    if slope is None:
        raise c.refuse(node, "its slopes must be constants")
    both = _relu_pair(c, x, negated(c, x, layer), layer)
    c.tensors[f"{node.output[0]}/negative"] = both[1]
    c.readers[f"{node.output[0]}/negative"] = 1
    scaled = c.affine(node, f"{node.output[0]}/negative", -slope.astype(np.float64), 0.0)
    c.tensors[f"{node.output[0]}/scaled"] = scaled
    return c.builder.add(both[0], c.traced(f"{node.output[0]}/scaled"), layer)


@lowers("Abs")
def absolute(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, layer = c.traced(first_input(node)), _layer(node)
    positive, negative = _relu_pair(c, x, negated(c, x, layer), layer)
    return c.builder.add(positive, negative, layer)


@lowers("ThresholdedRelu")
def thresholded_relu(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    """relu(x - t) + t [x > t], the step being relu(u) - relu(u - 1) for whole units u."""
    b, layer = c.builder, _layer(node)
    x, threshold = c.traced(first_input(node)), float(attributes.get("alpha", 1.0))
    above = b.offset(b.truncate(x, layer), -threshold, layer)
    positive, less = _relu_pair(c, above, b.offset(above, -above.step, layer), layer)
    unit = b.bounded(b.subtract(positive, less, layer), 0.0, above.step)
    step = b.with_step(unit, 1 / above.step, layer)
    return b.add(positive, b.multiply_public(step, threshold, layer), layer)


@lowers("Clip")
def clip(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    low, high = attributes.get("min"), attributes.get("max")
    for position, old in ((1, low), (2, high)):
        bound = c.constant(node, position)
        value = old if bound is None else bound.item()
        if position == 1:
            low = value
        else:
            high = value
    finite_low = None if low is None or low <= -1e30 else float(low)
    finite_high = None if high is None or high >= 1e30 else float(high)
    return _clip(c, c.traced(first_input(node)), finite_low, finite_high, _layer(node))


@lowers("HardSigmoid")
def hard_sigmoid(c: _Compiler, node: onnx.NodeProto, attributes: Attributes) -> Tensor:
    x, layer = c.traced(first_input(node)), _layer(node)
    alpha, beta = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    if alpha <= 0:
        raise c.refuse(node, "alpha must be positive")
    x = c.builder.offset(c.builder.with_step(x, alpha, layer), beta, layer)
    return _clip(c, x, 0.0, 1.0, layer)


def _clip(c: _Compiler, x: Traced, low: float | None, high: float | None, layer: str) -> Traced:
    """low + relu(x - low) - relu(x - high)."""
    b = c.builder
    if low is None and high is None:
        return x
    if low is None:  # min(x, high) = high - relu(high - x)
        assert high is not None
        flipped = b.relu(b.offset(negated(c, x, layer), high, layer), layer)
        return b.offset(negated(c, flipped, layer), high, layer)
    if high is None:
        return b.offset(b.relu(b.offset(x, -low, layer), layer), low, layer)
    above, over = _relu_pair(c, b.offset(x, -low, layer), b.offset(x, -high, layer), layer)
    out = b.offset(b.subtract(above, over, layer), low, layer)
    return b.bounded(out, low, high)


def negated(c: _Compiler, x: Traced, layer: str) -> Traced:
    return c.builder.negate(x, layer)


def _relu_pair(c: _Compiler, x: Traced, y: Traced, layer: str) -> tuple[Traced, Traced]:
    """relu of two values of one shape in one comparison."""
    both = c.builder.relu(c.builder.concat((x, y), 0, layer), layer)
    half = x.shape[0]
    rest = [slice(0, d, 1) for d in both.shape[1:]]
    return (
        c.builder.slice(both, [slice(0, half, 1), *rest], layer),
        c.builder.slice(both, [slice(half, 2 * half, 1), *rest], layer),
    )
