"""Nodes of every opset give what onnxruntime gives, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from golden import as_list
from onnx import helper, numpy_helper

import converters

runtime = pytest.importorskip("onnxruntime")


def stored(
    path: Path,
    op: str,
    opset: int,
    constants: dict[str, np.ndarray],
    outputs: int = 1,
    **attributes: Any,
) -> Path:
    """A file of one node on x: float32[N, 7, 4] and the constants."""
    names = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *constants], names, **attributes)],
        "one node",
        [helper.make_tensor_value_info("x", 1, ["N", 7, 4])],
        [helper.make_tensor_value_info(name, 1, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def assert_agrees(path: Path) -> None:
    """What is converted gives what onnxruntime makes of the file itself."""
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
    expected = runtime.InferenceSession(path).run(None, {"x": x})
    found = as_list(converters.convert(path).predict(x))
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


def split(path: Path, opset: int, axis: int, sizes: list[int]) -> Path:
    """Split into parts of given sizes: an attribute before opset 13, an input from it on."""
    if opset < 13:
        return stored(path, "Split", opset, {}, len(sizes), axis=axis, split=sizes)
    return stored(path, "Split", opset, {"sizes": np.array(sizes)}, len(sizes), axis=axis)


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 21])
@pytest.mark.parametrize(("axis", "sizes"), [(1, [1, 4, 2]), (-2, [4, 3]), (2, [1, 3]), (-1, [4])])
def test_parts_of_given_sizes(opset: int, axis: int, sizes: list[int], tmp_path: Path) -> None:
    assert_agrees(split(tmp_path / "split.onnx", opset, axis, sizes))


@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize(("axis", "count"), [(1, 7), (2, 2), (-1, 4)])
def test_equal_parts(opset: int, axis: int, count: int, tmp_path: Path) -> None:
    assert_agrees(stored(tmp_path / "split.onnx", "Split", opset, {}, count, axis=axis))


@pytest.mark.parametrize(("axis", "count"), [(1, 2), (1, 3), (-2, 4), (2, 2)])
def test_a_number_of_parts_of_which_the_last_may_be_smaller(
    axis: int, count: int, tmp_path: Path
) -> None:
    path = tmp_path / "split.onnx"
    assert_agrees(stored(path, "Split", 18, {}, count, axis=axis, num_outputs=count))


@pytest.mark.parametrize("opset", [7, 11, 13, 18])
@pytest.mark.parametrize("axis", [0, -3])
def test_a_split_of_the_batch_is_refused(opset: int, axis: int, tmp_path: Path) -> None:
    with pytest.raises(converters.ConversionError, match=r"\(Split\): it works across the batch"):
        converters.convert(split(tmp_path / "split.onnx", opset, axis, [1, 2]))


def test_parts_that_do_not_make_up_their_axis_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "split.onnx", "Split", 18, {}, 5, axis=1, num_outputs=5)
    with pytest.raises(converters.ConversionError, match="Split"):
        converters.convert(path)


def test_parts_whose_sizes_depend_on_the_data_are_refused(tmp_path: Path) -> None:
    path = split(tmp_path / "split.onnx", 13, 1, [4, 3])
    model = onnx.load(path)
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("sizes", 7, [2]))
    onnx.save(model, path)
    with pytest.raises(converters.ConversionError, match="depends on the data"):
        converters.convert(path)


NORMS = ["ReduceL1", "ReduceL2", "ReduceSumSquare"]


def reduction(path: Path, op: str, opset: int, axes: list[int] | None, **attributes: Any) -> Path:
    """A reduction; the axes are an attribute before opset 18, an input from it on."""
    if axes is None:
        return stored(path, op, opset, {}, **attributes)
    if opset < 18:
        return stored(path, op, opset, {}, axes=axes, **attributes)
    return stored(path, op, opset, {"axes": np.array(axes, np.int64)}, **attributes)


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 18, 21])
@pytest.mark.parametrize(
    ("axes", "keepdims"), [([2], 0), ([1], 1), ([-1], 1), ([1, 2], 1), ([-2], 0)]
)
@pytest.mark.parametrize("op", NORMS)
def test_a_norm_along_axes_of_a_sample(
    op: str, axes: list[int], keepdims: int, opset: int, tmp_path: Path
) -> None:
    if opset < 11 and min(axes) < 0:
        pytest.skip("negative axes came with opset 11")
    assert_agrees(reduction(tmp_path / "norm.onnx", op, opset, axes, keepdims=keepdims))


@pytest.mark.parametrize("axes", [None, []])
@pytest.mark.parametrize("op", NORMS)
def test_a_norm_along_no_axis_is_that_of_each_element(
    op: str, axes: list[int] | None, tmp_path: Path
) -> None:
    path = reduction(tmp_path / "norm.onnx", op, 18, axes, noop_with_empty_axes=1)
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
    expected = x * x if op == "ReduceSumSquare" else abs(x)
    np.testing.assert_allclose(converters.convert(path).predict(x), expected, rtol=1e-6)


@pytest.mark.parametrize("axes", [None, [0], [0, 1, 2], [-3]])
@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("op", NORMS)
def test_a_norm_across_the_batch_is_refused(
    op: str, opset: int, axes: list[int] | None, tmp_path: Path
) -> None:
    path = reduction(tmp_path / "norm.onnx", op, opset, axes)
    with pytest.raises(converters.ConversionError, match="no row of its own for each sample"):
        converters.convert(path)
