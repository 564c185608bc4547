"""Linear ops that read one value: one mask, one opening, a C for each; answers, costs, pieces."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph
from ottt_openings import online_values
from ottt_session import Session, uniform

from privserve.engines.ottt.costs import cost_of_op
from privserve.engines.ottt.layout import lay_out

G = np.random.default_rng(77)


def block() -> object:
    """A ReLU that a convolution, another one and a pointwise one read, of different bit lengths."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["r", "p"], ["b"]),
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("Conv", ["r", "v"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["f"]),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    weights = {
        "w": G.normal(size=(4, 3, 3, 3)) / 3,
        "v": 20 * G.normal(size=(4, 3, 3, 3)),
        "p": G.normal(size=(4, 3, 1, 1)) / 50,
    }
    return graph(nodes, weights, (3, 6, 5))


BLOCK = block()


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("piece_bytes", [1 << 10, 16 << 20])
def test_answers_are_the_models_and_the_wire_carries_what_is_stated(parties, piece_bytes):
    with Session(BLOCK, parties, options={"piece_bytes": piece_bytes}) as session:
        program = session.program
        layout = lay_out(program, piece_bytes)
        assert (len(layout.pieces) > 1) == (piece_bytes == 1 << 10)
        online = session.wires["online"]
        before = len(online.sent)
        for batch in (1, 4):
            x = uniform((batch, 3, 6, 5), -8, 8)
            (out,) = session.query(x)
            expected = ReferenceEvaluator(BLOCK).run(None, {"x": x.astype(np.float32)})[0]
            assert np.abs(out - expected).max() < 2e-2
        sent = [len(f) for a, b, f in online.sent[before:] if (a, b) == (0, 1)]
        costs = [cost_of_op(program, op) for op in program.ops]
        shared = [
            c for c, op in zip(costs, program.ops, strict=True) if op.output in program.leaders
        ]
        assert [(c.exchanges, c.bytes_online) for c in shared] == [(0, 0)] * 2
        assert all(c.bytes_dealt for c in shared)
        assert len(sent) == 2 * sum(c.exchanges for c in costs)
        assert sum(sent) == 5 * sum(c.bytes_online for c in costs) + 2 * 8


def test_they_share_a_mask_and_nothing_else_of_their_tuples():
    with Session(BLOCK) as session:
        program, layout = session.program, session.computes[0].layout
        indices = [i for i, op in enumerate(program.ops) if op.kind == "linear"]
        assert len({layout.masks[i] for i in indices}) == 1
        assert len({layout.fields[i] for i in indices}) == len(indices) == 3
        bits = [program.values[program.ops[i].output].bits for i in indices]
        assert len(set(bits)) > 1
        opening = next(o for o in online_openings(session) if o.bits == max(bits))
        assert opening.count == 3 * 6 * 5
        pieces = [p for p in layout.pieces if p.first <= indices[0] < p.last]
        assert all(p.first <= i < p.last for p in pieces for i in indices)


def online_openings(session) -> list:
    session.query(uniform((2, 3, 6, 5), -8, 8))
    frames = [f for a, _, f in session.wires["online"].sent if a == 0]
    return [opening for opening, _ in online_values(session.program, frames, [2])]


@pytest.mark.parametrize("value", [0.0, 7.9])
def test_what_is_opened_of_a_shared_value_is_made_of_fair_coins(value):
    with Session(BLOCK, options={"pool_queries": 64}) as session:
        session.query(np.full((60, 3, 6, 5), value))
        frames = [[f for a, _, f in session.wires["online"].sent if a == r] for r in (0, 1)]
        opened = [list(online_values(session.program, f, [60])) for f in frames]
    for (opening, one), (_, other) in zip(*opened, strict=True):
        total = one ^ other if opening.xor else one + other
        for values in (one, other, total):
            ones = [((values >> bit) & 1).mean() for bit in range(opening.bits)]
            assert max(abs(share - 0.5) for share in ones) < 0.5 * 5.5 / np.sqrt(values.size)
