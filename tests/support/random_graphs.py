"""Random small ONNX graphs over every op that `ottt` lowers, from a seed.

Weights, constants and inputs are float64, so that `onnx.reference` computes in it and is the
ideal. The nodes are made in `graph_makers` and `graph_functions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import graph_functions  # noqa: F401  (its makers register on import)
import numpy as np
import onnx
from graph_makers import MAKERS, Array, Maker, Tensor, flatten, gemm
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

RANGES = (None, (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-1.0, 1.0))
MOST_ELEMENTS = 200
EDGE = 0.02
"""Rows with an element this close to a jump of the function are not judged by its result."""


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

    def inputs(self, rows: int = 6) -> Array:
        """Rows of the declared range: noise, its two ends, their mixture, and two that are steered.

        A compiler's samples look like the first four; the last two go to corners that raise, and
        lower, an output, where values go farther than in any sample.
        """
        low, high = self.input_range or (-8.0, 8.0)
        draw = np.random.default_rng(self.seed + 10**9)
        x = draw.uniform(low, high, (rows, *self.shape))
        x[0], x[1] = low, high
        x[2] = draw.choice([low, high], self.shape)
        x[4], x[5] = self._steered(low, high, draw)
        return x

    def _steered(self, low: float, high: float, draw: np.random.Generator) -> tuple[Array, Array]:
        """The corners of the range at which an output is largest and least, were it linear."""
        size = math.prod(self.shape)
        middle = draw.uniform(low, high, size)
        probes = np.vstack([middle, middle + np.eye(size) * (high - low) * 1e-3])
        output = self.ideal(probes.reshape(-1, *self.shape))[0][0].reshape(size + 1, -1)
        output = np.nan_to_num(output)
        slopes = output[1:] - output[0]
        up = slopes[:, int(draw.integers(slopes.shape[1]))] > 0
        return (
            np.where(up, high, low).reshape(self.shape),
            np.where(up, low, high).reshape(self.shape),
        )

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


COMMON = ("Conv", "Gemm", "MatMul", "Relu", "rescaled", "rescaled", "Add", "Max", "gate", "swish")
"""These come up more often than others."""


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
    names = [*sorted(MAKERS), *COMMON]
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
        if not needed.isdisjoint(node.output):
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
