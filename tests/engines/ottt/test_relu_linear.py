"""A dense layer beside its ReLU: twin, tuple, answers, the price that decides, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph, random_weights, tutorial_net
from ottt_session import Session, uniform

from privserve.engines.ottt import prepare, reference
from privserve.engines.ottt.bits import mask
from privserve.engines.ottt.costs import cost_of_op
from privserve.engines.ottt.layout import lay_out
from privserve.engines.ottt.ops import relu_linear
from privserve.engines.ottt.ops.arrangement import arrange, arrangement
from privserve.engines.ottt.ops.comparison import plan_comparison
from privserve.engines.ottt.ops.linear import evaluate
from privserve.engines.ottt.ops.relu import string_bits
from privserve.engines.ottt.strings import string_words, unpack_ahead
from privserve.errors import ConfigError, ModelError
from privserve.geometry import Geometry
from privserve.model import load_model
from privserve.prg import Prg
from privserve.program import LAN, WAN
from privserve.validation import read_program

G = np.random.default_rng(5)


def net(inputs: int, outputs: int, *, read_twice: bool = False) -> object:
    """Dense, ReLU, dense; the ReLU's output is an output of the model too if `read_twice`."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], name="first"),
        helper.make_node("Relu", ["g"], ["r"], name="positive"),
        helper.make_node("Gemm", ["r", "v", "b"], ["y"], name="last"),
    ]
    constants = {
        "w": G.normal(size=(7, inputs)) / 3,
        "v": G.normal(size=(inputs, outputs)) / np.sqrt(inputs),
        "b": G.normal(size=outputs),
    }
    return graph(nodes, constants, (7,), ("y", "r") if read_twice else ("y",))


def kinds(program) -> list[str]:
    return [op.kind for op in program.ops if op.kind != "reshape"]


@pytest.mark.parametrize(("k", "modulus", "bits"), [(18, 38, 38), (25, 64, 64), (30, 41, 35)])
@pytest.mark.parametrize("lead", [0, 1])
def test_what_goes_beside_the_matrix_matches_the_twin_on_arbitrary_tuples(k, modulus, bits, lead):
    plan, count, prg = plan_comparison(k), 70, Prg()
    string, high = string_bits(modulus, plan), modulus - k
    fields = 2 * count
    ready = fields + string_words(count, string)
    pool = prg.int64((1, ready + 3 * count))
    unpack_ahead(pool, 0, 1, fields, ready, count, string)
    a = ready + count
    opened = prg.int64((1, count)) & mask(k)
    parts = [np.zeros((1, count), np.int64) for _ in range(4)]
    place = (0, fields, string >> 6, ready, a)
    relu_linear.mask_ends(pool, 0, *place, opened, modulus, k, bits, lead, *parts)
    for e in range(count):
        words = [pool[0, fields + q * count + e] for q in range(string >> 6)]
        whole = sum(
            (int(w) & mask_64) << (64 * q) for q, w in enumerate([*words, pool[0, ready + e]])
        )
        share, at = {"r": int(pool[0, e]) % 2**k}, 0
        for name, size in zip(
            ("b", "w", "b_rho1", "w_m", "b_m"), (modulus, high) * 2 + (high,), strict=True
        ):
            share[name] = whole >> at & mask(size) if size < 64 else whole >> at & mask_64
            at += size
        y0, more = reference.relu_ends(int(opened[0, e]), modulus, plan, lead, share)
        assert (int(parts[0][0, e]) + int(pool[0, a + e]) - y0) % 2**bits == 0
        assert (int(parts[2][0, e]) + int(pool[0, a + count + e]) - more) % 2**bits == 0


