"""Keras 1's settings and weights mean what Keras 2 took them for when it read such files.

Keras 1 does not run any more; the rules are those of Keras 2's own reader
(preprocess_weights_for_loading), and the one real file is in test_third_party_files.
"""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from converters import ConversionError, convert

RANDOM = np.random.default_rng(1)
KERNEL = RANDOM.normal(size=(3, 2, 2, 4)).astype(np.float32)  # rows, columns, in, out
BIAS = RANDOM.normal(size=4).astype(np.float32)
IMAGES = RANDOM.normal(size=(2, 6, 5, 2)).astype(np.float32)


def write(path: Path, version: str, layers: list, weights: dict, backend: str | None) -> Path:
    """A Sequential file as Keras `version` wrote it; layers: (class, settings)."""
    entries = [{"class_name": name, "config": config} for name, config in layers]
    config: object = entries if version.startswith("1") else {"name": "m", "layers": entries}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        if backend is not None:
            group.attrs["backend"] = backend
        for name, arrays in weights.items():
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [f"{name}_{i}".encode() for i in range(len(arrays))]
            for i, array in enumerate(arrays):
                inner[f"{name}_{i}"] = array
    return path


def keras2(tmp_path: Path) -> np.ndarray:
    """What today's Conv2D gives for IMAGES, channels last."""
    settings = {"name": "c", "filters": 4, "kernel_size": [3, 2], "strides": [1, 2],
                "padding": "same", "batch_input_shape": [None, 6, 5, 2]}  # fmt: skip
    path = write(tmp_path / "2.h5", "2.3.1", [("Conv2D", settings)], {"c": [KERNEL, BIAS]}, None)
    return convert(path).predict(IMAGES)


def keras1_settings(ordering: str) -> dict:
    shape = [None, 6, 5, 2] if ordering == "tf" else [None, 2, 6, 5]
    return {"name": "c", "nb_filter": 4, "nb_row": 3, "nb_col": 2, "subsample": [1, 2],
            "border_mode": "same", "dim_ordering": ordering, "bias": True,
            "batch_input_shape": shape}  # fmt: skip


@pytest.mark.parametrize("backend", [None, "tensorflow", "theano"])
def test_a_convolution_in_tensorflows_ordering(tmp_path: Path, backend: str | None) -> None:
    kernel = KERNEL[::-1, ::-1] if backend == "theano" else KERNEL
    layers = [("Convolution2D", keras1_settings("tf"))]
    path = write(tmp_path / "1.h5", "1.2.2", layers, {"c": [kernel, BIAS]}, backend)
    np.testing.assert_allclose(convert(path).predict(IMAGES), keras2(tmp_path), atol=1e-6)


@pytest.mark.parametrize("backend", [None, "theano"])
def test_a_convolution_in_theanos_ordering(tmp_path: Path, backend: str | None) -> None:
    kernel = KERNEL.transpose(3, 2, 0, 1)
    kernel = kernel[:, :, ::-1, ::-1] if backend == "theano" else kernel
    layers = [("Convolution2D", keras1_settings("th"))]
    path = write(tmp_path / "1.h5", "1.2.2", layers, {"c": [kernel, BIAS]}, backend)
    found = convert(path).predict(IMAGES.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), keras2(tmp_path), atol=1e-6)


