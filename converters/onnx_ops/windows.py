"""Sliding windows: convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from converters.errors import ConversionError
from converters.onnx_ops.movements import padded
from converters.onnx_ops.registry import Attributes, operator


def _pads(attributes: Attributes, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """Padding as (begin of each axis, end of each axis)."""
    rank = x.ndim - 2
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return list(attributes.get("pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
    begin, end = [], []
    for i in range(rank):
        stride = attributes.get("strides", [1] * rank)[i]
        reach = (kernel[i] - 1) * attributes.get("dilations", [1] * rank)[i] + 1
        length = x.shape[2 + i]
        total = max((-(-length // stride) - 1) * stride + reach - length, 0)
        small = total // 2
        begin.append(small if mode == "SAME_UPPER" else total - small)
        end.append(total - small if mode == "SAME_UPPER" else small)
    return begin + end


@operator("Conv")
def conv(attributes: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x: (B, C, *spatial), w: (out, C / group, *kernel)."""
    rank = x.ndim - 2
    pads = _pads(attributes, x, w.shape[2:])
    symmetric = pads[:rank] == pads[rank:]
    x = x if symmetric else padded(x, pads)
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    result: Tensor = convolve(
        x, w, b,
        stride=attributes.get("strides", 1),
        padding=pads[:rank] if symmetric else 0,
        dilation=attributes.get("dilations", 1),
        groups=attributes.get("group", 1),
    )  # fmt: skip
    return result


@operator("ConvTranspose")
def conv_transpose(attributes: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x: (B, C, *spatial), w: (C, out / group, *kernel)."""
    rank = x.ndim - 2
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        raise ConversionError("ConvTranspose is supported with explicit pads only")
    pads = attributes.get("pads", [0] * 2 * rank)
    extra = attributes.get("output_padding", [0] * rank)
    transpose: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    result: Tensor = transpose(
        x, w, None,
        stride=attributes.get("strides", 1),
        groups=attributes.get("group", 1),
        dilation=attributes.get("dilations", 1),
    )  # fmt: skip
    # The full result, then cut by `pads` and filled up by `output_padding`.
    result = padded(result, [-n for n in pads[:rank]] + [
        e - n for e, n in zip(extra, pads[rank:], strict=True)
    ])  # fmt: skip
    return result if b is None else result + b.reshape(-1, *[1] * rank)


@operator("MaxPool")
def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The largest element of each window; padding never wins."""
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    x = padded(x, _pool_pads(attributes, x), -math.inf)
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    result: Tensor = pool(
        x, kernel, attributes.get("strides", 1), 0, attributes.get("dilations", 1)
    )
    return result


@operator("AveragePool")
def average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """The mean of each window, with the padding counted or left out."""
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    strides = attributes.get("strides", [1] * rank)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    explicit = _pads(attributes, x, kernel)
    pads = _pool_pads(attributes, x)
    result: Tensor = pool(padded(x, pads), kernel, strides)
    if not any(pads):
        return result
    # What counts as an element: the input, and with count_include_pad its stated padding,
    # but never what ceil_mode adds beyond.
    counted = torch.ones_like(x[:1, :1])
    if attributes.get("count_include_pad", 0):
        counted = padded(counted, explicit, 1.0)
        pads = [total - stated for total, stated in zip(pads, explicit, strict=True)]
    share: Tensor = pool(padded(counted, pads), kernel, strides)
    return result / share


def _pool_pads(attributes: Attributes, x: Tensor) -> list[int]:
    """The padding, with what ceil_mode adds at the end of each axis."""
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    pads = _pads(attributes, x, kernel)
    if attributes.get("ceil_mode", 0):
        for i in range(rank):
            stride = attributes.get("strides", [1] * rank)[i]
            reach = (kernel[i] - 1) * attributes.get("dilations", [1] * rank)[i] + 1
            rest = (x.shape[2 + i] + pads[i] + pads[rank + i] - reach) % stride
            # A last window that would begin in the padding at the end is not taken.
            start = x.shape[2 + i] + pads[i] + pads[rank + i] - reach - rest + stride
            if rest and start < x.shape[2 + i] + pads[i]:
                pads[rank + i] += stride - rest
    return pads


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """(B, C, *spatial) -> (B, C, 1, ...)."""
    axes = list(range(2, x.ndim))
    if attributes["op"] == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    return x.mean(axes, keepdim=True)
