"""From ONNX to a program: formats, ranges, folding, the summary and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper
from ottt_models import graph, random_weights, tutorial_net

from privserve.compiler.compile import compile_model
from privserve.compiler.ranges import synthetic_samples
from privserve.description import read_description
from privserve.engines.ottt import prepare
from privserve.engines.ottt.costs import summary
from privserve.errors import ModelError
from privserve.program import OP_KINDS
from privserve.validation import read_program


def deep_net(layers: int, gain: float) -> object:
    """Dense and ReLU, again and again, each with the given gain."""
    generator = np.random.default_rng(3)
    nodes, constants, last = [], {}, "x"
    for i in range(layers):
        constants[f"w{i}"] = generator.normal(size=(16, 16)) * gain / 4
        nodes += [
            helper.make_node("Gemm", [last, f"w{i}"], [f"g{i}"], name=f"dense {i}"),
            helper.make_node("Relu", [f"g{i}"], [f"r{i}"], name=f"relu {i}"),
        ]
        last = f"r{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return graph(nodes, constants, (16,))


def test_the_tutorials_net_takes_nine_exchanges_and_fuses_its_pooling():
    program, _ = compile_model(tutorial_net(random_weights()))
    kinds = [op.kind for op in program.ops if OP_KINDS[op.kind].communicates]
    assert kinds == ["linear", "relu"] * 2 + ["linear", "relu_linear"]
    assert not any(op.kind in ("sum_pool", "transpose") for op in program.ops)
    assert {op.kind for op in program.ops} <= set(OP_KINDS)


def test_a_trailing_softmax_is_left_to_the_client():
    program, _ = compile_model(tutorial_net(random_weights()))
    assert program.outputs[0].activation == {"op": "Softmax", "axis": -1}


def test_a_description_is_json_says_what_clients_need_and_makes_the_same_program():
    prepared = prepare(tutorial_net(random_weights()))
    assert read_description(prepared.description) == prepared.description
    copy = json.loads(json.dumps(prepared.description))
    assert read_program(copy).to_json() == read_program(prepared.description).to_json()


def test_the_description_of_two_nets_of_equal_ranges_differs_in_nothing():
    """The public part must not tell two weight sets apart beyond their power-of-two ranges."""
    weights = random_weights()
    permuted = [(k[..., ::-1].copy(), b[::-1].copy()) for k, b in weights[:1]] + weights[1:]
    one, two = (prepare(tutorial_net(w)).description for w in (weights, permuted))
    assert one == two


def test_values_keep_only_the_bits_that_the_next_comparison_reads():
    program, _ = compile_model(tutorial_net(random_weights()))
    for op in program.ops:
        if "comparison_bits" in op.attributes:
            source = program.values[op.inputs[0]]
            assert source.bits == op.attributes["shift"] + op.attributes["comparison_bits"]
    assert program.values[program.outputs[0].value].bits == 64


def test_a_narrower_input_range_gives_shorter_comparisons():
    def bits(input_range):
        program, _ = compile_model(tutorial_net(random_weights()), input_range=input_range)
        return [
            op.attributes["comparison_bits"]
            for op in program.ops
            if "comparison_bits" in op.attributes
        ]

    assert all(a < b for a, b in zip(bits((0, 1)), bits((-8, 8)), strict=True))


def test_a_deep_nets_ranges_come_from_samples_and_the_summary_says_so():
    program, _ = compile_model(deep_net(40, 1.4))
    assert "calibration" in summary(program)
    assert "times a margin of 8" in summary(program)


def test_calibration_samples_decide_where_sound_bounds_do_not_fit():
    small = np.full((4, 16), 1e-3)
    large = np.full((4, 16), 8.0)

    def bits(samples):
        program, _ = compile_model(deep_net(40, 1.4), calibration=samples)
        return [
            o.attributes["comparison_bits"]
            for o in program.ops
            if "comparison_bits" in o.attributes
        ]

    assert bits(small)[:3] == bits(large)[:3]
    assert bits(small)[-1] < bits(large)[-1] <= 30


def test_the_summary_shows_every_op_and_the_totals():
    text = summary(compile_model(tutorial_net(random_weights()))[0])
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["op", "layer", "shape", "range"]
    for layer in ("conv0", "relu2", "dense"):
        assert any(layer in line for line in lines)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[1] == "9"


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            graph([helper.make_node("Cos", ["x"], ["y"], name="wave")], {}, (4,)),
            {},
            ["Cos", "wave", "'ottt' has no op"],
        ),
        (
            graph(
                [
                    helper.make_node("Relu", ["x"], ["r"]),
                    helper.make_node("Div", ["x", "r"], ["y"], name="quotient"),
                ],
                {},
                (4,),
            ),
            {},
            ["Div", "quotient"],
        ),
        (
            graph(  # a final Exp would be the client's
                [
                    helper.make_node("Exp", ["x"], ["e"], name="growth"),
                    helper.make_node("Relu", ["e"], ["y"]),
                ],
                {},
                (4,),
            ),
            {"input_range": (-1000, 1000)},
            ["growth", "scale"],
        ),
        (
            graph([helper.make_node("Log", ["x"], ["y"], name="logarithm")], {}, (4,)),
            {},
            ["logarithm", "not defined"],
        ),
        (
            graph([helper.make_node("Transpose", ["x"], ["y"], name="t", perm=[1, 0])], {}, (4,)),
            {},
            ["Transpose", "batch"],
        ),
        (deep_net(20, 60.0), {}, ["dense", "fraction-bits", "scale"]),
        (
            graph(
                [helper.make_node("Gemm", ["x", "w"], ["y"], name="broken")],
                {"w": np.full((4, 2), np.nan)},
                (4,),
            ),
            {},
            ["broken", "NaN"],
        ),
        (tutorial_net(random_weights()), {"input_range": (1, 0)}, ["range"]),
        (tutorial_net(random_weights()), {"fraction_bits": 40}, ["fraction bits"]),
        (tutorial_net(random_weights()), {"calibration": np.zeros((2, 3))}, ["calibration"]),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(model, options, words):
    with pytest.raises(ModelError) as refusal:
        compile_model(model, **options)
    assert all(word.lower() in str(refusal.value).lower() for word in words), refusal.value


def test_an_input_without_a_static_shape_is_refused():
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, (4,))
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "width"])
    )
    with pytest.raises(ModelError, match="static shape"):
        compile_model(model)


def test_the_same_call_gives_the_same_program_every_time():
    """Guessed ranges come from samples; a model must not be accepted or refused by chance."""
    one, two = (compile_model(deep_net(40, 1.4), input_range=(0, 255)) for _ in range(2))
    assert one[0].to_json() == two[0].to_json()


@pytest.mark.parametrize("shape", [(5,), (28, 28, 1), (3, 9, 9), (9, 9, 3), (4, 6)])
def test_synthetic_samples_are_of_every_kind_and_reach_both_ends(shape):
    samples = synthetic_samples(shape, -0.5, 2.0, 8)
    assert samples.shape == (8, *shape)
    assert samples.min() == -0.5
    assert samples.max() == 2.0
    assert any((s == -0.5).all() for s in samples)
    assert any((s == 2.0).all() for s in samples)
    assert len({s.tobytes() for s in samples}) >= 7  # one channel alone is an image all white
    assert np.array_equal(samples, synthetic_samples(shape, -0.5, 2.0, 8))
