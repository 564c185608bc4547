"""ReduceSumSquare and ReduceL2: sums of squares are exact, and a final root is the client's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph
from ottt_session import Session, uniform
from serving import free_workers, serving

import privserve as ps
from privserve.activations import apply_activation
from privserve.compiler.accuracy import compile_accurately
from privserve.compiler.compile import compile_model
from privserve.engines.crypten.graph import lower
from privserve.errors import ModelError

ROOT = {"op": "Sqrt"}


def node(op: str, inputs: list[str], output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{op} layer", **attributes)


def expected(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})[0])


def answer(model: onnx.ModelProto, x: np.ndarray, **options: object) -> np.ndarray:
    with Session(model, **options) as session:
        (got,) = session.query(x)
        return apply_activation(got, session.program.outputs[0].activation)


@pytest.mark.parametrize("op", ["ReduceSumSquare", "ReduceL2"])
@pytest.mark.parametrize(
    "attributes", [{"axes": [1]}, {"axes": [-1], "keepdims": 0}, {"axes": [1, 3]}]
)
def test_a_final_norm_on_shares_is_that_of_onnx(op: str, attributes: dict) -> None:
    model = graph([node(op, ["x"], **attributes)], {}, (3, 4, 5))
    x = np.concatenate([uniform((3, 3, 4, 5), -4, 4), np.zeros((1, 3, 4, 5))])
    meant = expected(model, x)
    got = answer(model, x, input_range=(-4, 4))
    assert got.shape == meant.shape
    assert np.abs(got - meant).max() < 5e-3


def test_the_parties_compute_the_squares_of_a_final_norm_and_the_client_takes_the_root() -> None:
    model = graph([node("ReduceL2", ["x"], axes=[1])], {}, (6,))
    program, _ = compile_model(model)
    assert program.outputs[0].activation == ROOT
    assert {op.kind for op in program.ops} <= {"truncate", "square", "reshape", "sum_pool"}


@pytest.mark.parametrize(
    ("nodes", "is_the_clients"),
    [
        ([node("Relu", ["x"], "r"), node("Sqrt", ["r"])], True),
        ([node("Relu", ["x"], "r"), node("Pow", ["r", "half"])], True),
        ([node("Sigmoid", ["x"], "s"), node("Sqrt", ["s"])], False),
        ([node("ReduceL2", ["x"], "n", axes=[1]), node("Neg", ["n"])], False),
    ],
)
def test_a_final_root_is_the_clients_where_what_goes_in_is_a_value_that_is_not_negative(
    nodes: list[onnx.NodeProto], is_the_clients: bool
) -> None:
    program, _ = compile_model(graph(nodes, {"half": np.float32(0.5)}, (6,)))
    assert program.outputs[0].activation == (ROOT if is_the_clients else None)
    assert is_the_clients != any(op.kind == "lookup" for op in program.ops)


def test_the_root_of_what_may_be_negative_is_refused_as_ever() -> None:
    model = graph([node("Gemm", ["x", "w"], "g"), node("Sqrt", ["g"])], {"w": np.eye(4)}, (4,))
    with pytest.raises(ModelError, match=r"'Sqrt layer': it is not defined on all of \[-8, 8\]"):
        compile_model(model)


def test_crypten_leaves_no_root_to_the_client() -> None:
    """It does not know the range of what goes in."""
    model = graph([node("Relu", ["x"], "r"), node("Sqrt", ["r"])], {}, (4,))
    with pytest.raises(ModelError, match="Sqrt"):
        lower(model)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_the_clients_root_of_anything_is_a_number(values: list[float]) -> None:
    x = np.array(values)
    got = apply_activation(x, ROOT)
    assert np.allclose(got**2, np.where(x > 0, x, 0), rtol=1e-12)


def test_the_expected_error_is_that_of_the_root() -> None:
    """Near zero, where an error of the squares becomes one of 1 / (2 root) as much."""
    model = graph([node("ReduceL2", ["x"], axes=[1])], {}, (4,))
    samples = uniform((16, 4), -2e-3, 2e-3)
    result = compile_accurately(model, fraction_bits=10, calibration=samples, input_range=(-1, 1))
    rounded = np.rint(samples * 2.0**10) / 2.0**10
    meant, got = (np.linalg.norm(v, axis=1) for v in (samples, rounded))
    assert result.errors[0].error == pytest.approx(np.abs(got - meant).max(), rel=0.05)
    assert result.errors[0].spread == pytest.approx(np.ptp(meant))
    assert result.errors[0].error > 10 * np.abs(got**2 - meant**2).max()


@pytest.mark.parametrize("input_range", [(-8, 8), (0, 1), (-0.05, 0.05)])
def test_a_norm_inside_a_network_is_right_to_a_hundredth_of_the_spread(
    input_range: tuple[float, float],
) -> None:
    draw = np.random.default_rng(2)
    model = graph(
        [
            node("Gemm", ["x", "w"], "g"),
            node("ReduceL2", ["g"], "n", axes=[1]),
            node("Div", ["n", "scale"], "d"),
            node("Gemm", ["d", "v"]),
        ],
        {"w": draw.normal(size=(6, 5)), "v": draw.normal(size=(1, 3)), "scale": np.float32(3)},
        (6,),
    )
    x = np.concatenate([uniform((6, 6), *input_range), np.full((1, 6), input_range[1])])
    meant = expected(model, x)
    got = answer(model, x, input_range=input_range)
    assert np.abs(got - meant).max() < 0.01 * np.ptp(meant)


def test_a_norm_inside_a_network_of_too_large_values_is_refused_with_the_way_out() -> None:
    nodes = [node("ReduceL2", ["x"], "n", axes=[1]), node("Relu", ["n"])]
    with pytest.raises(ModelError, match=r"'ReduceL2 layer': no spline .*scale its input down"):
        compile_model(graph(nodes, {}, (200,)), input_range=(-2000, 2000))


@pytest.mark.parametrize("op", ["ReduceSumSquare", "ReduceL2"])
def test_a_norm_over_no_axes_is_refused(op: str) -> None:
    model = graph([node(op, ["x"], noop_with_empty_axes=1)], {}, (4,))
    with pytest.raises(ModelError, match="noop_with_empty_axes"):
        compile_model(model)


def test_a_client_of_a_cluster_gets_a_final_norm(tag: str, tmp_path: Path) -> None:
    model = graph([node("ReduceL2", ["x"], axes=[1])], {}, (6,))
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "norm.onnx")
    x = np.concatenate([uniform((4, 6), -4, 4), np.zeros((1, 6))])
    with (
        ps.Cluster(*free_workers()) as cluster,
        ps.load_model(tmp_path / "norm.onnx") as served,
    ):
        served.share(cluster, input_range=(-4, 4))
        with serving(cluster, served), ps.Client(cluster) as client:
            assert np.abs(client.query_model(x) - expected(model, x)).max() < 5e-3
