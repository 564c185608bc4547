"""Operations on Keras' tensors (`x + y`, `x[:, 1:]`, `keras.ops`), as files hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest

import converters
from converters import ConversionError
from converters.operations import Slot, operation_of, read_arguments

keras = pytest.importorskip("keras")
ops = keras.ops

Function = Callable[..., Any]

FLAT: dict[str, Function] = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x * y": lambda x, y: x * y,
    "x + 2": lambda x, y: x + 2,
    "2 + x": lambda x, y: 2 + x,
    "x * 0.17": lambda x, y: x * 0.17,
    "x / 3": lambda x, y: x / 3,
    "1 - x": lambda x, y: 1 - x,
    "x - 0.5": lambda x, y: x - 0.5,
    "-x": lambda x, y: -x,
    "x ** 2": lambda x, y: x**2,
    "1 / (x * x + 1)": lambda x, y: 1 / (x * x + 1),
    "constant vector": lambda x, y: x * np.linspace(-1, 1, 6).astype(np.float32),
    "x[:, :4]": lambda x, y: x[:, :4],
    "x[:, ::2]": lambda x, y: x[:, ::2],
    "x[:, 1:-1]": lambda x, y: x[:, 1:-1],
    "x[..., 2:3]": lambda x, y: x[..., 2:3],
    "x[:, None, :]": lambda x, y: keras.layers.Flatten()(x[:, None, :]),
    "maximum": lambda x, y: ops.maximum(x, y),
    "minimum with a constant": lambda x, y: ops.minimum(x, 0.3),
    "relu": lambda x, y: ops.relu(x),
    "relu6": lambda x, y: ops.relu6(x * 10),
    "sigmoid": lambda x, y: ops.sigmoid(x) * 2,
    "tanh": lambda x, y: ops.tanh(x) + 1,
    "silu": lambda x, y: ops.silu(x),
    "gelu": lambda x, y: ops.gelu(x),
    "gelu, exact": lambda x, y: ops.gelu(x, approximate=False),
    "leaky relu": lambda x, y: ops.leaky_relu(x, negative_slope=0.3),
    "elu": lambda x, y: ops.elu(x, alpha=0.7),
    "hard sigmoid": lambda x, y: ops.hard_sigmoid(x * 4),
    "hard silu": lambda x, y: ops.hard_silu(x * 4),
    "softplus": lambda x, y: ops.softplus(x),
    "softmax": lambda x, y: ops.softmax(x),
    "clip": lambda x, y: ops.clip(x, -0.5, 0.25),
    "abs": lambda x, y: ops.abs(x),
    "square": lambda x, y: ops.square(x),
    "exp": lambda x, y: ops.exp(x) + 1,
    "concatenate": lambda x, y: ops.concatenate([x, y], axis=-1),
    "stack": lambda x, y: keras.layers.Flatten()(ops.stack([x, y], axis=1)),
    "reshape": lambda x, y: keras.layers.Flatten()(ops.reshape(x, (-1, 2, 3))),
    "expand and squeeze": lambda x, y: ops.squeeze(ops.expand_dims(x, 1), 1),
    "mean": lambda x, y: ops.mean(x, axis=1, keepdims=True),
    "sum": lambda x, y: ops.sum(x, axis=-1, keepdims=True),
}
IMAGES: dict[str, Function] = {
    "mean over the image": lambda x: ops.mean(x, axis=(1, 2)),
    "max over rows": lambda x: ops.max(x, axis=1),
    "min over channels": lambda x: ops.min(x, axis=-1, keepdims=True),
    "sum of channels": lambda x: ops.sum(x, axis=3),
    "crop": lambda x: x[:, 1:-1, 2:],
    "one channel": lambda x: x[..., 1],
    "one row": lambda x: x[:, 0],
    "transpose": lambda x: ops.transpose(x, (0, 2, 1, 3)),
    "scale and shift": lambda x: x * 2.0 - 1.0,
    "per channel": lambda x: x - np.array([0.1, 0.2, 0.3], np.float32),
    "residual": lambda x: x + keras.layers.Conv2D(3, 3, padding="same")(x),
}


def flat_model(function: Function) -> Any:
    x = keras.Input((6,))
    y = keras.layers.Dense(6)(x)
    return keras.Model(x, keras.layers.Dense(3)(function(keras.layers.Dense(6)(x), y)))


def image_model(function: Function) -> Any:
    x = keras.Input((5, 4, 3))
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Flatten()(function(x))))


def assert_converts(model: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=(7, *model.input_shape[1:])).astype(np.float32)
    expected = np.asarray(keras.ops.convert_to_numpy(model(x)))
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        got = converters.convert(tmp_path / name).predict(x)
        np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(converters.convert(model).predict(x), expected, atol=2e-5)


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.filterwarnings("ignore")
def test_an_operation_on_features(name: str, tmp_path: Path) -> None:
    assert_converts(flat_model(FLAT[name]), tmp_path)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.filterwarnings("ignore")
def test_an_operation_on_images(name: str, tmp_path: Path) -> None:
    assert_converts(image_model(IMAGES[name]), tmp_path)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x, y: ops.cumsum(x, axis=1), ["cumsum", "not supported", "mean"]),
        (lambda x, y: ops.flip(x, axis=0), ["flip"]),
        (lambda x, y: ops.matmul(x, ops.transpose(y)), ["batch"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_supported_is_named(
    function: Function, words: list[str], tmp_path: Path
) -> None:
    x = keras.Input((6,))
    out = function(keras.layers.Dense(6)(x), keras.layers.Dense(6)(x))
    keras.Model(x, out).save(tmp_path / "m.keras")
    with pytest.raises(ConversionError) as refusal:
        converters.convert(tmp_path / "m.keras")
    assert all(word in str(refusal.value) for word in words), refusal.value


def ref(value: object) -> tuple[str, int, int]:
    name, call, output = value[:3]  # type: ignore[index]
    return name, call, output


@pytest.mark.parametrize(
    ("node", "positional", "named", "refs"),
    [
        ([["a", 0, 0, {"y": ["b", 0, 0], "name": None}]], [Slot(0)], {"y": Slot(1)}, "ab"),
        ([["_CONSTANT_VALUE", -1, 1.0, {"y": ["b", 0, 0]}]], [1.0], {"y": Slot(0)}, "b"),
        ([["a", 0, 0, {"y": 2}]], [Slot(0)], {"y": 2}, "a"),
        (
            [["a", 0, 0, {"axis": -1}], ["b", 0, 0, {"axis": -1}]],
            [[Slot(0), Slot(1)]],
            {"axis": -1},
            "ab",
        ),
        (
            [["a", 0, 0, {"slice_spec": [{"start": None, "stop": 4, "step": None}]}]],
            [Slot(0)],
            {"slice_spec": [slice(None, 4, None)]},
            "a",
        ),
        (["a", 0, 0, {"axis": [1, 2]}], [Slot(0)], {"axis": [1, 2]}, "a"),
    ],
)  # fmt: skip
def test_tf_kerass_way_of_writing_a_call(
    node: Any, positional: list, named: dict, refs: str
) -> None:
    found = read_arguments(json.loads(json.dumps(node)), ref, "layer 'tf.math.add'")
    given = {k: v for k, v in found.named.items() if v is not None}
    assert (found.positional, given) == (positional, named)
    assert "".join(name for name, _, _ in found.refs) == refs


def test_a_layer_that_shares_its_name_with_an_operation_stays_a_layer() -> None:
    layer = {"name": "add", "trainable": True, "dtype": "float32"}
    written_by_3 = [{"args": [], "kwargs": {}}]
    assert operation_of("Add", layer, "keras.layers", written_by_3) is None
    assert operation_of("Add", {"name": "add"}, "keras.layers", written_by_3) == "add"
    assert operation_of("Merge", {"name": "merge_1"}, "keras.layers", [[["a", 0, 0]]]) is None
    assert operation_of("TFOpLambda", {"function": "math.reduce_mean"}, "x", []) == "mean"
    assert operation_of("MyLayer", {"name": "mine"}, "somebody.layers", written_by_3) is None


@pytest.mark.parametrize(
    "node",
    [
        None, 5, {}, {"args": 3}, [], [[]], [["a"]], [["a", 0]],
        {"args": [{"class_name": "__lambda__", "config": {}}]},
        {"args": [{"class_name": "__numpy__", "config": {"value": ["x"]}}]},
        [["a", 0, 0, {"y": {"class_name": "__lambda__"}}]],
    ],
)  # fmt: skip
def test_malformed_calls_are_refused(node: object) -> None:
    with pytest.raises(ConversionError):
        read_arguments(node, ref, "layer 'x'")
