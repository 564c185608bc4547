"""The default input range of a model that scales its inputs itself.

Networks are trained on numbers of a few units, so inputs are taken to lie in [-8, 8] unless
their owner says otherwise. Where a model begins with the scaling of raw inputs (Rescaling of
pixels, Normalization, a scaler of scikit-learn), that holds for what comes out of it: pixels
up to 255 times 1/255 are as harmless. The range is then what scales into [-8, 8].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privserve.compiler.onnx_graph import array_of

if TYPE_CHECKING:
    import onnx

DEFAULT_INPUT_RANGE = (-8.0, 8.0)
MOST = 4096.0
"""Beyond this the declared range would cost more than it is worth guessing."""
PASSING = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
DEPTH = 8

Array = NDArray[Any]


def default_range(graph: onnx.GraphProto) -> tuple[float, float]:
    """Return the default range of all inputs, at least [-8, 8]; its ends are powers of two."""
    constants = {t.name: t for t in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    low, high = DEFAULT_INPUT_RANGE
    for port in graph.input:
        if port.name not in constants:
            found = _scaled(port.name, readers, constants)
            if found is not None:
                low, high = min(low, found[0]), max(high, found[1])
    if max(-low, high) > MOST:
        return DEFAULT_INPUT_RANGE
    return -(2.0 ** math.ceil(math.log2(-low))), 2.0 ** math.ceil(math.log2(high))


def _scaled(
    name: str,
    readers: Mapping[str, list[onnx.NodeProto]],
    constants: Mapping[str, onnx.TensorProto],
) -> tuple[float, float] | None:
    """What an input may hold for scale x + shift to lie in the default range."""
    scale, shift = np.ones(1), np.zeros(1)
    for _ in range(DEPTH):
        nodes = readers.get(name, [])
        if len(nodes) != 1:
            break
        (node,) = nodes
        name = node.output[0]
        if node.op_type in PASSING:
            continue
        others = [n for n in node.input if n in constants]
        if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(others) != 1:
            break
        value = array_of(constants[others[0]]).astype(np.float64).ravel()
        first = node.input[0] in constants
        if (first and node.op_type in ("Sub", "Div")) or (
            value.size > 1 and scale.size > 1 and (value.size != scale.size)
        ):
            break
        if node.op_type in ("Add", "Sub"):
            shift = shift + (value if node.op_type == "Add" else -value)
        else:
            factor = value if node.op_type == "Mul" else 1 / np.where(value, value, 1)
            scale, shift = scale * factor, shift * factor
    used = np.broadcast_to(scale, np.broadcast_shapes(scale.shape, shift.shape))
    kept = used != 0
    if not kept.any() or (scale.size == 1 and scale[0] == 1 and not shift.any()):
        return None
    low, high = DEFAULT_INPUT_RANGE
    moved = np.broadcast_to(shift, used.shape)[kept]
    ends = np.stack([(low - moved) / used[kept], (high - moved) / used[kept]])
    return float(ends.min()), float(ends.max())
