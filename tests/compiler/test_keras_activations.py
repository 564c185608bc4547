"""Every activation of Keras, alone and where values come together, at the default input range."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privserve.activations import apply_activation
from privserve.compiler.accuracy import TOLERABLE, compile_accurately
from privserve.compiler.ranges import synthetic_samples
from privserve.compiler.simulate import simulate
from privserve.errors import ModelError
from privserve.fixedpoint import encode

if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not installed", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "torch")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

import converters  # noqa: E402

ROWS = 24
REFUSED = {
    "glu", "hard_shrink", "log_sigmoid", "soft_shrink", "sparse_plus", "sparse_sigmoid",
    "sparsemax", "squareplus", "tanh_shrink", "threshold",
}  # fmt: skip
"""What the converter refuses by name."""
HIDDEN_REFUSED = {
    "exponential": "does not fit in the ring",
    "log_softmax": "has no op 'LogSoftmax'",
}
"""Where another layer follows: e^30 at the default range, and what only a client computes."""
APPLICATIONS_REFUSED: dict[str, str] = {"ConvNeXtTiny": "LayerNormalization"}
"""Applications that may be refused, and a part of what is said then."""
NO_ACTIVATIONS = {"deserialize", "get", "serialize"}


@pytest.fixture(scope="module")
def keras() -> Any:
    import keras

    return keras


def names(keras: Any) -> list[str]:
    public = [n for n in dir(keras.activations) if not n.startswith("_")]
    functions = [n for n in public if callable(getattr(keras.activations, n))]
    return [n for n in functions if n not in NO_ACTIVATIONS]


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


MERGES = ("Add", "Concatenate", "Multiply", "Maximum", "Average")
WIRES: dict[str, Wire] = {
    "Dense": after_dense,
    "Conv2D": after_conv,
    **{kind: merged(kind) for kind in MERGES},
}


def error_of_spread(
    model: Any, input_range: tuple[float, float] = (-8.0, 8.0), rows: int = ROWS
) -> tuple[float, bool, int]:
    """The worst error of answered rows over Keras' spread, whether it was said, rows answered."""
    onnx_model = converters.convert(model).onnx
    result = compile_accurately(onnx_model, input_range=input_range)
    program, parameters = result.compiled[:2]
    low, high = input_range
    shape = model.inputs[0].shape[1:]
    x = np.random.default_rng(5).uniform(low, high, (rows, *shape)).astype(np.float32)
    x[0], x[1] = high, low
    meant = np.asarray(model.predict(x, verbose=0), np.float64)
    got = simulate(program, parameters, [encode(x.astype(np.float64), program.fraction_bits)])
    guarded = [got.left[layer] for layer in program.guards if layer in got.left]
    kept = ~np.logical_or.reduce([np.zeros(rows, bool), *guarded])
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
    for name in set(names(keras)) - REFUSED:
        try:
            error, said, answered = error_of_spread(shaken(keras, WIRES[where], name))
        except ModelError as failure:
            expected = HIDDEN_REFUSED.get(name) if where in MERGES else None
            if expected is None or expected not in str(failure):
                worst[name] = f"refused: {failure}"
            continue
        if error > TOLERABLE and not said:
            worst[name] = f"off by {error:.3g} of the spread in silence"
        elif not answered:
            worst[name] = "no row is answered"
    assert not worst


def test_an_activation_that_is_not_read_is_refused_by_its_name(keras: Any) -> None:
    assert set(names(keras)) >= REFUSED
    for name in REFUSED:
        with pytest.raises(converters.ConversionError, match=f"activation '{name}' is not"):
            converters.convert(shaken(keras, after_dense, name))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("MobileNetV3Small", 64),
        ("EfficientNetB0", 64),
        ("DenseNet121", 64),
        ("Xception", 96),
        ("InceptionResNetV2", 96),
        ("ConvNeXtTiny", 64),
    ],
)
def test_an_application_of_keras_agrees_with_keras_or_is_refused(
    name: str, side: int, keras: Any
) -> None:
    """Untrained and small: what counts is that layers of every kind come together rightly.

    Batch statistics are those of a batch, as in a trained network; without, signals vanish.
    """
    keras.utils.set_random_seed(3)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(synthetic_samples((side, side, 3), 0.0, 255.0, 8).astype(np.float32), training=True)
    try:
        error, said, answered = error_of_spread(model, (0.0, 255.0), rows=4)
    except (ModelError, converters.ConversionError) as refusal:
        if APPLICATIONS_REFUSED.get(name, "nothing") not in str(refusal):
            raise
        return
    print(f"{name}: error {error:.3g} of the spread, {answered} of 4 rows answered, said: {said}")
    assert error <= TOLERABLE or said
    assert answered
