"""Lookups: the kernels against a slow reference, then whole functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from ottt_models import graph
from ottt_session import Session, uniform

from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.formats import lookup_format
from privserve.compiler.plan import Piece
from privserve.compiler.ranges import Range, synthetic_samples
from privserve.compiler.smooth import apply_function
from privserve.engines import Prepared, ottt
from privserve.engines.ottt import reference
from privserve.engines.ottt.ops import lookup
from privserve.functions import evaluate
from privserve.prg import Prg
from privserve.splines import quadratics

SIGMOID = {
    "function": ["sigmoid", "x"],
    "unit": 2.0**-8,
    "low": -1800,
    "comparison_bits": 12,
    "segment_bits": 8,
    "output_bits": 30,
    "piece": [-7.0, 7.0],
    "shift": 0,
}


def looked_up(attributes: dict, values: np.ndarray, parties: int) -> tuple[np.ndarray, np.ndarray]:
    """The function's shares for units int64[B, count], and the dealt pools."""
    batch, count = values.shape
    bits, segment_bits = attributes["comparison_bits"], attributes["segment_bits"]
    words = count * lookup.table_words(attributes)
    others = Prg().int64((parties - 1, batch, count + words))
    masks = Prg().int64((batch, count))
    corrected = np.zeros((batch, words), np.int64)
    table = quadratics(attributes)
    lookup.deal_lookup(masks, others, 0, count, 0, count, bits, segment_bits, table, corrected)
    pools = [np.concatenate([masks, corrected], axis=1), *others]
    t = values - attributes["low"]
    assert t.min() >= 0
    assert t.max() < 2**bits - 2**segment_bits
    opened = (t + sum(p[:, :count] for p in pools)) & (2**bits - 1)
    outs = []
    for pool in pools:
        out = np.empty((batch, count), np.int64)
        above = np.ascontiguousarray(opened + (7 << bits))  # what is above is cut off
        lookup.finish_lookup(np.ascontiguousarray(pool), 0, count, above, bits, segment_bits, out)
        outs.append(out)
    return np.array(outs), opened


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([2, 3, 4]), st.integers(1, 3), st.integers(1, 40))
def test_a_lookup_is_its_reference(parties: int, batch: int, count: int) -> None:
    values = Prg().int64((batch, count)) % 3500 - 1750
    outs, opened = looked_up(SIGMOID, values, parties)
    for b in range(batch):
        for e in range(count):
            r = (int(opened[b, e]) - int(values[b, e]) - 1800) % 2**12
            expected = reference.lookup(SIGMOID, int(opened[b, e]), r)
            assert (int(outs[:, b, e].sum()) - expected) % 2**64 == 0
    real = outs.sum(0) / 2.0**30
    assert np.abs(real - 1 / (1 + np.exp(-values / 2**8))).max() < 1e-3


def test_a_lookup_is_right_at_both_ends_of_what_it_may_meet() -> None:
    last = 2**12 - 2**8 - 1 - 1800
    values = np.repeat(np.array([[-1800, -1799, last - 1, last]]), 200, axis=0)
    outs, _ = looked_up(SIGMOID, values, 2)
    expected = 1 / (1 + np.exp(-np.clip(values / 2**8, -7, 7)))
    assert np.abs(outs.sum(0) / 2.0**30 - expected).max() < 2e-3


def test_what_is_opened_and_read_is_uniform() -> None:
    """Two far values: neither the opening nor the entries' shares tell them apart."""
    means = []
    for value in (-1700, 1700):
        outs, opened = looked_up(SIGMOID, np.full((1, 40_000), value), 2)
        assert np.abs(np.bincount(opened.ravel() >> 8, minlength=16) / 40_000 - 1 / 16).max() < 0.01
        means.append(outs[0].astype(np.float64).mean() / 2.0**63)
    assert max(map(abs, means)) < 0.02


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 10).map(lambda k: 2**k),
    st.integers(-6, 12),
    st.floats(0.51, 1.0),
    st.sampled_from([2.0**-14, 2.0**-32, 3.7 * 2.0**-20]),
)
def test_a_lookups_format_covers_its_piece(
    segments: int, exponent: int, part: float, step: float
) -> None:
    length = 2.0**exponent * part
    width = max(1.011 * length / (segments - 1), length / segments)
    piece = Piece(-length / 3, 2 * length / 3, None, segments, width)
    excess = max(0, round(-math.log2(step)) - 14)
    got = lookup_format(step, excess, piece, 1.0, 14)
    unit = got["unit"]
    assert math.isclose(unit, step * 2.0 ** got["shift"] / got["factor"])
    slack = 32 * step * 2.0**excess
    lowest = math.floor((piece.low - slack) / unit) - 16 - got["low"]
    highest = math.ceil((piece.high + slack) / unit) + 16 - got["low"]
    assert lowest >= 0
    assert highest < 2 ** got["comparison_bits"] - 2 ** got["segment_bits"]
    assert got["comparison_bits"] <= 20


