"""What values an intermediate result can take: intervals, and samples for calibration.

An interval is sound: for every input in the declared range no element leaves it, rounding
included. Samples are the same values for a few inputs; they decide where intervals have
grown past all use, as they do in deep nets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from privserve.geometry import Geometry
from privserve.prg import Prg

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """Bounds of one value's elements, and the value for each calibration sample."""

    low: Floats
    high: Floats
    samples: Floats
    """float64[S, *shape]"""

    @property
    def magnitude(self) -> float:
        """The largest absolute value that the interval allows."""
        if not self.low.size:
            return 0.0
        return float(max(-self.low.min(), self.high.max()))

    @property
    def sampled_magnitude(self) -> float:
        """The largest absolute value among the samples."""
        return float(np.abs(self.samples).max()) if self.samples.size else 0.0

    def map(self, function: Callable[[Floats], Floats]) -> Range:
        """Return the range of f(x), for a monotonic f of arrays with a batch axis."""
        return Range(
            function(self.low[None])[0], function(self.high[None])[0], function(self.samples)
        )

    def widened(self, units: float) -> Range:
        """Return the range with both ends moved out by `units`."""
        return Range(self.low - units, self.high + units, self.samples)

    def within(self, magnitude: float) -> Range:
        """Return the range cut to [-magnitude, magnitude]; samples stay what they are."""
        return self.clipped(-magnitude, magnitude)

    def clipped(self, low: float, high: float) -> Range:
        """Return the range cut to [low, high]; samples stay what they are."""
        return Range(np.clip(self.low, low, high), np.clip(self.high, low, high), self.samples)

    def covering(self, ideal: Range) -> Range:
        """Return the range that holds both this and the ideal, of which the samples are."""
        return Range(
            np.minimum(self.low, ideal.low), np.maximum(self.high, ideal.high), ideal.samples
        )

    def maximum(self, other: Range) -> Range:
        """Return the range of max(x, y), of one shape."""
        return Range(
            np.maximum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.maximum(self.samples, other.samples),
        )

    def scaled(self, factor: Floats | float) -> Range:
        """Return the range of factor * x."""
        one, other = self.low * factor, self.high * factor
        if isinstance(factor, float):
            low, high = (one, other) if factor >= 0 else (other, one)
            return Range(low, high, self.samples * factor)
        return Range(np.minimum(one, other), np.maximum(one, other), self.samples * factor)

    def plus(self, other: Range) -> Range:
        """Return the range of x + y."""
        return Range(self.low + other.low, self.high + other.high, self.samples + other.samples)

    def times(self, other: Range) -> Range:
        """Return the range of x * y, which broadcast."""
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        missing = other.low.ndim - self.low.ndim

        def ranked(samples: Floats, axes: int) -> Floats:
            return samples.reshape(len(samples), *(1,) * max(0, axes), *samples.shape[1:])

        samples = ranked(self.samples, missing) * ranked(other.samples, -missing)
        return Range(np.minimum.reduce(ends), np.maximum.reduce(ends), samples)

    def shifted(self, constant: Floats | float) -> Range:
        """Return the range of x + constant."""
        return Range(self.low + constant, self.high + constant, self.samples + constant)

    def convolved(self, geometry: Geometry, weight: Floats, ideal: Floats) -> Range:
        """Return the range of weight * x; x: [C, H, W], weight: [O, C / groups, kh, kw].

        ideal: the weight before it was rounded to `weight`; samples are computed with it.
        """
        positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
        low, high = (np.asarray(end).reshape(1, *geometry.shape) for end in (self.low, self.high))
        samples = self.samples.reshape(-1, *geometry.shape)
        # Both ends through both parts in one go, which torch does in half the time of four.
        each = geometry.outputs // geometry.groups
        parts = np.stack(
            [w.reshape(geometry.groups, each, *w.shape[1:]) for w in (positive, negative)], 1
        )
        doubled = replace(geometry, outputs=2 * geometry.outputs)
        both = parts.reshape(doubled.weight_shape)
        ends = convolve(np.concatenate([low, high]), both, doubled)
        split = ends.reshape(2, geometry.groups, 2, each, *ends.shape[2:])
        shape = geometry.output_shape
        up, down = split[:, :, 0].reshape(2, *shape), split[:, :, 1].reshape(2, *shape)
        return Range(up[0] + down[1], up[1] + down[0], convolve(samples, ideal, geometry))


