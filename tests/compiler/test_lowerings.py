"""The registry of lowerings: no attribute is ignored, no op has two lowerings, layers are named."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from ottt_models import graph
from random_graphs import random_graph

from privserve.compiler.compile import compile_model
from privserve.compiler.ops import LOWERINGS
from privserve.compiler.registry import lowers
from privserve.errors import ModelError

OLDEST = 7
"""The opset that the converters still read."""

HISTORY: dict[str, list[onnx.defs.OpSchema]] = {}
for _schema in onnx.defs.get_all_schemas_with_history():
    if _schema.domain == "":
        HISTORY.setdefault(_schema.name, []).append(_schema)


def live(op: str) -> list[onnx.defs.OpSchema]:
    """The op's specifications that hold in some opset from OLDEST on."""
    schemas = sorted(HISTORY[op], key=lambda s: s.since_version)
    nexts = [s.since_version for s in schemas[1:]] + [10**6]
    return [s for s, end in zip(schemas, nexts, strict=True) if end > OLDEST]


def node(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"the {op}", **attributes)


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        compile_model(model)
    return str(caught.value)


def with_attribute(op: str, attribute: str) -> tuple[onnx.ModelProto, str]:
    """A model with this op, on which the attribute is set, and the name of its node."""
    model = random_graph(20_000, only=op).model
    target = next(n for n in model.graph.node if n.op_type == op)
    target.attribute.append(helper.make_attribute(attribute, 1))
    return model, target.name


@pytest.mark.parametrize("op", sorted(LOWERINGS))
def test_every_attribute_of_an_ops_specifications_is_known_or_refused(op: str) -> None:
    for attribute in sorted({name for schema in live(op) for name in schema.attributes}):
        if attribute not in LOWERINGS[op].known:
            model, name = with_attribute(op, attribute)
            assert refusal(model).startswith(f"op '{op}' (node '{name}'): ")


@pytest.mark.parametrize("op", sorted(LOWERINGS))
def test_a_lowering_knows_no_attribute_that_onnx_does_not(op: str) -> None:
    assert {name for schema in live(op) for name in schema.attributes} >= LOWERINGS[op].known


@pytest.mark.parametrize("op", sorted(LOWERINGS))
def test_defaults_are_those_of_onnx(op: str) -> None:
    attributes = onnx.defs.get_schema(op, 17).attributes
    for parameter in list(inspect.signature(LOWERINGS[op].function).parameters.values())[1:]:
        if parameter.name not in attributes:
            continue
        stated = attributes[parameter.name].default_value
        if not stated.type:
            assert bool(attributes[parameter.name].required) == (
                parameter.default is inspect._empty
            )
            continue
        default = helper.get_attribute_value(stated)
        default = default.decode() if isinstance(default, bytes) else default
        if isinstance(default, float):
            assert parameter.default == pytest.approx(default, rel=1e-6)
        else:
            assert parameter.default == default


@pytest.mark.parametrize("op", sorted(LOWERINGS))
def test_an_attribute_that_nobody_knows_is_refused_by_op_node_and_name(op: str) -> None:
    model, name = with_attribute(op, "invented")
    expected = f"op '{op}' (node '{name}'): its attribute 'invented' is not supported"
    assert refusal(model) == expected


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_the_clients_activations_do_not_ignore_attributes_either(op: str) -> None:
    model = graph([node(op, ["x"], invented=1)], {}, (4,))
    assert "its attribute 'invented' is not supported" in refusal(model)


def test_a_second_lowering_of_an_op_is_refused() -> None:
    with pytest.raises(ValueError, match="'Relu' has two lowerings, relu and another"):

        @lowers("Relu")
        def another(c: Any) -> Any:
            return c.traced(0)


def test_a_lowering_takes_attributes_by_keyword_only() -> None:
    with pytest.raises(TypeError, match="keyword-only"):

        @lowers("Invented")
        def invented(c: Any, alpha: float = 1.0) -> Any:
            return c.traced(0)

    assert "Invented" not in LOWERINGS


IMAGE = (3, 4, 4)
NORM = ["x", "g", "b", "m", "v"]
STATISTICS = {"g": np.ones(3), "b": np.zeros(3), "m": np.zeros(3), "v": np.ones(3)}
SIZES = {"sizes": np.array([1, 3, 2, 2])}
LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
RESIZED = ["x", "", "", "sizes"]
HALVES = {"kernel_shape": [2, 2]}


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ([node("BatchNormalization", NORM, training_mode=1)], STATISTICS, "training_mode"),
        ([node("BatchNormalization", NORM, spatial=0)], STATISTICS, "spatial"),
        (
            [node("Dropout", ["x", "ratio", "on"])],
            {"ratio": np.float32(0.5), "on": np.array(True)},
            "training_mode",
        ),
        ([node("Cast", ["x"], to=TensorProto.INT64)], {}, "not to int64"),
        ([node("Cast", ["x"], to=TensorProto.BOOL)], {}, "not to bool"),
        ([node("Cast", ["x"])], {}, "lacks the attribute 'to'"),
        ([node("Concat", ["x", "x"])], {}, "lacks the attribute 'axis'"),
        (
            [node("Reshape", ["x", "s"], allowzero=1)],
            {"s": np.array([-1, 0, 4])},
            "allowzero",
        ),
        ([node("Resize", RESIZED, antialias=1, **LINEAR)], SIZES, "antialias"),
        ([node("Resize", RESIZED, axes=[2, 3], **LINEAR)], SIZES, "axes"),
        (
            [node("Resize", RESIZED, keep_aspect_ratio_policy="not_larger", **LINEAR)],
            SIZES,
            "keep_aspect_ratio_policy",
        ),
        ([node("Resize", RESIZED, mode="cubic")], SIZES, "mode cubic"),
        ([node("AveragePool", ["x"], dilations=[2, 2], **HALVES)], {}, "dilated"),
        ([node("MaxPool", ["x"], auto_pad="SAME", **HALVES)], {}, "auto_pad 'SAME'"),
        ([node("Softmax", ["x"], "s", axis=0), node("Relu", ["s"])], {}, "batch"),
        ([node("ReduceSum", ["x", "a"])], {"a": np.zeros(0, np.int64)}, "batch"),
    ],
)
def test_values_that_would_change_the_answer_are_refused(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], words: str
) -> None:
    message = refusal(graph(nodes, constants, IMAGE))
    assert f"op '{nodes[0].op_type}' (node 'the {nodes[0].op_type}'): " in message
    assert words in message