GELU = ["mul", ["mul", "x", ["add", ["erf", ["mul", "x", math.sqrt(0.5)]], 1.0]], 0.5]
HIDDEN = {
    "sigmoid": ["sigmoid", "x"],
    "tanh": ["tanh", "x"],
    "elu": ["elu", "x", 1.0],
    "selu": ["selu", "x", 1.6732632423543772, 1.0507009873554805],
    "swish": ["mul", "x", ["sigmoid", "x"]],
    "gelu": GELU,
    "softplus": ["softplus", "x"],
    "softsign": ["softsign", "x"],
    "mish": ["mul", "x", ["tanh", ["softplus", "x"]]],
}


@pytest.mark.parametrize("bound", [0.5, 2, 8, 100, 3000])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_activation_errs_by_less_than_a_five_hundredth(
    name: str, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the whole range, with two parties or three, and saturating far out."""
    count = 500
    builder = ProgramBuilder(14)
    samples = synthetic_samples((count,), -bound, bound, 4)
    low, high = np.full(count, -bound), np.full(count, bound)
    x = builder.input((count,), 14, Range(low, high, samples))
    with builder.scope("hidden"):
        y = apply_function(builder, x, HIDDEN[name])
    program = builder.finish([("x", x)], [("y", y, None)], (-bound, bound))
    prepared = Prepared("ottt", {"engine": "ottt", **program.to_json()}, builder.parameters)
    monkeypatch.setattr(ottt, "prepare", lambda model, **_: prepared)
    narrow = min(bound, 5.0)
    queries = np.concatenate(
        [
            uniform((3, count), -bound, bound),
            uniform((3, count), -narrow, narrow),
            np.linspace(-bound, bound, count)[None],
        ]
    )
    with Session(None, 3 if bound == 8 else 2) as session:  # type: ignore[arg-type]
        (got,) = session.query(queries)
    assert np.abs(got - evaluate(HIDDEN[name], queries)).max() < 2e-3


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("spread", [2.0, 30.0])
def test_a_hidden_softmax_sums_to_one(classes: int, spread: float) -> None:
    model = graph(
        [
            helper.make_node("Softmax", ["x"], ["s"], axis=-1),
            helper.make_node("Identity", ["s"], ["y"]),
        ],
        {},
        (3, classes),
    )
    x = uniform((4, 3, classes), -spread, spread)
    with Session(model, input_range=(-spread, spread)) as session:
        (got,) = session.query(x)
    powers = np.exp(x - x.max(-1, keepdims=True))
    assert np.abs(got - powers / powers.sum(-1, keepdims=True)).max() < 2e-3
    assert np.abs(got.sum(-1) - 1).max() < 1e-2


def test_an_exponential_follows_samples_where_its_range_is_hopeless() -> None:
    """A dense layer's bounds are wide; what samples show is not. Beyond, a row is flagged."""
    weight = np.eye(6) * 0.25 + 0.02
    model = graph(
        [
            helper.make_node("Gemm", ["x", "w"], ["g"]),
            helper.make_node("Exp", ["g"], ["e"]),
            helper.make_node("Relu", ["e"], ["y"]),
        ],
        {"w": weight},
        (6,),
    )
    calibration = uniform((20, 6), -4, 4)
    with Session(model, input_range=(-64, 64), calibration=calibration) as session:
        assert any("guessed" in note and "RangeError" in note for note in session.program.notes)
        x = uniform((5, 6), -4, 4)
        got, flags = session.query(x)
        far = [session.query(np.full((1, 6), end))[1] for end in (64.0, -64.0)]
    expected = np.exp(x @ weight)
    assert np.abs(got - expected).max() < 2e-3 * expected.max()
    assert not flags.any()
    assert all(flag.any() for flag in far)
