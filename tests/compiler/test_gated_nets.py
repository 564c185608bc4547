"""Nets with gates, residuals, means and smooth activations, on odd inputs, against Keras."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
import numpy as np
import pytest
from ottt_session import Session

import converters

keras = pytest.importorskip("keras")
layers = keras.layers

Net = Callable[[], Any]


def squeezed(x: Any, gate: str) -> Any:
    """Squeeze and excitation: every channel times a gate that sees all of the image."""
    channels = x.shape[-1]
    g = layers.GlobalAveragePooling2D(keepdims=True)(x)
    g = layers.Conv2D(max(1, channels // 4), 1, activation="relu")(g)
    g = layers.Conv2D(channels, 1, activation=gate)(g)
    return layers.Multiply()([x, g])


def mobile() -> Any:
    i = keras.Input((12, 12, 3))
    x = squeezed(layers.Conv2D(8, 3, activation="hard_swish")(i), "hard_sigmoid")
    y = layers.Conv2D(8, 3, padding="same", activation="hard_swish")(x)
    x = squeezed(layers.Add()([x, y]), "sigmoid")
    return keras.Model(i, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def steering() -> Any:
    i = x = keras.Input((24, 48, 3))
    for filters, kernel, stride in ((24, 5, 2), (36, 5, 2), (48, 3, 2), (64, 1, 1)):
        x = layers.Conv2D(filters, kernel, strides=stride, activation="elu")(x)
    x = layers.Flatten()(x)
    for units in (50, 10):
        x = layers.Dense(units, activation="elu")(x)
    return keras.Model(i, layers.Dense(1)(x))


def gated_average() -> Any:
    i = keras.Input((10,))
    a = layers.Dense(8, activation="gelu")(i)
    b = layers.Dense(8, activation="swish")(i)
    gate = layers.Dense(8, activation="hard_sigmoid")(i)
    x = layers.Multiply()([layers.Average()([a, b]), gate])
    x = layers.Concatenate()([x, a, layers.Maximum()([b, gate])])
    return keras.Model(i, layers.Dense(4)(x))


def waves() -> Any:
    i = keras.Input((16, 8))
    x = layers.Conv1D(12, 3, padding="same")(i)
    a = layers.Activation("tanh")(layers.Conv1D(12, 3, padding="same")(x))
    b = layers.Activation("sigmoid")(layers.Conv1D(12, 3, padding="same")(x))
    x = layers.AveragePooling1D(3)(layers.Add()([x, layers.Multiply()([a, b])]))
    return keras.Model(i, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)))


def rescaling() -> Any:
    i = keras.Input((14, 14, 3))
    x = layers.Rescaling(1 / 255.0)(i)
    x = layers.Normalization(mean=[0.48, 0.45, 0.4], variance=[0.05, 0.05, 0.05])(x)
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, activation="mish")(x))
    x = layers.DepthwiseConv2D(3, activation="selu")(x)
    return keras.Model(i, layers.Dense(3)(layers.Flatten()(layers.AveragePooling2D(3)(x))))


def odd_inputs(shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Noise, both flat ends, black and white, one channel alone, a ramp."""
    draw = np.random.default_rng(1)
    one = np.zeros(shape)
    one[..., -1] = 1.0
    ramp = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    rows = [draw.random(shape), np.ones(shape), np.zeros(shape), np.rint(draw.random(shape)), one]
    return low + (high - low) * np.array([*rows, ramp])


@pytest.mark.parametrize(
    "net",
    [mobile, steering, gated_average, waves, pytest.param(rescaling, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("declared", [None, (0, 1), (0, 255), (-0.5, 0.5)])
@pytest.mark.filterwarnings("ignore")
def test_odd_inputs_of_the_declared_range_are_answered_as_by_keras(
    net: Net, declared: tuple[float, float] | None
) -> None:
    keras.utils.set_random_seed(2)
    model = net()
    options = {} if declared is None else {"input_range": declared}
    with Session(converters.convert(model).onnx, options={"pool_queries": 6}, **options) as session:
        x = odd_inputs(model.input_shape[1:], *session.program.input_range)
        meant = np.asarray(keras.ops.convert_to_numpy(model(x.astype(np.float32))), np.float64)
        outputs = session.query(x)
        guarded = bool(session.program.guards)
    flagged = outputs[-1].any((1, 2)) if guarded else np.zeros(len(x), bool)
    off = np.abs(outputs[0].reshape(meant.shape) - meant).max(-1)
    assert off[~flagged].max() < 0.005 * np.ptp(meant)
    assert flagged.sum() <= 1
