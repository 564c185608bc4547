"""Writes tests/data/keras: small files of real Keras with its own outputs as golden values.

For developers; the fixtures are committed. Run it where Keras 3 and tf-keras are installed,
on the TensorFlow backend, because TensorFlow's arithmetic is the reference (other backends
round differently and pad some averages differently):

    export PYTHONPATH=tests/support
    KERAS_BACKEND=tensorflow python tests/converters/make_fixtures.py
    KERAS_BACKEND=torch python tests/converters/make_fixtures.py     # layers_keras3_torch alone
    python tests/converters/make_fixtures.py     # with tensorflow 2.12: its own .keras files alone

files/<name>.h5|.keras  a model as Keras saved it; <name>.npz holds x, y (x_1, y_1, ...)
layers_<keras>.npz      many models, each as to_json() text, weights, inputs and outputs; cases
                        that are not in there yet are added, and those that are stay as they are
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
from layer_cases import all_cases

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

DATA = Path(__file__).parents[1] / "data" / "keras"


def shake(model, seed: int) -> None:
    """Replace all weights by random ones, so that biases and statistics are not trivial."""
    random = np.random.default_rng(seed)
    weights = []
    for variable, value in zip(model.weights, model.get_weights(), strict=True):
        drawn = np.rint(random.uniform(-32, 32, value.shape)) / 64  # compresses well
        name = variable.name
        if "variance" in name or "gamma" in name:
            drawn = drawn + 1.0
        if "count" in name or "seed" in name:
            drawn = value
        weights.append(np.asarray(drawn, value.dtype))
    model.set_weights(weights)
    for _, layer in leaf_layers(model):
        if hasattr(layer, "finalize_state"):  # Normalization computes with copies of its weights
            layer.finalize_state()


def sample(model, seed: int, batch: int = 3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random inputs for a model and what it makes of them."""
    random = np.random.default_rng(seed + 1000)
    inputs = [
        (np.rint(random.uniform(-64, 64, (batch, *tensor.shape[1:]))) / 64).astype(np.float32)
        for tensor in model.inputs
    ]
    outputs = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    return inputs, outputs if isinstance(outputs, list) else [outputs]


def save(model, file_name: str, seed: int, weights_only: bool = False, **options: str) -> None:
    """Save one model as a file with its golden values; options go to Keras' save."""
    shake(model, seed)
    folder = DATA / "files"
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name.split(".")[0]
    if weights_only:
        model.save_weights(folder / file_name)
        (folder / f"{name}.json").write_text(model.to_json())
    else:
        model.save(folder / file_name, **options)
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
    models = dict(all_cases())
    for number, kind in enumerate(("nested", "several", "residual")):
        build = models[kind]
        for writer, library in (("keras3", keras), ("tf_keras2", tf_keras)):
            for ending in ("h5", "keras"):
                save(build(library), f"{kind}_{writer}_{ending}.{ending}", 10 + number)
    for writer, library in (("keras3", keras), ("tf_keras2", tf_keras)):
        # Frozen layers move to the end of a nested model's weights.
        model = models["nested"](library)
        model.get_layer("inner").layers[1].trainable = False
        save(model, f"frozen_{writer}.h5", 20)


def is_wanted(label: str, backend: str) -> bool:
    """Whether a backend is the reference for a case.

    On a CPU, TensorFlow cannot run most of channels_first, and its optimizer adds a bias
    along the wrong axis in the rest; torch averages asymmetric padding in its own way.
    Adaptive pooling is torch's, and newer than the Keras that has written the rest.
    """
    of_torch = "channels_first" in label or "channels first" in label or "Adaptive" in label
    if backend == "torch":
        return of_torch and not ("Average" in label and "same" in label)
    return not of_torch


def layer_cases(keras, name: str, seed: int, backend: str = "tensorflow") -> None:
    """Add to layers_<name>.npz every case that it lacks and that `backend` is the reference for.

    Two arrays, because many small ones would take more room than the numbers: `numbers`,
    float32, and `cases`, JSON that says per label the configuration and where the arrays
    are: x0, y0, w/<layer>/<number>, ... -> [start, *shape].
    """
    target = DATA / f"layers_{name}.npz"
    numbers: list[np.ndarray] = []
    cases: dict[str, dict] = {}
    if target.exists():
        with np.load(target) as archive:
            numbers, cases = [archive["numbers"]], json.loads(archive["cases"].tobytes())
    end = sum(map(len, numbers))
    for label, build in all_cases():
        if label in cases or not is_wanted(label, backend):
            continue
        keras.backend.clear_session()
        of_its_own = seed + zlib.crc32(label.encode())  # whatever other cases there are
        try:
            model = build(keras)
            shake(model, of_its_own)
            inputs, outputs = sample(model, of_its_own, batch=2)
        except Exception as error:  # whatever this Keras lacks or cannot run on this machine
            print(f"{name}: left out: {label}: {str(error).splitlines()[0]}")
            continue
        arrays = {f"x{i}": x for i, x in enumerate(inputs)}
        arrays |= {f"y{i}": y for i, y in enumerate(outputs)}
        for path, layer in leaf_layers(model):
            arrays |= {f"w/{path}/{i}": w for i, w in enumerate(layer.get_weights())}
        case: dict = {"config": json.loads(model.to_json())}
        for key, array in arrays.items():
            case[key] = [end, *array.shape]
            numbers.append(np.ravel(array).astype(np.float32))
            end += array.size
        cases[label] = case
    np.savez_compressed(
        target,
        numbers=np.concatenate(numbers),
        cases=np.frombuffer(json.dumps(cases).encode(), np.uint8),
    )


def leaf_layers(model, prefix: str = ""):
    """Every layer that holds no layers, with its path through the models around it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from leaf_layers(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


if __name__ == "__main__":
    import keras

    if keras.__version__.startswith("2.12."):
        for number, kind in enumerate(("nested", "several", "residual")):
            model = dict(all_cases())[kind](keras)
            # "keras" alone still meant HDF5 for this version.
            save(model, f"{kind}_tf_keras212.keras", 30 + number, save_format="keras_v3")
    elif keras.backend.backend() == "torch":
        layer_cases(keras, "keras3_torch", 900, backend="torch")
    else:
        import tf_keras

        files()
        layer_cases(keras, "keras3", 100)
        layer_cases(tf_keras, "tf_keras2", 500)
