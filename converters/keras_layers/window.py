"""How TensorFlow places a sliding window.

TensorFlow's "same" gives ceil(length / stride) outputs and puts the odd element of the
padding at the end, so the two sides differ; ONNX is told both sides explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from converters.errors import ConversionError
from converters.graph import MAX_ELEMENTS, Symbol


@dataclass(frozen=True)
class Window:
    """A window that slides over spatial axes: per axis its size, steps and padding."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    output: tuple[int, ...]

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        kernel: tuple[int, ...],
        strides: tuple[int, ...],
        dilations: tuple[int, ...],
        mode: str,
    ) -> Window:
        """Return the window over axes of the given lengths; mode: valid, same or causal.

        Raises: ConversionError where the window is larger than what it slides over.
        """
        before, after, output = [], [], []
        for length, size, stride, dilation in zip(lengths, kernel, strides, dilations, strict=True):
            reach = (size - 1) * dilation + 1
            if mode == "same":
                count = -(-length // stride)
                total = max((count - 1) * stride + reach - length, 0)
                pads = total // 2, total - total // 2
            else:
                pads = (reach - 1, 0) if mode == "causal" else (0, 0)
                count = (length + sum(pads) - reach) // stride + 1
            if count < 1:
                raise ConversionError(
                    f"its window of {reach} does not fit into its input of length {length}"
                )
            before.append(pads[0])
            after.append(pads[1])
            output.append(count)
        padded = math.prod(n + b + a for n, b, a in zip(lengths, before, after, strict=True))
        if padded > MAX_ELEMENTS:
            raise ConversionError(f"its window {kernel} is too large to be served")
        return cls(kernel, strides, dilations, tuple(before), tuple(after), tuple(output))

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a Conv or pooling node; what is at its default is left out."""
        attributes: dict[str, Any] = {"kernel_shape": self.kernel, "strides": self.strides}
        if any(self.before + self.after):
            attributes["pads"] = self.before + self.after
        if any(dilation != 1 for dilation in self.dilations):
            attributes["dilations"] = self.dilations
        return attributes


def spatial_axes(value: Symbol, rank: int, data_format: str) -> tuple[int, ...]:
    """Return the spatial axes of `value` in Keras' order, which must have `rank` of them."""
    if len(value.shape) != rank + 1:
        raise ConversionError(
            f"it needs an input of {rank + 1} axes besides the batch, not {value.shape}"
        )
    return tuple(range(1, rank + 1)) if data_format == "channels_first" else tuple(range(rank))


def channel_axis(value: Symbol, data_format: str) -> int:
    """Return the channels' axis of `value` in Keras' order."""
    return 0 if data_format == "channels_first" else len(value.shape) - 1
