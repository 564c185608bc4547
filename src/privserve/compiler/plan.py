"""Piecewise approximations of smooth functions, planned for what they cost under MPC.

A function on a range is cut at breakpoints (each is a ReLU) into pieces. A piece is affine,
which costs nothing more, or it is a quadratic spline with equal segments, which the engine
`ottt` evaluates from a one-time table with three entries per segment. A saturating function
like tanh becomes an affine tail, a spline and an affine tail; one that is used on a short
range needs no breakpoint at all. Where the cuts are follows from the function and from a
range rounded to a power of two, never from a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from privserve.errors import ModelError
from privserve.functions import Expression, evaluate
from privserve.splines import fit

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]

TOLERANCE = 1.0e-3
"""What a plan's approximation may err by, where the function is not steeper than 4."""

MAX_SEGMENTS = 1024

FINEST_OCTAVE = -2
"""Between -2^FINEST_OCTAVE and 2^FINEST_OCTAVE pieces may meet at zero only."""

# Costs in 64-bit words dealt per element: a breakpoint is one ReLU; an exchange's latency
# is worth as much as dealing a few dozen words.
_ENTRY_WORDS = 3
_BREAK_WORDS = 12
_EXCHANGE_WORDS = 32
_CELL = 32
_SLOPE_BITS = 24


@dataclass(frozen=True)
class Piece:
    """A part of a function: affine with `slope`, or a spline where `slope` is None."""

    low: float
    high: float
    slope: float | None
    segments: int = 0
    """A power of two; one of them is lost to the random alignment."""
    width: float = 0.0
    """Segments may be this wide."""

    @property
    def words(self) -> int:
        """Table words per element."""
        return _ENTRY_WORDS * self.segments


def plan(
    expression: Expression, low: float, high: float, tolerance: float = TOLERANCE
) -> tuple[Piece, ...]:
    """Return the cheapest pieces that approximate the expression on [low, high].

    Adjacent pieces share their ends. Raises ModelError where the function is not finite
    or too wild on the range.
    """
    return _plan(_frozen(expression), low, high, tolerance)


def _frozen(expression: Expression) -> Expression:
    return tuple(map(_frozen, expression)) if isinstance(expression, list) else expression


@cache
def _plan(expression: Expression, low: float, high: float, tolerance: float) -> tuple[Piece, ...]:
    def function(x: Floats) -> Floats:
        return evaluate(expression, x)

    if not np.isfinite(function(np.linspace(low, high, 1001))).all():
        raise ModelError(f"it is not defined on all of [{low:g}, {high:g}]")
    # Most functions are smooth around zero; a root is not, and needs pieces that shrink with x.
    for finest in (FINEST_OCTAVE, FINEST_OCTAVE - 18):
        candidates = _candidates(low, high, finest)
        goal = tolerance
        for _ in range(6):
            pieces = _cheapest(function, candidates, goal)
            if not pieces:
                break
            if _error(function, pieces, candidates) <= 1.5 * tolerance:
                return pieces
            goal /= 2
    raise ModelError(f"no spline of {MAX_SEGMENTS} segments follows it on [{low:g}, {high:g}]")


def _candidates(low: float, high: float, finest: int) -> Floats:
    """The ends, zero, and quarters of every octave from 2^finest on, octaves beyond 64."""
    points = {low, high, 0.0}
    octave = 2.0**finest
    while octave < max(abs(low), abs(high)):
        # Far out functions are lines, or hopeless: fewer places will do.
        for quarter in (1.0, 1.25, 1.5, 1.75) if octave < 64 else (1.0,):
            points |= {octave * quarter, -octave * quarter}
        octave *= 2
    return np.array(sorted(p for p in points if low <= p <= high))