def joined(ranges: Sequence[Range], axis: int) -> Range:
    """Return the range of a concatenation along `axis` (the batch axis not counted)."""
    return Range(
        np.concatenate([r.low for r in ranges], axis),
        np.concatenate([r.high for r in ranges], axis),
        np.concatenate([r.samples for r in ranges], axis + 1),
    )


def convolve(x: Floats, weight: Floats, geometry: Geometry) -> Floats:
    """Return weight * x in float64, for x: [B, C, H, W]."""
    if geometry.kernel == (1, 1) and geometry.groups == 1 and not any(geometry.pads):
        rows, columns = geometry.strides
        cut = x[:, :, ::rows, ::columns]
        flat = np.matmul(weight.reshape(len(weight), -1), cut.reshape(*cut.shape[:2], -1))
        return np.asarray(flat.reshape(len(x), *geometry.output_shape))
    top, left, bottom, right = geometry.pads
    # Writable, because torch warns of what it might write to; bounds may be broadcast views.
    values = np.require(x, np.float64, ["C", "W"])
    padded = torch.nn.functional.pad(torch.from_numpy(values), (left, right, top, bottom))
    out = torch.nn.functional.conv2d(
        padded,
        torch.from_numpy(np.require(weight, np.float64, ["C", "W"])),
        stride=geometry.strides,
        dilation=geometry.dilations,
        groups=geometry.groups,
    )
    return np.asarray(out.numpy(), dtype=np.float64)


_PUBLIC_KEY = b"privserve: synthetic samples, v1"


def synthetic_samples(shape: tuple[int, ...], low: float, high: float, count: int) -> Floats:
    """Return `count` inputs in [low, high] for calibration without data: float64[count, *shape].

    They are the same on every call, or else a model would be accepted or refused by chance.
    Every kind drives some networks further than the others do: flat inputs add up in
    convolutions, where noise averages out; extreme noise reaches what smooth noise does not;
    and a single channel (a pure blue image) is what no mixture looks like.
    """
    prg = Prg(_PUBLIC_KEY)  # nothing secret is drawn from it

    def uniform(dims: tuple[int, ...]) -> Floats:
        return (prg.int64(dims).view(np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def noise(index: int) -> Floats:
        return uniform(shape)

    def patches(index: int) -> Floats:
        coarse = uniform(tuple(-(-d // 7) for d in shape))
        for axis in range(len(shape)):
            coarse = np.repeat(coarse, 7, axis)
        return coarse[tuple(slice(d) for d in shape)]

    def extremes(index: int) -> Floats:
        return np.rint(uniform(shape))

    def flat(index: int) -> Floats:
        return np.full(shape, float(index // 8 % 2 == 0))

    def ends(index: int) -> Floats:
        return np.full(shape, float(index // 8 % 2 == 1))

    def channel(index: int) -> Floats:
        # Channels are the last axis of Keras' images, the first of torch's; features have one.
        axis = len(shape) - 1 if not shape or shape[-1] <= shape[0] else 0
        one = np.zeros(shape)
        if shape:
            np.moveaxis(one, axis, 0)[shape[axis] - 1 - index // 8 % shape[axis]] = 1.0
        return one

    kinds = (patches, noise, extremes, flat, patches, channel, ends, noise)
    samples = np.stack([kinds[i % len(kinds)](i) for i in range(count)])
    out: Floats = low + (high - low) * samples
    return out
