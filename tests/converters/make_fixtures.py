"""Writes tests/data/keras: small files of real Keras with its own outputs as golden values.

For developers; the fixtures are committed. Run it where Keras 3 and tf-keras are installed,
on the TensorFlow backend, because TensorFlow's arithmetic is the reference (other backends
round differently and pad some averages differently):

    KERAS_BACKEND=tensorflow python tests/converters/make_fixtures.py

files/<name>.h5|.keras  a model as Keras saved it; <name>.npz holds x, y (x_1, y_1, ...)
layers_<keras>.npz      many models, each as to_json() text, weights, inputs and outputs
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

DATA = Path(__file__).parents[1] / "data" / "keras"


def shake(model, seed: int) -> None:
    """Replaces all weights by random ones, so that biases and statistics are not trivial."""
    random = np.random.default_rng(seed)
    weights = []
    for variable, value in zip(model.weights, model.get_weights(), strict=True):
        drawn = random.uniform(-0.5, 0.5, value.shape)
        name = variable.name
        if "variance" in name or "gamma" in name:
            drawn = drawn + 1.0
        if "count" in name or "seed" in name:
            drawn = value
        weights.append(np.asarray(drawn, value.dtype))
    model.set_weights(weights)


def sample(model, seed: int, batch: int = 3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random inputs for a model and what it makes of them."""
    random = np.random.default_rng(seed + 1000)
    inputs = [
        random.uniform(-1.0, 1.0, (batch, *[n or 8 for n in tensor.shape[1:]])).astype(np.float32)
        for tensor in model.inputs
    ]
    outputs = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    return inputs, outputs if isinstance(outputs, list) else [outputs]


def save(model, file_name: str, seed: int, weights_only: bool = False) -> None:
    """Saves one model as a file with its golden values."""
    shake(model, seed)
    folder = DATA / "files"
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name.split(".")[0]
    if weights_only:
        model.save_weights(folder / file_name)
        (folder / f"{name}.json").write_text(model.to_json())
    else:
        model.save(folder / file_name)
    inputs, outputs = sample(model, seed)
    arrays = {f"x_{i}" if i else "x": x for i, x in enumerate(inputs)}
    arrays |= {f"y_{i}" if i else "y": y for i, y in enumerate(outputs)}
    np.savez_compressed(folder / f"{name}.npz", **arrays)


def tutorial(keras):
    """The architecture of the tutorial, narrow."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.InputLayer(input_shape=(28, 28, 1))
            if keras.__name__ == "tf_keras"
            else layers.Input((28, 28, 1)),
            layers.Conv2D(3, 3),
            layers.AveragePooling2D(2),
            layers.Activation("relu"),
            layers.Conv2D(4, 3),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def files() -> None:
    """The files of each generation that can still be run."""
    import keras
    import tf_keras

    save(tutorial(keras), "sequential_keras3.h5", 1)
    save(tutorial(tf_keras), "sequential_tf_keras2.h5", 2)
    save(tutorial(tf_keras), "weights_tf_keras2.h5", 3, weights_only=True)
    save(tutorial(keras), "weights_keras3.weights.h5", 4, weights_only=True)


if __name__ == "__main__":
    files()
    sys.exit(0)