@dataclass(frozen=True)
class _Cells:
    """Between neighbouring candidates: samples and bounds on derivatives."""

    points: Floats
    values: Floats
    """The function at the points."""
    x: Floats
    """float64[cells, samples], and the function there."""
    y: Floats
    steepest: Floats
    third: Floats
    jump1: Floats
    """By how much the first derivative jumps at each point; then the second."""
    jump2: Floats

    @classmethod
    def of(cls, function: Function, points: Floats) -> _Cells:
        width = np.diff(points)
        inner = points[:-1, None] + width[:, None] * np.linspace(0, 1, _CELL + 1)
        # One-sided at both ends, so that a kink on a candidate does not count as steep.
        inner[:, 0] += 1e-9 * width
        inner[:, -1] -= 1e-9 * width
        y, d = function(inner), width[:, None] / _CELL
        first, second, third = (np.diff(y, order) / d**order for order in (1, 2, 3))
        # Derivatives at the cells' ends, extrapolated.
        left1 = 1.5 * first[:, 0] - 0.5 * first[:, 1]
        right1 = 1.5 * first[:, -1] - 0.5 * first[:, -2]
        left2 = 2 * second[:, 0] - second[:, 1]
        right2 = 2 * second[:, -1] - second[:, -2]
        jump1, jump2 = np.zeros(len(points)), np.zeros(len(points))
        # What the extrapolation itself may be wrong by is not a jump.
        blur = np.abs(third).max(1) * d[:, 0]
        noise = blur[1:] + blur[:-1]
        jump1[1:-1] = np.maximum(
            0, np.abs(left1[1:] - right1[:-1]) - noise * (d[1:, 0] + d[:-1, 0]) - 1e-6
        )
        jump2[1:-1] = np.maximum(0, np.abs(left2[1:] - right2[:-1]) - 2 * noise - 1e-4)
        return cls(
            points,
            function(points),
            inner,
            y,
            np.abs(first).max(1),
            np.abs(third).max(1),
            jump1,
            jump2,
        )

    def spline(self, i: int, j: int, tolerance: float) -> Piece | None:
        """Return the spline from candidate i to candidate j; None where segments do not do."""
        steep = max(1.0, float(self.steepest[i:j].max()) / 4)
        goal = tolerance * steep
        length = self.points[j] - self.points[i]
        width = min(length, (192 * goal / max(self.third[i:j].max(), 1e-12)) ** (1 / 3))
        if j - i > 1:
            width = min(
                width,
                8 * goal / max(self.jump1[i + 1 : j].max(), 1e-12),
                math.sqrt(32 * goal / max(self.jump2[i + 1 : j].max(), 1e-12)),
            )
        # 1 % for rounding: the range that is covered is a little longer than the piece.
        needed = 1.01 * length / width + 1
        if needed > MAX_SEGMENTS:
            return None
        segments = 2 ** max(1, math.ceil(math.log2(needed)))
        return Piece(float(self.points[i]), float(self.points[j]), None, segments, float(width))

    def affine(self, i: int, j: int, tolerance: float) -> Piece | None:
        """Return the line from candidate i to candidate j, if the function is one there."""
        low, high = float(self.points[i]), float(self.points[j])
        exact = (self.values[j] - self.values[i]) / (high - low)
        # The end that the next piece begins at is met exactly; the other is the range's end.
        value, at = (self.values[j], high) if i == 0 else (self.values[i], low)
        x, y = self.x[i:j] - at, self.y[i:j] - value
        # A slope multiplies shares as an integer; few bits keep the product small.
        for bits in range(_SLOPE_BITS + 1):
            slope = round(exact * 2**bits) / 2**bits
            # Where a line is steep and long, its slope cannot be exact.
            allowed = tolerance / 2 + np.abs(self.y[i:j]) * 2.0**-_SLOPE_BITS
            if np.all(np.abs(y - slope * x) <= allowed):
                return Piece(low, high, slope)
        return None


def _cheapest(function: Function, points: Floats, tolerance: float) -> tuple[Piece, ...]:
    """A shortest path over the candidates; nothing if there is none."""
    cells = _Cells.of(function, points)
    last = len(points) - 1
    best: list[tuple[float, tuple[Piece, ...]]] = [(0.0, ())]
    for j in range(1, last + 1):
        options = []
        for i in range(j):
            if not math.isfinite(best[i][0]):
                continue
            cost, pieces = best[i]
            if pieces:
                cost += _BREAK_WORDS + (2 * _EXCHANGE_WORDS if len(pieces) == 1 else 0)
            spline = cells.spline(i, j, tolerance)
            if spline is not None:
                options.append((cost + spline.words + _EXCHANGE_WORDS, (*pieces, spline)))
            if (i == 0 or j == last) and (line := cells.affine(i, j, tolerance)):
                options.append((cost, (*pieces, line)))
        best.append(min(options, key=lambda o: o[0]) if options else (math.inf, ()))
    return best[last][1] if math.isfinite(best[last][0]) else ()


def _error(function: Function, pieces: tuple[Piece, ...], points: Floats) -> float:
    """A bound on the error, relative to a quarter of the slope where that is steep.

    A sum over the splines: where one is in use, the others are used at an end of theirs.
    """
    cells = _Cells.of(function, points)
    splines = lines = 0.0
    for index, piece in enumerate(pieces):
        here = (cells.points[:-1] >= piece.low) & (cells.points[1:] <= piece.high)
        x, y = cells.x[here].ravel(), cells.y[here].ravel()
        steep = max(1.0, float(cells.steepest[here].max()) / 4)
        if piece.slope is not None:
            at = piece.high if index == 0 else piece.low
            line = function(np.array([at])) + piece.slope * (x - at)
            off = np.abs(line - y) - np.abs(y) * 2.0**-_SLOPE_BITS
            lines = max(lines, float(off.max()))
            continue
        width = 1.01 * (piece.high - piece.low) / (piece.segments - 1)
        worst = 0.0
        for phase in np.linspace(0, 1, 7):
            start = piece.low + (np.floor((x - piece.low) / width + phase) - phase) * width
            c = fit(function, (piece.low, piece.high), start, width)
            z = x - start - width / 2
            worst = max(worst, float(np.abs(c[0] + c[1] * z + c[2] * z * z - y).max()) / steep)
        splines += worst
    return splines + lines
