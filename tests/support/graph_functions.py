"""Nodes of random graphs: arithmetic, gates and activations."""

from __future__ import annotations

import math

import numpy as np
from graph_makers import SCALES, Maker, Tensor, conv, is_image, makes, matmul

# Arithmetic.


@makes("Add", "Sub", "Mul", "Div")
def arithmetic(m: Maker, x: Tensor, kind: str) -> Tensor:
    how = m.pick(("scalar", "vector", "computed", "computed"))
    if how == "computed" and kind != "Div":
        return m.node(kind, [x.name, m.partner(x).name], x.shape)
    if how == "vector":
        shape = (x.shape[0], *(1,) * (len(x.shape) - 1))
        value = m.weight(*shape) if kind != "Div" else np.exp(m.weight(*shape))
    else:
        value = np.array(m.pick(SCALES))
    names = [x.name, m.constant(value)]
    return m.node(
        kind, names[::-1] if kind in ("Add", "Mul", "Sub") and m.chance(0.3) else names, x.shape
    )


@makes("Sum", "Mean", "Max", "Min")
def several(m: Maker, x: Tensor, kind: str) -> Tensor:
    names = [x.name, *(m.partner(x).name for _ in range(m.integer(1, 2)))]
    return m.node(kind, names, x.shape)


@makes("rescaled")
def rescaled(m: Maker, x: Tensor, kind: str) -> Tensor:
    """A linear op's result and a multiple of it come together: both would be truncated first."""
    linear = conv(m, x, "Conv") or matmul(m, x, "MatMul")
    if m.chance(0.5):
        linear = m.node("Relu", [linear.name], linear.shape)
    other = m.node("Mul", [linear.name, m.constant(np.array(m.pick(SCALES)))], linear.shape)
    names = [linear.name, other.name]
    kind = m.pick(("Max", "Min", "Mul", "Add", "Sub", "Sum", "Mean"))
    return m.node(kind, names if m.chance(0.5) else names[::-1], linear.shape)


@makes("gate")
def gate(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    """Squeeze and excite: x times a gate per channel."""
    if not is_image(x):
        return None
    channels = x.shape[0]
    squeezed = m.node("GlobalAveragePool", [x.name], (channels, 1, 1))
    weight = m.constant(m.weight(channels, channels, 1, 1, fan_in=channels))
    mixed = m.node("Conv", [squeezed.name, weight], (channels, 1, 1), kernel_shape=[1, 1])
    name = m.pick(("Sigmoid", "HardSigmoid"))
    more = {"alpha": 1 / 6, "beta": 0.5} if name == "HardSigmoid" else {}
    factor = m.node(name, [mixed.name], mixed.shape, **more)
    return m.node("Mul", [x.name, factor.name], x.shape)


@makes("swish")
def swish(m: Maker, x: Tensor, kind: str) -> Tensor:
    """x times its own sigmoid, smooth or hard."""
    name = m.pick(("Sigmoid", "HardSigmoid"))
    more = {"alpha": 1 / 6, "beta": 0.5} if name == "HardSigmoid" else {}
    factor = m.node(name, [x.name], x.shape, **more)
    return m.node("Mul", [x.name, factor.name], x.shape)


@makes("gelu")
def gelu(m: Maker, x: Tensor, kind: str) -> Tensor:
    scaled = m.node("Mul", [x.name, m.constant(np.array(math.sqrt(0.5)))], x.shape)
    inner = m.node("Erf", [scaled.name], x.shape)
    one = m.node("Add", [inner.name, m.constant(np.array(1.0))], x.shape)
    product = m.node("Mul", [x.name, one.name], x.shape)
    return m.node("Mul", [product.name, m.constant(np.array(0.5))], x.shape)


# Activations.


@makes("Relu", "Abs", "Neg", "Sigmoid", "Tanh", "Erf", "Softplus", "Softsign")
def plain(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape)


@makes("LeakyRelu")
def leaky_relu(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape, alpha=m.pick((0.01, 0.3, 1 / 3, 0.2)))


@makes("Elu", "Celu")
def elu(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape, alpha=m.pick((1.0, 0.5, 1 / 3)))


@makes("Selu")
def selu(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape)


@makes("PRelu")
def prelu(m: Maker, x: Tensor, kind: str) -> Tensor:
    slopes = m.weight(x.shape[0], *(1,) * (len(x.shape) - 1))
    return m.node(kind, [x.name, m.constant(slopes)], x.shape)


@makes("ThresholdedRelu")
def thresholded_relu(m: Maker, x: Tensor, kind: str) -> Tensor:
    alpha = float(np.float32(m.pick((1.0, 0.5, 1 / 3))))
    m.edges.append((x.name, alpha))
    return m.node(kind, [x.name], x.shape, alpha=alpha)


@makes("Clip")
def clip(m: Maker, x: Tensor, kind: str) -> Tensor:
    low, high = m.pick(((0.0, 6.0), (-1.0, 1.0), (-1 / 3, 0.17), (0.0, None), (None, 0.8)))
    names = [x.name, *("" if v is None else m.constant(np.array(v)) for v in (low, high))]
    return m.node(kind, names, x.shape)


@makes("HardSwish")
def hard_swish(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape)


@makes("HardSigmoid")
def hard_sigmoid(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape, alpha=m.pick((0.2, 1 / 6)), beta=0.5)


@makes("Exp")
def exp(m: Maker, x: Tensor, kind: str) -> Tensor:
    """Of what is bounded, or of anything: that one is huge, and guarded."""
    inner = m.node("Tanh", [x.name], x.shape) if m.chance(0.8) else x
    return m.node(kind, [inner.name], x.shape)


@makes("Log", "Sqrt", "Reciprocal")
def of_positive(m: Maker, x: Tensor, kind: str) -> Tensor:
    inner = m.node("Sigmoid", [x.name], x.shape)
    away = m.node("Add", [inner.name, m.constant(np.array(m.pick((1 / 3, 0.5, 1.0))))], x.shape)
    return m.node(kind, [away.name], x.shape)


@makes("Pow")
def power(m: Maker, x: Tensor, kind: str) -> Tensor:
    inner = m.node("Tanh", [x.name], x.shape) if m.chance(0.6) else x
    return m.node(kind, [inner.name, m.constant(np.array(float(m.pick((1, 2, 3)))))], x.shape)


@makes("Softmax")
def softmax(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if x.shape[-1] < 2:
        return None
    out = m.node(kind, [x.name], x.shape, axis=-1)
    # Behind something, so that it is not the client's.
    return m.node("Mul", [out.name, m.constant(np.array(m.pick(SCALES[:3])))], x.shape)
