"""Lowerings of linear ops: each stays pending, so that what follows may fold into it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privserve.compiler import moves
from privserve.compiler.lowering import Lowering, PendingLinear, Tensor
from privserve.compiler.ops.windows import planes, window_of
from privserve.compiler.ranges import Floats
from privserve.compiler.registry import lowers
from privserve.geometry import Geometry


@lowers("Conv")
def conv(
    c: Lowering,
    *,
    kernel_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Tensor:
    """Over one axis or two."""
    x, weight, bias = c.traced(0), c.constant(1), c.constant(2)
    if weight is None:
        raise c.refuse("it has no weight")
    kernel = kernel_shape or weight.shape[2:]
    window = window_of(c, x.shape[1:], kernel, strides, dilations, pads, auto_pad)
    one_dimensional = len(x.shape) == 2
    geometry = Geometry(
        planes(x),
        weight.shape[0],
        window.kernel,
        window.strides,
        window.pads,
        window.dilations,
        group,
    )
    shape: tuple[int, ...] = geometry.output_shape
    return PendingLinear(
        moves.reshape(c.builder, x, planes(x)),
        geometry,
        weight.astype(np.float64).reshape(geometry.weight_shape),
        np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64),
        shape[:2] if one_dimensional else shape,
        c.layer,
    )


@lowers("Gemm")
def gemm(
    c: Lowering,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """alpha x W + beta b."""
    weight, bias = c.constant(1), c.constant(2)
    if transA or weight is None:
        raise c.refuse("its first input must be (B, features), its second a constant")
    matrix = weight.astype(np.float64) * alpha
    matrix = matrix if transB else matrix.T
    offset = np.zeros(len(matrix))
    if bias is not None:
        offset = offset + bias.astype(np.float64).reshape(-1) * beta
    return _dense(c, matrix, offset)


@lowers("MatMul")
def matmul(c: Lowering) -> Tensor:
    """x W."""
    if isinstance(c.tensor(0), np.ndarray):
        raise c.refuse("its first input is a constant; transpose the product")
    weight = c.constant(1)
    if weight is None or weight.ndim != 2:
        raise c.refuse("its second input must be a constant matrix")
    return _dense(c, weight.astype(np.float64).T, np.zeros(weight.shape[1]))


def _dense(c: Lowering, matrix: Floats, bias: Floats) -> PendingLinear:
    """x (..., K) times the transposed matrix [O, K]."""
    b, x = c.builder, c.traced(0)
    outputs, features = matrix.shape
    if x.shape[-1] != features:
        raise c.refuse(f"it multiplies {x.shape[-1]} features by a weight for {features}")
    weight = matrix.reshape(outputs, features, 1, 1)
    shape = (*x.shape[:-1], outputs)
    positions = math.prod(x.shape[:-1])
    if positions == 1:
        flat = moves.reshape(b, x, (features, 1, 1))
        geometry = Geometry((features, 1, 1), outputs)
        last = len(shape) > 1
        return PendingLinear(flat, geometry, weight, bias, shape, c.layer, channels_last=last)
    rows = moves.reshape(b, x, (positions, features))
    columns = moves.transpose(b, rows, (1, 0))
    columns = moves.reshape(b, columns, (features, positions, 1))
    geometry = Geometry((features, positions, 1), outputs)
    return PendingLinear(columns, geometry, weight, bias, shape, c.layer, channels_last=True)


@lowers("BatchNormalization")
def batch_normalization(
    c: Lowering,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    """x a + b with a = gamma / sqrt(variance + epsilon), b = beta - mean a.

    momentum matters while training only.
    """
    gamma, beta, mean, variance = (c.constant(i) for i in range(1, 5))
    if gamma is None or beta is None or mean is None or variance is None:
        raise c.refuse("its statistics must be constants")
    if training_mode:
        raise c.refuse("training_mode is on: it normalises by the batch; export for inference")
    if not spatial:
        raise c.refuse("spatial = 0, statistics of their own for every element, is not supported")
    scale = gamma / np.sqrt(variance.astype(np.float64) + epsilon)
    shift = beta - mean * scale
    tensor = c.tensor(0)
    assert not isinstance(tensor, np.ndarray)  # constants were folded before
    channels = (-1, *(1,) * (len(tensor.shape) - 1))
    return c.affine(0, scale.reshape(channels), shift.reshape(channels))
