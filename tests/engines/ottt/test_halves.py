"""max(u, 0) and min(u, 0) of one comparison: twin, borders, what uses it, and what it costs."""

from __future__ import annotations

import numpy as np
import ottt_steps as steps
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph
from ottt_session import Session, uniform

from privserve.compiler.compile import compile_model
from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import reference
from privserve.engines.ottt.costs import cost_of_op
from privserve.engines.ottt.ops.comparison import plan_comparison
from privserve.engines.ottt.ops.halves import finish_halves
from privserve.engines.ottt.ops.relu import string_bits
from privserve.engines.ottt.strings import string_words
from privserve.errors import ModelError
from privserve.prg import Prg
from privserve.program import OP_KINDS
from privserve.sharing import split
from privserve.validation import read_program

G = np.random.default_rng(53)


@pytest.mark.parametrize(("k", "bits"), [(25, 39), (20, 42), (26, 64), (43, 57)])
@pytest.mark.parametrize("lead", [0, 1])
def test_the_last_step_matches_the_twin_on_arbitrary_tuples(k, bits, lead):
    plan, count, prg = plan_comparison(k), 150, Prg()
    high, string = bits - k, string_bits(bits, plan)
    drawn = prg.int64((1, count * plan.mask_words + string_words(count, string)))
    pools = steps.made_ready([drawn], count * plan.mask_words, count, string)
    (pool,) = pools.packs
    opened = prg.int64((1, count)) & packing.mask(k)
    matrix = prg.int64((1, count)) & packing.mask(plan.opened_bits)
    out, seen = np.empty((1, 2 * count), np.int64), matrix[0].tolist()
    where = (0, pools.fields, pools.full, pools.ready)
    finish_halves(pool, 0, *where, opened, matrix, plan.chunks, bits, k, lead, out)
    names = ("b", "w", "b_rho1", "w_m", "b_m")
    parts = steps.parts_of(pools, (bits, high, bits, high, high), count)
    for e in range(count):
        x = int(opened[0, e])
        dhat = reference.determinant(seen[e], plan.chunks) ^ (x >> (k - 1))
        share = {name: part[0, 0, e] for name, part in zip(names, parts, strict=True)}
        share["r"] = int(pool[0, e]) % 2**k
        expected = reference.finish_halves(x, dhat, bits, plan, lead, share)
        assert tuple(int(v) % 2**bits for v in (out[0, e], out[0, count + e])) == expected


def halves(values, shift, k, bits, parties):
    """The signed max(u, 0) and min(u, 0) that the parties' shares sum to."""
    plan, count = plan_comparison(k), values.shape[1]
    shares = split(values, parties)
    pools = steps.deal_relu_pools(plan, 1, count, bits, parties)
    opened = steps.open_shifted(shares, pools.packs, 0, 1 << (k - 1), shift, k)
    totals = steps.open_matrix(plan, pools, 5 * bits - 3 * k, opened)
    outs = [np.empty((1, 2 * count), np.int64) for _ in shares]
    for i, out in enumerate(outs):
        where = (0, pools.fields, pools.full, pools.ready)
        arguments = (opened[i], totals[i], plan.chunks, bits, k, int(i == 0), out)
        finish_halves(pools.packs[i], 0, *where, *arguments)
    total = steps.signed(outs, bits)
    return total[:, :count], total[:, count:]


@pytest.mark.parametrize("parties", [2, 3, 4])
@pytest.mark.parametrize(
    ("k", "shift", "bits"), [(25, 14, 39), (20, 14, 64), (43, 14, 64), (9, 0, 30), (44, 20, 58)]
)
def test_both_halves_are_within_a_unit_per_party_at_every_border(parties, k, shift, bits):
    values = steps.borders(k, shift)
    positive, negative = halves(values, shift, k, bits, parties)
    exact = values >> shift
    assert np.abs(positive - np.maximum(exact, 0)).max() <= parties
    assert np.abs(negative - np.minimum(exact, 0)).max() <= parties
    assert not ((positive != 0) & (negative != 0)).any()
    if not shift:
        assert np.array_equal(positive + negative, values)


def test_without_a_shift_both_follow_from_the_low_bits_of_every_ring_element():
    k, half = 12, 1 << 11
    values = Prg().int64((1, 500))
    low = (values + half) % (2 * half) - half
    positive, negative = halves(values, 0, k, 50, 2)
    assert np.array_equal(positive, np.maximum(low, 0))
    assert np.array_equal(negative, np.minimum(low, 0))


USES = {
    "leaky": (helper.make_node("LeakyRelu", ["c"], ["y"], alpha=0.3), {}, 2),
    "prelu": (helper.make_node("PRelu", ["c", "s"], ["y"]), {"s": G.normal(size=(3, 1, 1))}, 3),
    "abs": (helper.make_node("Abs", ["c"], ["y"]), {}, 2),
    "hard swish": (helper.make_node("HardSwish", ["c"], ["y"]), {}, 3),
}
"""What is made of it: the node, its constants, and the exchanges that it takes."""


@pytest.mark.parametrize("name", USES)
def test_what_is_made_of_both_halves_is_right_and_takes_one_comparison(name):
    node, constants, exchanges = USES[name]
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    model = graph([conv, node], {"w": G.normal(size=(3, 2, 1, 1)), **constants}, (2, 4, 5))
    with Session(model, 3) as session:
        online, program = session.wires["online"], session.program
        before = len(online.sent)
        x = uniform((4, 2, 4, 5), -8, 8)
        (out,) = session.query(x)
        sent = [len(f) for a, b, f in online.sent[before:] if (a, b) == (0, 1)]
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
    assert np.abs(out - expected).max() < 3e-3
    costs = [cost_of_op(program, op) for op in program.ops]
    assert len(sent) == sum(c.exchanges for c in costs) == 1 + exchanges
    assert sum(sent) == 4 * sum(c.bytes_online for c in costs) + 8
    kinds = [op.kind for op in program.ops if OP_KINDS[op.kind].communicates]
    assert kinds[:2] == ["linear", "halves"]
    assert not {"relu", "truncate"} & set(kinds)
    compared = next(op for op in program.ops if op.kind == "halves")
    count = 3 * 4 * 5 * (2 if name == "hard swish" else 1)
    assert program.values[compared.inputs[0]].size == count


def test_a_guarded_one_is_flagged_as_a_relu_is():
    nodes, constants, last = [], {}, "x"
    for i in range(30):
        constants[f"w{i}"] = G.normal(size=(16, 16)) * 0.5
        nodes += [
            helper.make_node("Gemm", [last, f"w{i}"], [f"g{i}"], name=f"dense {i}"),
            helper.make_node("LeakyRelu", [f"g{i}"], [f"r{i}"], name=f"leaky {i}", alpha=0.2),
        ]
        last = f"r{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    model = graph(nodes, constants, (16,))
    program, _ = compile_model(model)
    assert program.guards
    with Session(model, calibration=np.full((4, 16), 1e-3)) as session:
        out, flags = session.query(np.concatenate([np.full((2, 16), 1e-3), np.full((2, 16), 8.0)]))
    flagged = flags.any((1, 2))
    assert not flagged[:2].any()
    assert flagged[2:].all()
    assert len(out) == 4


def test_a_result_of_another_shape_is_refused():
    model = graph([helper.make_node("Abs", ["x"], ["y"])], {}, (3, 4))
    program, _ = compile_model(model)
    fields = program.to_json()
    op = next(op for op in fields["ops"] if op["kind"] == "halves")
    fields["values"][op["output"]]["shape"] = [3, 8]
    with pytest.raises(ModelError, match="another shape"):
        read_program(fields)