def test_an_output_that_only_training_needs_is_refused_where_something_reads_it() -> None:
    pooled = helper.make_node("MaxPool", ["x"], ["p", "places"], name="the MaxPool", **HALVES)
    rest = node("Mul", ["p", "places"])
    assert "'places'" in refusal(graph([pooled, rest], {}, IMAGE))
    compile_model(graph([pooled, node("Identity", ["p"])], {}, IMAGE))


@pytest.mark.parametrize(
    ("plain", "other", "constants"),
    [
        (
            node("BatchNormalization", NORM),
            node("BatchNormalization", NORM, momentum=0.5, spatial=1, training_mode=0),
            STATISTICS,
        ),
        (node("Dropout", ["x"]), node("Dropout", ["x"], ratio=0.25, seed=7), {}),
        (
            node("Cast", ["x"], to=TensorProto.FLOAT),
            node("Cast", ["x"], to=TensorProto.FLOAT16, saturate=0),
            {},
        ),
        (node("MaxPool", ["x"], **HALVES), node("MaxPool", ["x"], storage_order=1, **HALVES), {}),
        (
            node("Resize", RESIZED, **LINEAR),
            node("Resize", RESIZED, exclude_outside=1, cubic_coeff_a=-0.5, **LINEAR),
            SIZES,
        ),
        (
            node("Clip", ["x", "low", "high"]),
            node("Clip", ["x"], min=-0.5, max=2.0),
            {"low": np.float32(-0.5), "high": np.float32(2.0)},
        ),
        (
            node("Slice", ["x", "s", "e", "a"]),
            node("Slice", ["x"], starts=[1], ends=[3], axes=[2]),
            {"s": np.array([1]), "e": np.array([3]), "a": np.array([2])},
        ),
        (
            node("Pad", ["x", "p", "c"]),
            node("Pad", ["x"], pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.5),
            {"p": np.array([0, 0, 1, 0, 0, 0, 0, 2]), "c": np.float32(0.5)},
        ),
        (
            node("ReduceSum", ["x", "a"]),
            node("ReduceSum", ["x"], axes=[2, 3]),
            {"a": np.array([2, 3])},
        ),
        (node("Unsqueeze", ["x", "a"]), node("Unsqueeze", ["x"], axes=[1]), {"a": np.array([1])}),
    ],
)
def test_values_that_change_nothing_and_older_spellings_give_the_same_program(
    plain: onnx.NodeProto, other: onnx.NodeProto, constants: dict[str, np.ndarray]
) -> None:
    one, two = (compile_model(graph([n], constants, IMAGE)) for n in (plain, other))
    assert one[0].to_json() == two[0].to_json()
    assert one[1].keys() == two[1].keys()
    assert all(np.array_equal(one[1][name], two[1][name]) for name in one[1])


def test_what_is_emitted_late_belongs_to_the_layer_that_made_it() -> None:
    """A linear op that waits for a reader, and a function, which a third node reads."""
    model = graph(
        [
            helper.make_node("Gemm", ["x", "w"], ["a"], name="dense"),
            helper.make_node("Sigmoid", ["x"], ["b"], name="gate"),
            helper.make_node("Mul", ["a", "b"], ["c"], name="product"),
            helper.make_node("Relu", ["c"], ["y"], name="last"),
        ],
        {"w": np.ones((4, 4))},
        (4,),
    )
    layers: dict[str, set[str]] = {}
    for op in compile_model(model)[0].ops:
        layers.setdefault(op.kind, set()).add(op.layer)
    assert layers["linear"] == {"dense"}
    assert layers["lookup"] == {"gate"}
    assert layers["multiply"] == {"product"}
    assert layers["relu"] == {"last"}
    assert set.union(*layers.values()) == {"dense", "gate", "product", "last"}


def test_an_error_in_a_late_op_names_the_layer_that_made_it() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="broken"),
        helper.make_node("Relu", ["a"], ["y"], name="reader"),
    ]
    message = refusal(graph(nodes, {"w": np.full((4, 2), np.nan)}, (4,)))
    assert "'broken'" in message
    assert "'reader'" not in message
