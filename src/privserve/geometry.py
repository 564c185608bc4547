"""The shapes of convolutions: data and arithmetic, no kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    def is_dense(self) -> bool:
        """Whether every output reads every input once: (C, 1, 1) to (O, 1, 1)."""
        return self == Geometry((self.shape[0], 1, 1), self.outputs)

    @property
    def products(self) -> int:
        """Multiplications of one evaluation."""
        return int(np.prod(self.output_shape)) * int(np.prod(self.weight_shape[1:]))

    def to_json(self) -> dict[str, Any]:
        """Return the fields, for a program's description."""
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
        """Return the geometry of these fields, as `to_json` gives them."""
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}  # type: ignore[arg-type]
        )
