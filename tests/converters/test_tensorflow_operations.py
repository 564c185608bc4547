"""Arithmetic on tensors as tf.keras writes it, in files written by hand: TensorFlow is not here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_operations import ROW, sample

import converters

T = ["a", 0, 0]


def lambda_layer(function: str, named: dict[str, Any], first: Any = None) -> dict[str, Any]:
    kind = "SlicingOpLambda" if function.endswith("getitem") else "TFOpLambda"
    node = [*(first or T), {**named, "name": None}]
    if function.endswith("getitem"):
        node[3].pop("name")
    return {
        "class_name": kind,
        "config": {"name": "op", "trainable": True, "dtype": "float32", "function": function},
        "name": "op",
        "inbound_nodes": [node],
    }


def joined(function: str, named: dict[str, Any]) -> dict[str, Any]:
    layer = lambda_layer(function, {})
    layer["inbound_nodes"] = [[["a", 0, 0, named], ["b", 0, 0, named]]]
    return layer


def node_layer(op: str, constants: dict[str, Any], tensors: int = 1, **attributes: Any) -> dict:
    """As tf.keras 2.0 to 2.3 wrote operations."""
    attr = {k: {"b": v} if isinstance(v, bool) else {"i": str(v)} for k, v in attributes.items()}
    return {
        "class_name": "TensorFlowOpLayer",
        "config": {
            "name": op, "trainable": True, "dtype": "float32", "constants": constants,
            "node_def": {"name": op, "op": op, "input": ["a"], "attr": attr},
        },
        "name": "op",
        "inbound_nodes": [[["a", 0, 0, {}], ["b", 0, 0, {}]][:tensors]],
    }  # fmt: skip


def stored(layer: dict[str, Any], path: Path, version: str = "2.12.0", outputs: int = 1) -> Path:
    inputs = [
        {
            "class_name": "InputLayer", "name": name, "inbound_nodes": [],
            "config": {"batch_input_shape": [None, 6, 4], "name": name},
        }
        for name in "ab"
    ]  # fmt: skip
    config = {
        "name": "model",
        "layers": [*inputs, layer],
        "input_layers": [["a", 0, 0], ["b", 0, 0]],
        "output_layers": [["op", 0, i] for i in range(outputs)],
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        file.create_group("model_weights").attrs["layer_names"] = np.array([], "S1")
    return path


SLICE = [{"start": None, "stop": None, "step": None}, {"start": 1, "stop": None, "step": 2}]
TF_OPERATIONS: list[tuple[dict[str, Any], Callable[[Any, Any], Any]]] = [
    (lambda_layer("__operators__.add", {"y": ["b", 0, 0]}), lambda a, b: a + b),
    (lambda_layer("math.multiply", {"y": 2.5}), lambda a, b: a * 2.5),
    (lambda_layer("math.subtract", {"y": T}, ["_CONSTANT_VALUE", -1, 1.0]), lambda a, b: 1 - a),
    (lambda_layer("math.truediv", {"y": 4}), lambda a, b: a / 4),
    (lambda_layer("math.add", {"y": ROW.tolist()}), lambda a, b: a + ROW),
    (lambda_layer("nn.relu", {}), lambda a, b: np.maximum(a, 0)),
    (
        {**lambda_layer("nn.relu", {}), "inbound_nodes": [[["a", 0, 0, {"name": None}]]]},
        lambda a, b: np.maximum(a, 0),
    ),
    (lambda_layer("nn.leaky_relu", {"alpha": 0.1}), lambda a, b: np.where(a > 0, a, 0.1 * a)),
    (
        lambda_layer("clip_by_value", {"clip_value_min": -0.1, "clip_value_max": 0.5}),
        lambda a, b: np.clip(a, -0.1, 0.5),
    ),
    (lambda_layer("math.reduce_mean", {"axis": [1]}), lambda a, b: a.mean(1)),
    (
        lambda_layer("math.reduce_max", {"axis": -1, "keepdims": True}),
        lambda a, b: a.max(-1, keepdims=True),
    ),
    (lambda_layer("reshape", {"shape": [-1, 3, 8]}), lambda a, b: a.reshape(-1, 3, 8)),
    (lambda_layer("compat.v1.transpose", {"perm": [0, 2, 1]}), lambda a, b: a.swapaxes(1, 2)),
    (lambda_layer("expand_dims", {"axis": -1}), lambda a, b: a[..., None]),
    (lambda_layer("cast", {"dtype": "float32"}), lambda a, b: a),
    (
        lambda_layer("pad", {"paddings": [[0, 0], [1, 1], [0, 0]], "mode": "REFLECT"}),
        lambda a, b: np.pad(a, [(0, 0), (1, 1), (0, 0)], mode="reflect"),
    ),
    (joined("concat", {"axis": 1}), lambda a, b: np.concatenate([a, b], 1)),
    (joined("stack", {"axis": 1}), lambda a, b: np.stack([a, b], 1)),
    (joined("math.add_n", {}), lambda a, b: a + b),
    (lambda_layer("__operators__.getitem", {"slice_spec": SLICE}), lambda a, b: a[:, 1::2]),
    (
        lambda_layer("__operators__.getitem", {"slice_spec": [SLICE[0], -1]}),
        lambda a, b: a[:, -1],
    ),
    (
        lambda_layer(
            "__operators__.getitem",
            {"slice_spec": [{"class_name": "__ellipsis__"}, {"start": 0, "stop": 2, "step": None}]},
        ),
        lambda a, b: a[..., :2],
    ),
    (node_layer("AddV2", {}, 2), lambda a, b: a + b),
    (node_layer("Mul", {"1": 0.5}), lambda a, b: a * 0.5),
    (node_layer("Sub", {"0": 1.0}), lambda a, b: 1 - a),
    (node_layer("Mean", {"1": [2]}, keep_dims=True), lambda a, b: a.mean(2, keepdims=True)),
    (node_layer("ConcatV2", {"2": -1}, 2), lambda a, b: np.concatenate([a, b], -1)),
    (
        node_layer(
            "StridedSlice", {"1": [0, 1], "2": [0, 4], "3": [1, 2]}, begin_mask=1, end_mask=1
        ),
        lambda a, b: a[:, 1:4:2],
    ),
    (
        node_layer(
            "StridedSlice", {"1": [0, 2], "2": [0, 3], "3": [1, 1]},
            begin_mask=1, end_mask=1, shrink_axis_mask=2,
        ),
        lambda a, b: a[:, 2],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "expected"), TF_OPERATIONS)
def test_an_operation_of_tensorflow_gives_what_numpy_gives(
    layer: dict[str, Any], expected: Callable[[Any, Any], Any], tmp_path: Path
) -> None:
    a, b = sample()
    found = converters.convert(stored(layer, tmp_path / "model.h5")).predict([a, b])
    wanted = expected(a, b)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        lambda_layer("split", {"num_or_size_splits": [1, 3, 2], "axis": 1}),
        lambda_layer("split", {"num_or_size_splits": [1, -1, 2], "axis": -2}),
        node_layer("SplitV", {"1": [1, 3, 2], "2": 1}),
    ],
)
def test_each_part_of_a_split_is_an_output(layer: dict[str, Any], tmp_path: Path) -> None:
    a, b = sample()
    found = converters.convert(stored(layer, tmp_path / "model.h5", outputs=3)).predict([a, b])
    for got, wanted in zip(found, np.split(a, [1, 4], axis=1), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "layer",
    [
        lambda_layer("split", {"num_or_size_splits": 2, "axis": 2}),
        node_layer("Split", {"0": -1}, num_split=2),
    ],
)
def test_equal_parts_of_a_split(layer: dict[str, Any], tmp_path: Path) -> None:
    a, b = sample()
    found = converters.convert(stored(layer, tmp_path / "model.h5", outputs=2)).predict([a, b])
    for got, wanted in zip(found, np.split(a, 2, axis=2), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_an_operation_that_moves_blocks_of_pixels(tmp_path: Path) -> None:
    layer = lambda_layer("nn.depth_to_space", {"block_size": 2, "data_format": "NHWC"})
    layer["inbound_nodes"] = [["r", 0, 0, layer["inbound_nodes"][0][3]]]
    reshape = {
        "class_name": "Reshape", "name": "r", "inbound_nodes": [[["a", 0, 0, {}]]],
        "config": {"name": "r", "target_shape": [2, 3, 4]},
    }  # fmt: skip
    path = stored(layer, tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].insert(2, reshape)
        file.attrs["model_config"] = json.dumps(config)
    a, b = sample()
    blocks = a.reshape(3, 2, 3, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(3, 4, 6, 1)
    np.testing.assert_array_equal(converters.convert(path).predict([a, b]), blocks)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (lambda_layer("math.floordiv", {"y": 2}), r"tf\.math\.floordiv"),
        (lambda_layer("nn.relu", {"surprise": 2}), "surprise"),
        (lambda_layer("math.multiply", {"y": ["nowhere", 0, 0]}), "nowhere|inputs lead"),
        (lambda_layer("math.multiply", {"y": float("nan")}), "finite"),
        (lambda_layer("math.multiply", {"y": [[1.0, 2.0]] * 5}), "does not fit"),
        (lambda_layer("math.multiply", {}), "without 'x2'"),
        (lambda_layer("reshape", {"shape": [6, 4]}), "batch"),
        (lambda_layer("tile", {"multiples": [1, 10**9, 1]}), "times"),
        (lambda_layer("split", {"num_or_size_splits": 2, "axis": 0}), "across the batch"),
        (lambda_layer("split", {"num_or_size_splits": [2, 2], "axis": 1}), "add up to 6"),
        (node_layer("Split", {"0": 1}, num_split=4), "4 equal parts"),
        (node_layer("Conv2D", {}), "Conv2D"),
    ],
)
def test_an_operation_that_is_not_understood_is_refused(
    layer: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(converters.ConversionError, match=says):
        converters.convert(stored(layer, tmp_path / "model.h5"))
