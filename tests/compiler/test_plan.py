"""Plans of pieces: how far they are from the function, and what they cost."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.compiler.plan import Piece, fit, plan
from privserve.errors import ModelError
from privserve.functions import Expression, evaluate

X = "x"
GELU = ["mul", ["mul", X, ["add", ["erf", ["mul", X, math.sqrt(0.5)]], 1.0]], 0.5]
FUNCTIONS: dict[str, Expression] = {
    "sigmoid": ["sigmoid", X],
    "tanh": ["tanh", X],
    "swish": ["mul", X, ["sigmoid", X]],
    "gelu": GELU,
    "mish": ["mul", X, ["tanh", ["softplus", X]]],
    "elu": ["elu", X, 1.0],
    "kinked elu": ["elu", X, 0.4],
    "selu": ["selu", X, 1.6732632423543772, 1.0507009873554805],
    "softplus": ["softplus", X],
    "softsign": ["softsign", X],
}


def approximated(expression: Expression, pieces: tuple[Piece, ...], x: np.ndarray) -> np.ndarray:
    """What the pieces give at x: every one on x clipped to it, segments aligned at random."""
    chosen = next((j for j, p in enumerate(pieces) if p.slope is None), 0)
    out = np.zeros_like(x)
    for j, piece in enumerate(pieces):
        c = np.clip(x, piece.low, piece.high)
        end = piece.low if j > chosen else piece.high
        if piece.slope is not None:
            part = piece.slope * (c - end)
        else:
            width = min(piece.width, 1.01 * (piece.high - piece.low) / (piece.segments - 1))
            phase = np.random.default_rng(j).uniform(size=x.shape)
            starts = piece.low + (np.floor((c - piece.low) / width + phase) - phase) * width
            k = fit(lambda v: evaluate(expression, v), (piece.low, piece.high), starts, width)
            z = c - starts - width / 2
            part = k[0] + k[1] * z + k[2] * z * z
            part -= 0 if j == chosen else evaluate(expression, np.array([end]))
        if j == chosen and piece.slope is not None:
            part += evaluate(expression, np.array([end]))
        out += part
    return out


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(FUNCTIONS)), st.integers(-4, 20), st.integers(0, 2**32))
def test_a_plan_follows_its_function(name: str, exponent: int, seed: int) -> None:
    bound = 2.0**exponent
    pieces = plan(FUNCTIONS[name], -bound, bound)
    assert pieces[0].low == -bound
    assert pieces[-1].high == bound
    assert all(a.high == b.low for a, b in itertools.pairwise(pieces))
    draw = np.random.default_rng(seed)
    near = np.clip(draw.normal(size=4000) * 4, -bound, bound)
    octaves = np.exp2(draw.uniform(-4, exponent, 1000)) * draw.choice([-1, 1], 1000)
    x = np.concatenate([near, octaves, draw.uniform(-bound, bound, 1000), [-bound, 0, bound]])
    error = np.abs(approximated(FUNCTIONS[name], pieces, x) - evaluate(FUNCTIONS[name], x))
    # Where SELU's slope, 1.0507, is cut to 20 bits, a huge argument shows it.
    assert error.max() < 1.7e-3 + bound * 2.0**-20


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "swish", "elu", "softplus"])
def test_a_saturating_function_costs_the_same_on_every_wide_range(name: str) -> None:
    costs = {sum(p.words for p in plan(FUNCTIONS[name], -(2.0**e), 2.0**e)) for e in range(6, 21)}
    assert len(costs) == 1
    assert costs.pop() <= 96
    wide = plan(FUNCTIONS[name], -1024.0, 1024.0)
    assert wide[0].slope is not None
    assert wide[-1].slope is not None


def test_a_line_needs_no_table() -> None:
    (piece,) = plan(["mul", X, 0.5], -8.0, 8.0)
    assert piece.slope == 0.5
    assert piece.segments == 0


@pytest.mark.parametrize(
    ("expression", "words"),
    [(["log", X], "not defined"), (["div", 1.0, X], "not defined"), (["sqrt", X], "not defined")],
)
def test_a_function_that_is_not_finite_there_is_refused(expression: Expression, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        plan(expression, -4.0, 4.0)


def test_a_segment_beyond_the_piece_gets_the_outermost_quadratic() -> None:
    """There may be a kink at the piece's end, which must not be looked beyond."""

    def ramp(x: np.ndarray) -> np.ndarray:
        return np.where(x < 0, -100.0, np.sin(x))

    c = fit(ramp, (0.0, 3.0), np.array([-0.4]), 0.5)[:, 0]
    x = np.linspace(0, 0.1, 11)
    z = x - (-0.4 + 0.25)
    assert np.abs(c[0] + c[1] * z + c[2] * z * z - np.sin(x)).max() < 1e-3
