"""Models in memory convert without a file; runs where Keras is installed, on torch."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import DATA, FILES, assert_agrees
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import all_cases
from ottt_session import Session
from rounding import error_bounds
from test_layers import cases, numbered

import converters
from privserve.activations import apply_activation

if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "torch")
# Keras' own, about numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def keras() -> Any:
    import keras

    return keras


def shake(model: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    model.set_weights(
        [
            random.uniform(0.5, 1.5, w.shape) if "variance" in v.path else
            random.uniform(-0.5, 0.5, w.shape)
            for v, w in zip(model.weights, model.get_weights(), strict=True)
        ]
    )  # fmt: skip


def assert_converts(model: Any, seed: int) -> None:
    """The converted live model gives what the model gives."""
    random = np.random.default_rng(seed)
    inputs = [
        random.uniform(-1, 1, (2, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs
    ]
    outputs = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    assert_agrees(converters.convert(model), inputs, outputs)


def test_a_live_model_converts_without_a_file(keras: Any) -> None:
    model = keras.models.load_model(FILES / "sequential_keras3.h5", compile=False)
    with np.load(FILES / "sequential_keras3.npz") as golden:
        assert_agrees(converters.convert(model), [golden["x"]], [golden["y"]])


@pytest.mark.parametrize("label", ["nested", "several", "shared", "residual"])
def test_a_live_functional_model_converts(keras: Any, label: str) -> None:
    model = dict(all_cases())[label](keras)
    shake(model, 3)
    assert_converts(model, 4)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_prelu_as_an_activation_brings_its_weights(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 5, 2)),
            layers.Conv2D(3, 3, activation=layers.PReLU(shared_axes=[1, 2])),
            layers.Activation(layers.PReLU()),
            layers.Conv2D(2, 2, use_bias=False, activation=layers.PReLU()),
            layers.Flatten(),
            layers.Dense(4, activation=layers.PReLU()),
        ]
    )
    model(np.zeros((1, 6, 5, 2), np.float32))  # an activation is built by its first call
    shake(model, 5)
    assert_converts(model, 6)
    x = np.random.default_rng(7).uniform(-1, 1, (2, 6, 5, 2)).astype(np.float32)
    expected = model.predict(x, verbose=0)
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        converted = converters.convert(tmp_path / name)
        np.testing.assert_allclose(converted.predict(x), expected, atol=1e-6)
        assert sum(row.parameters for row in converted.layers) == model.count_params()


def test_a_model_built_only_by_its_data_converts_given_a_shape(keras: Any) -> None:
    model = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.GlobalMaxPooling2D()])
    model.build((None, None, None, 1))
    with pytest.raises(converters.ConversionError, match="input_shape"):
        converters.convert(model)
    converted = converters.convert(model, input_shape=(9, 8, 1))
    x = np.random.default_rng(0).random((2, 9, 8, 1), np.float32)
    np.testing.assert_allclose(converted.predict(x), model.predict(x, verbose=0), atol=1e-6)


def test_the_committed_golden_values_are_what_keras_gives_today(keras: Any) -> None:
    builders = dict(all_cases())
    for label, case in list(cases("keras3_torch").items())[::4]:
        model = builders[label](keras)
        arrays = case["arrays"]
        model.set_weights([array for name, array in arrays.items() if name.startswith("w/")])
        inputs = numbered(arrays, "x")
        found = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
        np.testing.assert_allclose(found, arrays["y0"], atol=1e-5, err_msg=label)
    assert (DATA / "layers_keras3_torch.npz").exists()


# --- random networks -------------------------------------------------------------------


@st.composite
def networks(draw: Any) -> list[tuple[str, dict[str, Any]]]:
    """Layers that fit one after the other on an input of (9, 8, 3)."""
    layers: list[tuple[str, dict[str, Any]]] = []
    height, width = 9, 8
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "separable", "pool", "average", "pad", "crop", "norm",
                                     "act", "dense", "up", "permute"]))  # fmt: skip
        # On torch, Keras averages over asymmetric padding in a way of its own.
        padding = "valid" if kind == "average" else draw(st.sampled_from(["valid", "same"]))
        size = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        stride = draw(st.integers(1, 2))
        if kind in ("conv", "separable", "pool", "average"):
            if padding == "valid" and (height < size[0] or width < size[1]):
                continue
            height = -(-(height - (size[0] - 1) * (padding == "valid")) // stride)
            width = -(-(width - (size[1] - 1) * (padding == "valid")) // stride)
        if kind in ("conv", "separable"):
            layers.append(("Conv2D" if kind == "conv" else "SeparableConv2D", {
                "filters": draw(st.integers(1, 4)), "kernel_size": size, "strides": stride,
                "padding": padding, "activation": draw(st.sampled_from([None, "relu", "tanh"])),
            }))  # fmt: skip
        elif kind in ("pool", "average"):
            name = "MaxPooling2D" if kind == "pool" else "AveragePooling2D"
            layers.append((name, {"pool_size": size, "strides": stride, "padding": padding}))
        elif kind == "pad":
            layers.append(("ZeroPadding2D", {"padding": ((1, 0), (0, 2))}))
            height, width = height + 1, width + 2
        elif kind == "crop" and min(height, width) > 2:
            layers.append(("Cropping2D", {"cropping": ((0, 1), (1, 0))}))
            height, width = height - 1, width - 1
        elif kind == "norm":
            layers.append(("BatchNormalization", {"axis": draw(st.sampled_from([1, 2, -1]))}))
        elif kind == "act":
            name = draw(st.sampled_from(["sigmoid", "elu", "softmax", "gelu", "hard_sigmoid",
                                         "leaky_relu", "relu6", "swish", "softplus"]))  # fmt: skip
            layers.append(("Activation", {"activation": name}))
        elif kind == "dense":
            layers.append(("Dense", {"units": draw(st.integers(1, 4))}))
        elif kind == "up":
            layers.append(("UpSampling2D", {"size": 2}))
            height, width = 2 * height, 2 * width
        elif kind == "permute":
            layers.append(("Permute", {"dims": (2, 1, 3)}))
            height, width = width, height
    tail = draw(st.sampled_from(["none", "flat", "dense", "flat norm", "mean", "reshape"]))
    if tail.startswith("flat") or tail in ("dense", "reshape"):
        layers.append(("Flatten", {}))
    if tail == "flat norm":
        layers.append(("BatchNormalization", {}))
    if tail == "reshape":
        layers.append(("Reshape", {"target_shape": (height, width, -1)}))
        layers.append(("Conv2D", {"filters": 2, "kernel_size": 1}))
    if tail == "mean":
        layers.append(("GlobalAveragePooling2D", {}))
    if tail in ("dense", "flat norm", "mean"):
        layers.append(("Dense", {"units": 3, "activation": "softmax"}))
    return layers


def random_model(keras: Any, layers: list[tuple[str, dict[str, Any]]], seed: int) -> Any:
    """A model of these layers on inputs of shape (9, 8, 3), with random weights."""
    model = keras.Sequential(
        [keras.Input((9, 8, 3))]
        + [getattr(keras.layers, name)(**options) for name, options in layers]
    )
    shake(model, seed)
    return model


@settings(max_examples=60, deadline=None)
@given(layers=networks(), seed=st.integers(0, 1000))
def test_a_random_network_agrees_in_keras_torch_and_onnx(
    keras: Any, layers: list[tuple[str, dict[str, Any]]], seed: int
) -> None:
    assert_converts(random_model(keras, layers, seed), seed)


@settings(max_examples=30, deadline=None)
@given(layers=networks(), seed=st.integers(0, 1000))
def test_a_random_network_agrees_on_shares_as_far_as_rounding_lets_it(
    keras: Any, layers: list[tuple[str, dict[str, Any]]], seed: int
) -> None:
    converted = converters.convert(random_model(keras, layers, seed))
    x = np.random.default_rng(seed).uniform(-1, 1, (2, 9, 8, 3)).astype(np.float32)
    with Session(converted.onnx, 2, {"pool_queries": 2}, input_range=(-1, 1)) as session:
        (answer,) = session.query(x)
    got = apply_activation(answer, session.program.outputs[0].activation)
    (bound,) = error_bounds(converted.onnx, [x])
    np.testing.assert_allclose(got, converted.predict(x), rtol=0, atol=bound)
