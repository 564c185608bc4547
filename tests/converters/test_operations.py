"""Arithmetic on Keras' tensors, `x[:, ::2]` and `keras.ops`, as Keras 3 writes it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ottt_session import Session

import converters
from converters.keras_arguments import of_operation
from converters.keras_layers import operations
from converters.keras_operations import SPECS, is_keras3_operation

HAS_KERAS = importlib.util.find_spec("keras") is not None
os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROW = np.array([-1.5, -0.5, 0.5, 1.5], np.float32)
MATRIX = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)

Operate = Callable[[Any, Any, Any], Any]

# Each with real Keras: f(keras.ops, a, b) on tensors of shape (batch, 6, 4).
OPERATIONS: dict[str, Operate] = {
    "a + b": lambda ops, a, b: a + b,
    "1 - a": lambda ops, a, b: 1 - a,
    "a * row": lambda ops, a, b: a * ROW,
    "a / 3": lambda ops, a, b: a / 3,
    "-a": lambda ops, a, b: -a,
    "a ** 2": lambda ops, a, b: a**2,
    "(a - b) ** 2": lambda ops, a, b: (a - b) ** 2,
    "abs(a)": lambda ops, a, b: abs(a),
    "a @ matrix": lambda ops, a, b: a @ MATRIX,
    "a + b[:, :1]": lambda ops, a, b: a + b[:, :1],
    "a[:, 0]": lambda ops, a, b: a[:, 0],
    "a[:, -2:, 1]": lambda ops, a, b: a[:, -2:, 1],
    "a[..., 1:3]": lambda ops, a, b: a[..., 1:3],
    "a[:, None]": lambda ops, a, b: a[:, None],
    "a[:, ::2, 1:]": lambda ops, a, b: a[:, ::2, 1:],
    "relu": lambda ops, a, b: ops.relu(a),
    "leaky_relu": lambda ops, a, b: ops.leaky_relu(a, 0.3),
    "elu": lambda ops, a, b: ops.elu(a, 0.5),
    "gelu": lambda ops, a, b: ops.gelu(a),
    "exact gelu": lambda ops, a, b: ops.gelu(a, approximate=False),
    "softmax over the second axis": lambda ops, a, b: ops.softmax(a, axis=1),
    "a * sigmoid(a)": lambda ops, a, b: a * ops.sigmoid(a),
    "clip": lambda ops, a, b: ops.clip(a, -0.5, 0.25),
    "maximum of a number": lambda ops, a, b: ops.maximum(a, 0.2),
    "minimum of a row": lambda ops, a, b: ops.minimum(a, ROW),
    "minimum": lambda ops, a, b: ops.minimum(a, b),
    "mean over time": lambda ops, a, b: ops.mean(a, axis=1),
    "mean over features": lambda ops, a, b: ops.mean(a, axis=-1, keepdims=True),
    "sum over both": lambda ops, a, b: ops.sum(a, axis=(1, 2), keepdims=True),
    "max": lambda ops, a, b: ops.max(a, axis=-1),
    "min": lambda ops, a, b: ops.min(a, axis=1),
    "average": lambda ops, a, b: ops.average(a, axis=2),
    "concatenate": lambda ops, a, b: ops.concatenate([a, b], axis=-1),
    "stack": lambda ops, a, b: ops.stack([a, b], axis=2),
    "reshape": lambda ops, a, b: ops.reshape(a, (-1, 3, 8)),
    "transpose": lambda ops, a, b: ops.transpose(a, (0, 2, 1)),
    "moveaxis": lambda ops, a, b: ops.moveaxis(ops.expand_dims(a, 1), 1, -1),
    "swapaxes": lambda ops, a, b: ops.swapaxes(a, 1, 2),
    "squeeze": lambda ops, a, b: ops.squeeze(ops.expand_dims(a, 2), 2),
    "flip": lambda ops, a, b: ops.flip(a, axis=1),
    "roll": lambda ops, a, b: ops.roll(a, 2, axis=1),
    "roll of two axes": lambda ops, a, b: ops.roll(a, (1, 2), axis=(2, 1)),
    "repeat": lambda ops, a, b: ops.repeat(a, 2, axis=2),
    "tile": lambda ops, a, b: ops.tile(a, (1, 2, 3)),
    "take": lambda ops, a, b: ops.take(a, [3, 0], axis=1),
    "a part of split": lambda ops, a, b: ops.split(a, [1, 4], axis=1)[1],
    "halves, exchanged": lambda ops, a, b: ops.concatenate(ops.split(a, 2, axis=-1)[::-1], -1),
    "pad": lambda ops, a, b: ops.pad(a, [[0, 0], [1, 0], [2, 1]], constant_values=0.5),
    "reflected pad": lambda ops, a, b: ops.pad(a, [[0, 0], [2, 1], [0, 3]], mode="reflect"),
    "cast": lambda ops, a, b: ops.cast(a, "float32"),
    "clipped relu": lambda ops, a, b: activations().relu(a, max_value=0.25),
}


def activations() -> Any:
    import keras

    return keras.activations


@pytest.fixture(scope="module")
def model() -> Any:
    """One model with an output per operation, each behind a layer with weights."""
    if not HAS_KERAS:
        pytest.skip("Keras is not installed")
    import keras

    keras.utils.set_random_seed(3)
    a, b = keras.Input((6, 4), name="a"), keras.Input((6, 4), name="b")
    hidden = keras.layers.Dense(4)(a)
    outputs = [keras.ops.add(f(keras.ops, hidden, b), 0) for f in OPERATIONS.values()]
    return keras.Model([a, b], outputs)


def sample() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.uniform(-1, 1, (3, 6, 4)).astype(np.float32) for _ in "ab"]


@pytest.mark.parametrize("suffix", [".keras", ".h5", None])
def test_an_operation_gives_what_keras_3_gives(
    model: Any, suffix: str | None, tmp_path: Path
) -> None:
    source = model
    if suffix:
        source = tmp_path / f"model{suffix}"
        model.save(source)
    expected = model.predict(sample(), verbose=0)
    found = converters.convert(source).predict(sample())
    for label, got, wanted in zip(OPERATIONS, found, expected, strict=True):
        assert got.shape == wanted.shape, label
        np.testing.assert_allclose(got, wanted, atol=2e-6, err_msg=label)


def test_operations_give_on_shares_what_keras_gives(model: Any) -> None:
    converted = converters.convert(model)
    expected = model.predict(sample(), verbose=0)
    with Session(converted.onnx, 2, {"pool_queries": 4}, input_range=(-1, 1)) as session:
        answers = session.query(*sample())
    for label, got, wanted in zip(OPERATIONS, answers, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-3, err_msg=label)


@pytest.mark.parametrize(
    ("operate", "says"),
    [
        (lambda ops, a: a // 2, "FloorDivide"),
        (lambda ops, a: ops.matmul(a, ops.transpose(a, (0, 2, 1))), "Matmul"),
        (lambda ops, a: ops.var(a, axis=1), "Var"),
        (lambda ops, a: ops.cast(a, "int32"), "casts to int32"),
        (lambda ops, a: ops.take(a, [0], axis=0), "batch"),
        (lambda ops, a: ops.concatenate([a, a], axis=0), "batch"),
        (lambda ops, a: ops.reshape(a, (2, -1, 4)), "batch"),
        (lambda ops, a: ops.max(a, axis=(1, 2)), "keepdims"),
        (lambda ops, a: ops.roll(a, (1, 2, 3), axis=(1, 2)), "3 shifts for 2 axes"),
    ],
)
def test_an_operation_that_cannot_be_served_is_refused_by_name(
    operate: Callable[[Any, Any], Any], says: str, tmp_path: Path
) -> None:
    if not HAS_KERAS:
        pytest.skip("Keras is not installed")
    import keras

    a = keras.Input((6, 4), name="a")
    with pytest.raises(converters.ConversionError, match=says):
        converters.convert(keras.Model(a, operate(keras.ops, a)))


@pytest.mark.parametrize(("shift", "axis"), [(2, (1, 2)), ((1, 2), 1), ((1, 3), (2, 1))])
def test_a_roll_pairs_shifts_and_axes_as_numpy_does(shift: Any, axis: Any) -> None:
    """Keras leaves unequal numbers to its backend: numpy's takes them, torch's does not."""
    if not HAS_KERAS:
        pytest.skip("Keras is not installed")
    import keras

    a = keras.Input((6, 4), name="a")
    x = np.arange(48.0).reshape(2, 6, 4)
    found = converters.convert(keras.Model(a, keras.ops.roll(a, shift, axis=axis))).predict(x)
    np.testing.assert_array_equal(found, np.roll(x, shift, axis))


def test_every_name_of_an_operation_leads_to_one_that_is_computed() -> None:
    for specs in SPECS.values():
        assert {spec.operation for spec in specs.values()} <= set(operations.OPERATIONS)


@pytest.mark.parametrize(
    "node",
    [
        None, 5, {}, {"args": 3}, [], [[]], [["a"]], [["a", 0]],
        {"args": [{"class_name": "__lambda__", "config": {}}]},
        {"args": [{"class_name": "__numpy__", "config": {"value": ["x"]}}]},
        [["a", 0, 0, {"y": {"class_name": "__lambda__"}}]],
    ],
)  # fmt: skip
def test_a_malformed_call_is_refused(node: object) -> None:
    with pytest.raises(converters.ConversionError, match="layer 'x'"):
        of_operation(node, "layer 'x'")


def test_a_layer_that_shares_its_name_with_an_operation_stays_a_layer() -> None:
    layer = {"class_name": "Add", "config": {"name": "add", "trainable": True}}
    operation = {"class_name": "Add", "config": {"name": "add"}}
    assert not is_keras3_operation(layer, layer["config"], (3, 4))
    assert is_keras3_operation(operation, operation["config"], (3, 4))
    assert not is_keras3_operation(operation, operation["config"], (2, 4))
    elsewhere = {**operation, "module": "somebody.layers"}
    assert not is_keras3_operation(elsewhere, elsewhere["config"], (3, 4))
    own = {**operation, "module": "keras.src.ops.numpy", "registered_name": "Mine>Add"}
    assert not is_keras3_operation(own, own["config"], (3, 4))