mask_64 = 2**64 - 1


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 3), (9, 10)])
def test_the_last_step_matches_the_twin_on_arbitrary_tuples(inputs, outputs):
    geometry, prg = Geometry((inputs, 1, 1), outputs), Prg()
    weight, open_weight = (prg.int64(geometry.weight_shape) for _ in range(2))
    bias, c, e0, e1 = (prg.int64(n) for n in (outputs, outputs, inputs, inputs))
    a, a_more, c_products = prg.int64(inputs), prg.int64(inputs), prg.int64((inputs, outputs))
    dhat = prg.int64(inputs) & 1
    ready_z = reference.linear(
        a.reshape(inputs, 1, 1),
        open_weight,
        {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "groups": [1]},
    ).ravel()
    products = c_products.ravel().copy()
    relu_linear.multiply_masks(a_more, arrange(geometry, open_weight), outputs, products)
    pool = np.concatenate([ready_z + c, products])[None]
    at, out = arrangement(geometry), np.zeros((1, outputs), np.int64)
    x = (e0 + e1 * dhat)[None]
    layer = (at.index, at.window, arrange(geometry, weight), at.each, at.group_size, bias, out)
    evaluate(pool, 0, 0, x, *layer)
    relu_linear.add_products(pool, 0, outputs, dhat[None], out)
    share = {
        "weight": weight[:, :, 0, 0],
        "open_weight": open_weight[:, :, 0, 0],
        "a": a,
        "a_more": a_more,
        "c": c,
        "c_products": c_products,
        "bias": bias,
    }
    expected = reference.relu_linear(e0, e1, dhat.tolist(), share, 64)
    assert [int(v) % 2**64 for v in out[0]] == expected


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("strict", [False, True])
def test_answers_are_the_models_whatever_the_batch_and_the_parties(parties, strict):
    for inputs, outputs in ((24, 10), (1, 1), (65, 3)):
        model = net(inputs, outputs)
        with Session(model, parties, strict_inputs=strict) as session:
            assert kinds(session.program)[-1] == "relu_linear"
            for batch in (1, 5):
                x = uniform((batch, 7), -8, 8)
                (out,) = session.query(x)
                expected = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})[0]
                assert np.abs(out - expected).max() < 2e-3


def test_what_all_parties_hold_of_a_tuple_sums_to_what_the_protocol_says():
    """sum Z = L(A, W) and sum Z'[j, o] = A'[j] W[o, j], modulo 2^M."""
    with Session(net(6, 4), 3) as session:
        program = session.program
        index = next(i for i, op in enumerate(program.ops) if op.kind == "relu_linear")
        op, layout = program.ops[index], lay_out(program)
        plan, bits = (
            plan_comparison(op.attributes["comparison_bits"]),
            program.values[op.output].bits,
        )
        packs = [compute.pool.packs[0] for compute in session.computes]
        weight = session.prepared.parameters[op.attributes["weight"]].reshape(4, 6)
    a = layout.masks[index] + 6 * plan.mask_words
    z = layout.ready[index] + 6
    total = sum(packs)
    mask_a, more = total[a : a + 6], total[a + 6 : a + 12]
    assert np.array_equal((total[z : z + 4] - weight @ mask_a) << (64 - bits), np.zeros(4))
    products = total[z + 4 : z + 28].reshape(6, 4)
    assert np.array_equal((products - more[:, None] * weight.T) << (64 - bits), np.zeros((6, 4)))
    assert len({pack[a : a + 12].tobytes() for pack in packs}) == 3


def test_the_price_of_an_exchange_decides_and_the_program_says_it():
    tutorial = tutorial_net(random_weights())
    programs = {p: read_program(prepare(tutorial, profile=p).description) for p in ("lan", "wan")}
    assert [p.exchange_bytes for p in programs.values()] == [LAN, WAN]
    assert all(kinds(p)[-1] == "relu_linear" for p in programs.values())
    wide = net(200, 300)
    assert kinds(read_program(prepare(wide).description)) == ["linear", "relu", "linear"]
    over_wan = read_program(prepare(wide, profile="wan").description)
    assert kinds(over_wan) == ["linear", "relu_linear"]
    costs = [cost_of_op(over_wan, op) for op in over_wan.ops]
    assert sum(cost.exchanges for cost in costs) == 3


def test_a_relu_that_something_else_reads_stays_by_itself():
    model = net(8, 3, read_twice=True)
    with Session(model) as session:
        assert "relu_linear" not in kinds(session.program)


def test_the_relu_that_lifts_strict_inputs_stays_by_itself():
    nodes = [helper.make_node("Gemm", ["x", "v"], ["y"])]
    model = graph(nodes, {"v": G.normal(size=(7, 3))}, (7,))
    program = read_program(prepare(model, strict_inputs=True, input_range=(0, 1)).description)
    assert kinds(program) == ["relu", "linear"]


def test_a_convolution_beside_a_relu_is_refused():
    description = prepare(net(8, 3)).description
    fused = next(op for op in description["ops"] if op["kind"] == "relu_linear")
    fused["attributes"]["geometry"].update(kernel=[1, 1], pads=[1, 0, 0, 0])
    with pytest.raises(ModelError):
        read_program(description)


def test_a_profile_that_is_none_is_named(tmp_path):
    from torch import nn

    model = load_model(nn.Sequential(nn.Linear(4, 2)), input_shape=(4,))
    with pytest.raises(ConfigError, match="moon"):
        model.prepare(profile="moon")
