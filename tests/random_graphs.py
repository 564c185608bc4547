"""Random small ONNX graphs over every op that `ottt` lowers, from a seed.

Weights, constants and inputs are float64, so that `onnx.reference` computes in it and is the
ideal. Scales are those that steps of powers of two dislike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

SCALES = (1 / 3, 1 / 6, 0.17, 0.01, 255.0, 0.8, -1.7, 2.0, 1 / 255)
RANGES = (None, (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-1.0, 1.0))
MOST_ELEMENTS = 200
EDGE = 0.02
"""Rows with an element this close to a jump of the function are not judged by its result."""

Array = np.ndarray


class MaxPool(OpRun):
    """By its definition; the one of `onnx.reference` fails on some padded windows."""

    def _run(  # type: ignore[no-untyped-def, override]
        self, x, kernel_shape=None, strides=None, pads=None, **_
    ):
        (kh, kw), (sh, sw), (top, left, bottom, right) = kernel_shape, strides, pads
        around = ((0, 0), (0, 0), (top, bottom), (left, right))
        padded = np.pad(x, around, constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (2, 3))
        return (windows[:, :, ::sh, ::sw].max((-2, -1)),)


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Without the batch axis."""


@dataclass
class Graph:
    """A model, the range of its input, and what else a judge has to know."""

    seed: int
    model: onnx.ModelProto
    input_range: tuple[float, float] | None
    shape: tuple[int, ...]
    edges: list[tuple[str, float]]
    """Tensors and the thresholds at which something jumps."""

    @property
    def kinds(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]

    def inputs(self, rows: int) -> Array:
        """Rows of the declared range: noise, its two ends, and mixtures of them."""
        low, high = self.input_range or (-8.0, 8.0)
        draw = np.random.default_rng(self.seed + 10**9)
        x = draw.uniform(low, high, (rows, *self.shape))
        x[0], x[1] = low, high
        x[2] = draw.choice([low, high], self.shape)
        x[3] = x[3] * 0.1 + 0.9 * x[3].mean()
        return x

    def ideal(self, x: Array) -> tuple[list[Array], Array]:
        """The outputs in float64, and the rows that are not at a jump."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for name, _ in self.edges:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, None))
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(model, new_ops=[MaxPool]).run(None, {"x": x})
        count = len(self.model.graph.output)
        clear = np.ones(len(x), bool)
        for value, (_, at) in zip(values[count:], self.edges, strict=True):
            clear &= (np.abs(value - at).reshape(len(x), -1) > EDGE * max(1, abs(at))).all(1)
        return [np.asarray(v, np.float64) for v in values[:count]], clear


@dataclass
class Maker:
    """Grows one graph."""

    draw: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    edges: list[tuple[str, float]] = field(default_factory=list)

    def pick(self, options: Any) -> Any:
        return options[int(self.draw.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.draw.random() < probability)

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(self.draw.integers(low, high + 1))

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, *shape: int, fan_in: int = 1) -> Array:
        scale = self.pick((1.0, 1.0, 1.0, 1 / 3, 0.17))
        return self.draw.normal(size=shape) * scale / math.sqrt(fan_in)

    def node(
        self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any
    ) -> Tensor:
        out = Tensor(f"t{len(self.nodes)}", tuple(int(d) for d in shape))
        name = f"{kind} {len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out.name], name=name, **attributes))
        self.tensors.append(out)
        return out

    def partner(self, x: Tensor) -> Tensor:
        """Another tensor of the same shape: a residual where there is one, or a branch."""
        others = [t for t in self.tensors if t.shape == x.shape and t.name != x.name]
        if others and self.chance(0.7):
            return self.pick(others)
        kind = self.pick(("Sigmoid", "Mul", "Relu", "Tanh", "HardSigmoid"))
        if kind == "Mul":
            return self.node("Mul", [x.name, self.constant(self.pick(SCALES))], x.shape)
        return self.node(kind, [x.name], x.shape)


Make = Callable[[Maker, Tensor], Tensor | None]
"""None where the op cannot take such a tensor."""
MAKERS: dict[str, Make] = {}


def makes(*names: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        for name in names:
            MAKERS[name] = lambda m, x, name=name: function(m, x, name)
        return function

    return register


def is_image(x: Tensor) -> bool:
    return len(x.shape) == 3


# Linear ops.


@makes("Conv")
def conv(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if not is_image(x):
        return None
    channels, *spatial = x.shape
    kernel = [m.integer(1, min(3, d)) for d in spatial]
    strides = [m.integer(1, 2) for _ in spatial]
    pads = [m.integer(0, 1) for _ in range(4)]
    groups = channels if m.chance(0.3) else 1
    outs = groups * m.integer(1, 2) if groups > 1 else m.integer(1, 4)
    sizes = [
        (d + pads[i] + pads[i + 2] - k) // s + 1
        for i, (d, k, s) in enumerate(zip(spatial, kernel, strides, strict=True))
    ]
    each = channels // groups
    weight = m.weight(outs, each, *kernel, fan_in=each * math.prod(kernel))
    names = [x.name, m.constant(weight)]
    if m.chance(0.6):
        names.append(m.constant(m.weight(outs)))
    return m.node(
        kind, names, (outs, *sizes), kernel_shape=kernel, strides=strides, pads=pads, group=groups
    )


@makes("ConvTranspose")
def conv_transpose(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if not is_image(x) or math.prod(x.shape) > 60:
        return None
    channels, height, width = x.shape
    outs, k, s = m.integer(1, 3), m.integer(1, 3), m.integer(1, 2)
    weight = m.weight(channels, outs, k, k, fan_in=channels * k)
    sizes = [(d - 1) * s + k for d in (height, width)]
    return m.node(
        kind, [x.name, m.constant(weight)], (outs, *sizes), kernel_shape=[k, k], strides=[s, s]
    )


@makes("Gemm")
def gemm(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if len(x.shape) != 1:
        return None
    outs = m.integer(1, 8)
    names = [x.name, m.constant(m.weight(x.shape[0], outs, fan_in=x.shape[0]))]
    if m.chance(0.7):
        names.append(m.constant(m.weight(outs)))
    return m.node(kind, names, (outs,))


@makes("MatMul")
def matmul(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    outs, features = m.integer(1, 6), x.shape[-1]
    weight = m.constant(m.weight(features, outs, fan_in=features))
    return m.node(kind, [x.name, weight], (*x.shape[:-1], outs))


@makes("BatchNormalization")
def batch_normalization(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    channels = x.shape[0]
    drawn = [m.weight(channels) for _ in range(3)]
    variance = np.exp(m.weight(channels))
    names = [m.constant(v) for v in (*drawn, variance)]
    return m.node(kind, [x.name, *names], x.shape)


# Pooling.


@makes("AveragePool", "MaxPool")
def pool(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if not is_image(x) or min(x.shape[1:]) < 2:
        return None
    kernel = [m.integer(1, min(3, d)) for d in x.shape[1:]]
    strides = [m.integer(1, 2) for _ in kernel]
    pads = [m.integer(0, k // 2) for k in kernel] * 2
    sizes = [(d + 2 * pads[i] - kernel[i]) // strides[i] + 1 for i, d in enumerate(x.shape[1:])]
    more = {"count_include_pad": m.integer(0, 1)} if kind == "AveragePool" else {}
    shape = (x.shape[0], *sizes)
    return m.node(kind, [x.name], shape, kernel_shape=kernel, strides=strides, pads=pads, **more)


@makes("GlobalAveragePool", "GlobalMaxPool")
def global_pool(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    return m.node(kind, [x.name], (x.shape[0], 1, 1)) if is_image(x) else None


@makes("ReduceMean")
def reduce_mean(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    keep = m.integer(0, 1)
    shape = (x.shape[0], *(1,) * (2 * keep))
    return m.node(kind, [x.name], shape, axes=[2, 3], keepdims=keep) if is_image(x) else None


# Movement.


@makes("Identity", "Dropout")
def identity(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape)


@makes("Cast")
def cast(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], x.shape, to=TensorProto.DOUBLE)


@makes("Transpose")
def transpose(m: Maker, x: Tensor, kind: str) -> Tensor:
    order = [int(a) for a in m.draw.permutation(len(x.shape))]
    return m.node(
        kind, [x.name], tuple(x.shape[a] for a in order), perm=[0, *(a + 1 for a in order)]
    )


@makes("Reshape")
def reshape(m: Maker, x: Tensor, kind: str) -> Tensor:
    size = math.prod(x.shape)
    rows = m.pick([d for d in range(1, size + 1) if size % d == 0])
    columns = m.pick([d for d in range(1, size // rows + 1) if size // rows % d == 0])
    shape = (rows, columns, size // rows // columns) if m.chance(0.7) else (size,)
    return m.node(kind, [x.name, m.constant(np.array([-1, *shape]))], shape)


@makes("Flatten")
def flatten(m: Maker, x: Tensor, kind: str) -> Tensor:
    return m.node(kind, [x.name], (math.prod(x.shape),))


@makes("Squeeze")
def squeeze(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    axes = [i + 1 for i, d in enumerate(x.shape) if d == 1]
    if not axes or len(axes) == len(x.shape):
        return None
    shape = tuple(d for d in x.shape if d != 1)
    return m.node(kind, [x.name, m.constant(np.array(axes))], shape)


@makes("Unsqueeze")
def unsqueeze(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if len(x.shape) > 2:
        return None
    axis = m.integer(1, len(x.shape) + 1)
    shape = (*x.shape[: axis - 1], 1, *x.shape[axis - 1 :])
    return m.node(kind, [x.name, m.constant(np.array([axis]))], shape)


@makes("Concat")
def concat(m: Maker, x: Tensor, kind: str) -> Tensor:
    axis = m.integer(0, len(x.shape) - 1)
    shape = list(x.shape)
    shape[axis] *= 2
    parts = [x.name, m.partner(x).name]
    return m.node(kind, parts if m.chance(0.5) else parts[::-1], tuple(shape), axis=axis + 1)


@makes("Pad")
def pad(m: Maker, x: Tensor, kind: str) -> Tensor:
    before, after = ([m.integer(0, 1) for _ in x.shape] for _ in range(2))
    names = [x.name, m.constant(np.array([0, *before, 0, *after]))]
    if m.chance(0.5):
        names.append(m.constant(np.array(m.pick(SCALES[:4]))))
    shape = tuple(a + d + b for a, d, b in zip(before, x.shape, after, strict=True))
    return m.node(kind, names, shape)


@makes("Slice")
def slice_(m: Maker, x: Tensor, kind: str) -> Tensor:
    axis = m.integer(0, len(x.shape) - 1)
    step = m.integer(1, 2)
    start = m.integer(0, (x.shape[axis] - 1) // 2)
    shape = list(x.shape)
    shape[axis] = len(range(start, x.shape[axis], step))
    ends = (np.array([start]), np.array([x.shape[axis]]), np.array([axis + 1]), np.array([step]))
    return m.node(kind, [x.name, *map(m.constant, ends)], tuple(shape))


@makes("Gather")
def gather(m: Maker, x: Tensor, kind: str) -> Tensor:
    axis = m.integer(0, len(x.shape) - 1)
    rows = m.draw.integers(0, x.shape[axis], m.integer(1, x.shape[axis]))
    shape = (*x.shape[:axis], len(rows), *x.shape[axis + 1 :])
    return m.node(kind, [x.name, m.constant(rows)], shape, axis=axis + 1)


@makes("Tile")
def tile(m: Maker, x: Tensor, kind: str) -> Tensor:
    times = [1] * len(x.shape)
    times[m.integer(0, len(times) - 1)] = 2
    shape = tuple(d * t for d, t in zip(x.shape, times, strict=True))
    return m.node(kind, [x.name, m.constant(np.array([1, *times]))], shape)


@makes("Resize")
def resize(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if not is_image(x):
        return None
    factors = [m.pick((1, 2, 3)) for _ in range(2)]
    scales = m.constant(np.array([1, 1, *factors], np.float32))
    shape = (x.shape[0], *(d * f for d, f in zip(x.shape[1:], factors, strict=True)))
    how: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if m.chance(0.5):
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
        how["nearest_mode"] = "floor"
    return m.node(kind, [x.name, "", scales], shape, **how)


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


def random_graph(seed: int, only: str | None = None) -> Graph:
    """The graph of this seed; only: an op that it has to begin with, after a linear one."""
    m = Maker(np.random.default_rng(seed))
    shape = m.pick(((3, 4, 4), (2, 5, 3), (1, 6, 6), (4, 2, 2), (6,), (10,), (3,)))
    input_range = m.pick(RANGES)
    x = Tensor("x", shape)
    m.tensors.append(x)
    if input_range == (0.0, 255.0) and m.chance(0.6):
        x = m.node("Mul", [x.name, m.constant(np.array(1 / 255))], shape)
    wanted = m.integer(2, 7)
    names = sorted(MAKERS)
    queue = [only] if only else []
    for _ in range(60):
        if len(m.nodes) >= wanted and not queue:
            break
        made = MAKERS[queue[0] if queue else m.pick(names)](m, x)
        if queue and made is None:
            x = m.node(
                "Reshape", [x.name, m.constant(np.array([-1, *_other(x.shape)]))], _other(x.shape)
            )
        elif made is not None:
            queue = []
            if math.prod(made.shape) <= MOST_ELEMENTS:
                x = made
    if m.chance(0.4):
        flat = flatten(m, x, "Flatten")
        x = gemm(m, flat, "Gemm") or flat
    return Graph(seed, _model(m, x, shape), input_range, shape, m.edges)


def _other(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The size as an image, or flat where it is one."""
    size = math.prod(shape)
    return (size,) if len(shape) == 3 else (1, size // 2, 2) if size % 2 == 0 else (1, 1, size)


def _model(m: Maker, last: Tensor, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The nodes that the last tensor follows from; others would be compiled for nothing."""
    needed, nodes = {last.name}, []
    for node in reversed(m.nodes):
        if node.output[0] in needed:
            nodes.append(node)
            needed.update(node.input)
    if not nodes:
        nodes = [helper.make_node("Neg", ["x"], ["t0"], name="Neg 0")]
        last = Tensor("t0", shape)
    m.edges[:] = [e for e in m.edges if e[0] in needed]
    return helper.make_model(
        helper.make_graph(
            nodes[::-1],
            "random",
            [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", *shape])],
            [helper.make_tensor_value_info(last.name, TensorProto.DOUBLE, None)],
            [numpy_helper.from_array(v, n) for n, v in m.constants.items() if n in needed],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
