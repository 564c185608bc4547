"""Nodes of random graphs: linear ops, pooling and movement; `makes` registers further makers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

SCALES = (1 / 3, 1 / 6, 0.17, 0.01, 255.0, 0.8, -1.7, 2.0, 1 / 255)
"""Factors that steps of powers of two dislike, among others."""

Array = np.ndarray


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Without the batch axis."""


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
        return self.several(kind, inputs, [shape], **attributes)[0]

    def several(
        self, kind: str, inputs: list[str], shapes: list[tuple[int, ...]], **attributes: Any
    ) -> list[Tensor]:
        """A node with an output of each of these shapes."""
        number = len(self.nodes)
        names = [f"t{number}", *(f"t{number}_{i}" for i in range(1, len(shapes)))]
        outs = [
            Tensor(name, tuple(map(int, shape))) for name, shape in zip(names, shapes, strict=True)
        ]
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=f"{kind} {number}", **attributes)
        )
        self.tensors += outs
        return outs

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


@makes("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2")
def reduce(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    if not x.shape or math.prod(x.shape) == 1:
        return None
    axes = sorted({m.integer(1, len(x.shape)) for _ in range(2)})
    keep = 1 if len(axes) == len(x.shape) else m.integer(0, 1)
    shape = tuple(1 if a in axes else d for a, d in enumerate(x.shape, 1) if keep or a not in axes)
    if kind == "ReduceSum":
        return m.node(kind, [x.name, m.constant(np.array(axes))], shape, keepdims=keep)
    return m.node(kind, [x.name], shape, axes=axes, keepdims=keep)


@makes("Expand")
def expand(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    shape = tuple(m.integer(1, 3) if d == 1 else d for d in x.shape)
    if math.prod(shape) > 200:
        return None
    target = m.constant(
        np.array(
            [
                1,
                *(
                    1 if m.chance(0.3) and d == s else s
                    for d, s in zip(x.shape, shape, strict=True)
                ),
            ]
        )
    )
    return m.node(kind, [x.name, target], shape)


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


@makes("Split")
def split(m: Maker, x: Tensor, kind: str) -> Tensor | None:
    """In two or three parts, of which one goes on; others may come together with it again."""
    axis = m.integer(0, len(x.shape) - 1)
    length = x.shape[axis]
    if length < 3:
        return None
    if length % 2 == 0 and m.chance(0.5):
        names, sizes = [x.name], [length // 2] * 2
    else:
        first = m.integer(1, length - 2)
        sizes = [first, 1, length - first - 1]
        names = [x.name, m.constant(np.array(sizes))]
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    return m.pick(m.several(kind, names, shapes, axis=axis + 1))


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
