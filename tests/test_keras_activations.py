"""Every activation of Keras, alone and where values come together, at the default input range."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privserve.accuracy import TOLERABLE, compile_accurately
from privserve.client import apply_activation
from privserve.errors import ModelError
from privserve.fixedpoint import encode
from privserve.simulate import simulate

if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

import converters  # noqa: E402

ROWS = 24
NOT_READ = {
    "glu": "halves an axis",
    "sparse_plus": "by parts",
    "sparse_sigmoid": "by parts",
    "sparsemax": "sorts",
    "squareplus": "",
    "threshold": "takes arguments",
    "deserialize": "no activation",
    "serialize": "no activation",
    "get": "no activation",
}
"""What `keras.activations` holds and the converter refuses, or what is none."""


@pytest.fixture(scope="module")
def keras() -> Any:
    import keras

    return keras


def names() -> list[str]:
    import keras

    public = [n for n in dir(keras.activations) if not n.startswith("_")]
    return [n for n in public if callable(getattr(keras.activations, n)) and n not in NOT_READ]


Wire = Callable[[Any, str], tuple[Any, Any]]


def after_dense(keras: Any, name: str) -> tuple[Any, Any]:
    x = keras.Input((16,))
    return x, keras.layers.Dense(8, activation=name)(x)


def after_conv(keras: Any, name: str) -> tuple[Any, Any]:
    x = keras.Input((5, 5, 2))
    return x, keras.layers.Conv2D(3, 3, activation=name)(x)


def merged(kind: str) -> Wire:
    """The activation and what it is made of, brought together, before a Dense."""

    def wire(keras: Any, name: str) -> tuple[Any, Any]:
        x = keras.Input((12,))
        inner = keras.layers.Dense(6)(x)
        active = keras.layers.Activation(name)(inner)
        both = getattr(keras.layers, kind)()([inner, active])
        return x, keras.layers.Dense(3)(both)

    return wire


WIRES: dict[str, Wire] = {
    "Dense": after_dense,
    "Conv2D": after_conv,
    **{kind: merged(kind) for kind in ("Add", "Concatenate", "Multiply", "Maximum", "Average")},
}


def error_of_spread(model: Any) -> tuple[float, bool, int]:
    """The worst error of answered rows over Keras' spread, whether it was said, rows answered."""
    onnx_model = converters.convert(model).onnx
    result = compile_accurately(onnx_model)
    program, parameters = result.compiled[:2]
    shape = model.inputs[0].shape[1:]
    x = np.random.default_rng(5).uniform(-8, 8, (ROWS, *shape)).astype(np.float32)
    x[0], x[1] = 8, -8
    meant = np.asarray(model.predict(x, verbose=0), np.float64)
    got = simulate(program, parameters, [encode(x.astype(np.float64), program.fraction_bits)])
    guarded = [got.left[layer] for layer in program.guards if layer in got.left]
    kept = ~np.logical_or.reduce([np.zeros(ROWS, bool), *guarded])
    real = got.outputs[0] * 2.0**-program.output_fraction_bits
    final = apply_activation(real, program.outputs[0].activation)
    off = np.abs(final - meant.reshape(final.shape))[kept]
    said = any("INEXACT" in note for note in program.notes)
    return float(off.max(initial=0)) / float(np.ptp(meant[kept])), said, int(kept.sum())


def shaken(keras: Any, wire: Wire, name: str) -> Any:
    keras.utils.set_random_seed(11)
    model = keras.Model(*wire(keras, name))
    draw = np.random.default_rng(11)
    model.set_weights(
        [w + draw.normal(size=w.shape) * 0.05 for w in model.get_weights()]  # biases are zero
    )
    return model


@pytest.mark.parametrize("where", sorted(WIRES))
def test_every_activation_is_right_at_the_default_range(where: str, keras: Any) -> None:
    worst = {}
    for name in names():
        try:
            error, said, answered = error_of_spread(shaken(keras, WIRES[where], name))
        except ModelError as failure:
            worst[name] = f"refused: {failure}"
            continue
        if error > TOLERABLE and not said:
            worst[name] = f"off by {error:.3g} of the spread in silence"
        elif not answered:
            worst[name] = "no row is answered"
    assert not worst