def theanos_convolution(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A true convolution, as Theano means it: out[i] = sum over a of x[i + size - 1 - a] k[a].

    x: [B, C, H, W], kernel: [rows, columns, C, O]; valid padding.
    """
    rows, columns = kernel.shape[:2]
    height, width = x.shape[2] - rows + 1, x.shape[3] - columns + 1
    out = np.zeros((len(x), kernel.shape[3], height, width))
    for a in range(rows):
        for b in range(columns):
            top, left = rows - 1 - a, columns - 1 - b
            window = x[:, :, top : top + height, left : left + width]
            out += np.einsum("bchw,co->bohw", window, kernel[a, b])
    return out


@pytest.mark.parametrize("stated", [True, False])
def test_a_file_of_keras_1_on_theano(tmp_path: Path, stated: bool) -> None:
    settings = keras1_settings("th") | {"subsample": [1, 1], "border_mode": "valid"}
    weights = {"c": [KERNEL.transpose(3, 2, 0, 1), BIAS]}
    layers = [("Convolution2D", settings)]
    path = write(tmp_path / "1.h5", "1.1.0", layers, weights, "theano" if stated else None)
    x = IMAGES.transpose(0, 3, 1, 2)
    expected = theanos_convolution(x, KERNEL) + BIAS[:, None, None]
    converted = convert(path, backend=None if stated else "theano")
    np.testing.assert_allclose(converted.predict(x), expected, atol=1e-5)
    assert converted.notes == ()
    taken = convert(path)
    assert bool(taken.notes) != stated
    assert stated or "Theano" in taken.notes[0]


def test_a_file_of_keras_2_on_theano_holds_turned_kernels_but_for_depthwise_ones(
    tmp_path: Path,
) -> None:
    shape = {"data_format": "channels_first", "batch_input_shape": [None, 2, 6, 5]}
    settings = {"name": "c", "filters": 4, "kernel_size": [3, 2], "padding": "valid"} | shape
    weights = {"c": [KERNEL, BIAS]}
    path = write(tmp_path / "2.h5", "2.2.4", [("Conv2D", settings)], weights, "theano")
    x = IMAGES.transpose(0, 3, 1, 2)
    expected = theanos_convolution(x, KERNEL) + BIAS[:, None, None]
    np.testing.assert_allclose(convert(path).predict(x), expected, atol=1e-5)

    each = RANDOM.normal(size=(3, 2, 2, 1)).astype(np.float32)  # rows, columns, in, multiplier
    settings = {"name": "c", "kernel_size": [3, 2], "padding": "valid", "use_bias": False} | shape
    path = write(tmp_path / "d.h5", "2.2.4", [("DepthwiseConv2D", settings)], {"c": [each]},
                 "theano")  # fmt: skip
    diagonal = np.einsum("rci,io->rcio", each[..., 0], np.eye(2))
    expected = theanos_convolution(x, diagonal[::-1, ::-1])  # Keras turned it before Theano did
    np.testing.assert_allclose(convert(path).predict(x), expected, atol=1e-5)


def test_a_network_in_the_words_of_keras_1(tmp_path: Path) -> None:
    kernel = RANDOM.normal(size=(3, 2, 4)).astype(np.float32)  # length, in, out
    dense = RANDOM.normal(size=(12, 2)).astype(np.float32)
    old = [
        ("Convolution1D", {"name": "c", "nb_filter": 4, "filter_length": 3, "bias": True,
                           "border_mode": "valid", "subsample_length": 1, "activation": "relu",
                           "batch_input_shape": [None, 8, 2]}),
        ("MaxPooling1D", {"name": "p", "pool_length": 2, "stride": 2, "border_mode": "valid"}),
        ("Dropout", {"name": "d", "p": 0.5}),
        ("Flatten", {"name": "f"}),
        ("Dense", {"name": "o", "output_dim": 2, "bias": False, "activation": "softmax"}),
    ]  # fmt: skip
    new = [
        ("Conv1D", {"name": "c", "filters": 4, "kernel_size": [3], "activation": "relu",
                    "batch_input_shape": [None, 8, 2]}),
        ("MaxPooling1D", {"name": "p", "pool_size": [2], "strides": [2]}),
        ("Flatten", {"name": "f"}),
        ("Dense", {"name": "o", "units": 2, "use_bias": False, "activation": "softmax"}),
    ]  # fmt: skip
    first = {"c": [kernel[:, None], BIAS], "o": [dense]}
    second = {"c": [kernel, BIAS], "o": [dense]}
    x = RANDOM.normal(size=(3, 8, 2))
    np.testing.assert_allclose(
        convert(write(tmp_path / "1.h5", "1.1.0", old, first, None)).predict(x),
        convert(write(tmp_path / "2.h5", "2.3.1", new, second, None)).predict(x),
        atol=1e-6,
    )


def test_batch_statistics_at_inference_are_refused(tmp_path: Path) -> None:
    settings = {"name": "b", "mode": 2, "batch_input_shape": [None, 4]}
    path = write(tmp_path / "1.h5", "1.2.2", [("BatchNormalization", settings)], {}, None)
    with pytest.raises(ConversionError, match="mode=2"):
        convert(path)


def test_a_merge_of_models_is_refused_by_name(tmp_path: Path) -> None:
    settings = {"name": "m", "mode": "concat", "layers": []}
    path = write(tmp_path / "1.h5", "1.2.2", [("Merge", settings)], {}, None)
    with pytest.raises(ConversionError, match=r"'m' \(Merge\)"):
        convert(path)
