"""The shapes of convolutions: data and arithmetic, no kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.fixedpoint import RingArray

_FEW_OUTPUTS = 4
"""Below this many outputs per group (depthwise), positions are the inner loop instead."""


@dataclass(frozen=True)
class Geometry:
    """The shape of a convolution: (C, H, W) * (O, C / groups, kh, kw) -> (O, H', W')."""

    shape: tuple[int, int, int]
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right"""
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, C / groups, kh, kw)."""
        return (self.outputs, self.shape[0] // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """(O, H', W')."""
        _, height, width = self.shape
        top, left, bottom, right = self.pads
        reach_h = self.dilations[0] * (self.kernel[0] - 1) + 1
        reach_w = self.dilations[1] * (self.kernel[1] - 1) + 1
        return (
            self.outputs,
            (height + top + bottom - reach_h) // self.strides[0] + 1,
            (width + left + right - reach_w) // self.strides[1] + 1,
        )

    @property
    def products(self) -> int:
        """Multiplications of one evaluation."""
        return int(np.prod(self.output_shape)) * int(np.prod(self.weight_shape[1:]))

    @property
    def is_large(self) -> bool:
        """Whether the kernels in `blocked` are faster, as measured on layers of all sizes."""
        positions = self.output_shape[1] * self.output_shape[2]
        if self.outputs // self.groups < _FEW_OUTPUTS:
            return self.products >= 1 << 14
        return positions >= 16 and self.products >= 1 << (21 if positions >= 128 else 23)

    def reading(self) -> tuple[NDArray[np.int32], RingArray]:
        """How the kernels find what a tap reads: (index map, nothing) or (nothing, window)."""
        if self.is_large:
            return np.zeros((0, 0), np.int32), self.window()
        return self.index_map(), np.zeros(0, np.int64)

    def to_json(self) -> dict[str, Any]:
        """The fields, for a program's description."""
        return {
            "shape": list(self.shape),
            "outputs": self.outputs,
            "kernel": list(self.kernel),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
            "groups": self.groups,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_json`."""
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}  # type: ignore[arg-type]
        )

    def window(self) -> RingArray:
        """int64[13]: the numbers that `blocked` reads, in the order that it names them."""
        channels, height, width = self.shape
        _, out_height, out_width = self.output_shape
        inputs = (channels // self.groups, height, width)
        taps = (*self.kernel, *self.strides, *self.pads[:2], *self.dilations)
        return np.array((*inputs, *taps, out_height, out_width), dtype=np.int64)

    def index_map(self) -> NDArray[np.int32]:
        """int32[positions, C / groups * kh * kw]: the element of group 0 that a tap reads."""
        _, height, width = self.shape
        _, out_height, out_width = self.output_shape
        kh, kw = self.kernel
        rows = (
            np.arange(out_height)[:, None] * self.strides[0]
            + np.arange(kh)[None, :] * self.dilations[0]
            - self.pads[0]
        )
        columns = (
            np.arange(out_width)[:, None] * self.strides[1]
            + np.arange(kw)[None, :] * self.dilations[1]
            - self.pads[1]
        )
        channels = np.arange(self.shape[0] // self.groups)
        # Axes: out row, out column, channel, kernel row, kernel column.
        row = rows[:, None, None, :, None]
        column = columns[None, :, None, None, :]
        flat = (channels[None, None, :, None, None] * height + row) * width + column
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        taps = len(channels) * kh * kw
        return np.ascontiguousarray(
            np.where(inside, flat, -1).reshape(out_height * out_width, taps), dtype=np.int32
        )

    def arrange(self, weight: RingArray) -> RingArray:
        """A weight as the kernel reads it: int64[groups, taps, outputs per group, padded to 8].

        Full vectors of eight outputs; the padding is zeros that are never written out.
        """
        groups, each = self.groups, self.outputs // self.groups
        taps = int(np.prod(self.weight_shape[1:]))
        padded = each if each < _FEW_OUTPUTS else -(-each // 8) * 8
        out = np.zeros((groups, taps, padded), dtype=np.int64)
        out[:, :, :each] = weight.reshape(groups, each, taps).transpose(0, 2, 1)
        return out
