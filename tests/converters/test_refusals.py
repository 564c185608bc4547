"""What cannot be converted is refused in one line that names the cause and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from golden import FILES

from converters import ConversionError, convert


def refusal(source: object, architecture: object = None) -> str:
    """The message of the ConversionError; fails if the conversion succeeds."""
    with pytest.raises(ConversionError) as caught:
        convert(source, architecture)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(source, Path):
        assert source.name in message
    return message


def sequential(*layers: tuple[str, dict], name: str = "sequential") -> dict:
    """A Sequential configuration on inputs of shape (4,)."""
    first = {"class_name": "InputLayer", "config": {"batch_shape": [None, 4], "name": "in"}}
    entries = [
        {"class_name": class_name, "config": {"name": f"layer{i}", **config}}
        for i, (class_name, config) in enumerate(layers)
    ]
    return {"class_name": "Sequential", "config": {"name": name, "layers": [first, *entries]}}


def write_model(path: Path, config: object, weights: dict[str, dict[str, np.ndarray]]) -> Path:
    """A legacy HDF5 file with this configuration and these weights per layer."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.10.0"
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for name, arrays in weights.items():
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [role.encode() for role in arrays]
            for role, array in arrays.items():
                inner[role] = array
    return path


DENSE = ("Dense", {"units": 2, "activation": "linear"})
DENSE_WEIGHTS = {"kernel:0": np.ones((4, 2), np.float32), "bias:0": np.ones(2, np.float32)}


def test_the_models_that_these_tests_spoil_are_good_before(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.h5", sequential(DENSE), {"layer0": DENSE_WEIGHTS})
    assert convert(path).predict(np.ones((1, 4))).tolist() == [[5.0, 5.0]]


# --- not a model file ------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.h5")


def test_a_directory_is_not_a_model(tmp_path: Path) -> None:
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\xef\xbf\xbdHDF\r\n\x1a\n", "re-encoded"),
        (b"\x89HDF\n\x1a\n", "line ends"),
        (b'{"cells": []}', "JSON"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x80\x04\x95", "pickle"),
        (b"anything else", "neither HDF5 nor"),
    ],
)
def test_a_file_that_is_something_else_is_recognized(
    tmp_path: Path, content: bytes, meaning: str
) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    assert meaning in refusal(path)


def test_hdf5_without_a_model_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["measurements"] = np.arange(10)
    assert "holds no Keras model" in refusal(tmp_path / "data.h5")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, part: float) -> None:
    whole = (FILES / "sequential_tf_keras2.h5").read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "damaged" in refusal(path)


# --- weights and architecture ----------------------------------------------------------


def test_weights_alone_ask_for_the_architecture() -> None:
    assert "--architecture" in refusal(FILES / "weights_tf_keras2.h5")


def test_an_architecture_that_does_not_fit_the_weights_is_refused() -> None:
    message = refusal(FILES / "weights_tf_keras2.h5", sequential(DENSE))
    assert "do not belong together" in message


def test_a_kernel_of_another_shape_than_the_settings_ask_for_is_refused(tmp_path: Path) -> None:
    weights = {**DENSE_WEIGHTS, "kernel:0": np.ones((3, 2), np.float32)}
    path = write_model(tmp_path / "m.h5", sequential(DENSE), {"layer0": weights})
    assert "layer 'layer0' (Dense): its kernel has shape (3, 2)" in refusal(path)


def test_an_architecture_file_that_is_missing_is_named(tmp_path: Path) -> None:
    message = refusal(FILES / "weights_tf_keras2.h5", tmp_path / "no.json")
    assert "no.json" in message


@pytest.mark.parametrize(
    "architecture", ["model.yaml", "model.YML", "backend: tensorflow\nclass: x"]
)
def test_an_architecture_in_yaml_is_refused_with_the_way_out(architecture: str) -> None:
    message = refusal(FILES / "weights_tf_keras2.h5", architecture)
    assert "YAML" in message
    assert "to_json()" in message


# --- layers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "remedy"),
    [
        ("LSTM", "recurrent"),
        ("Bidirectional", "recurrent"),
        ("Lambda", "never run"),
        ("MultiHeadAttention", "attention"),
        ("TFOpLambda", "operation is not supported"),
        ("TensorFlowOpLayer", "operation is not supported"),
        ("Embedding", "docs/keras.md"),
    ],
)
def test_an_unsupported_layer_is_named_with_its_class(
    tmp_path: Path, class_name: str, remedy: str
) -> None:
    path = write_model(tmp_path / "m.h5", sequential((class_name, {})), {})
    message = refusal(path)
    assert f"layer 'layer0' ({class_name})" in message
    assert remedy in message


def test_adaptive_pooling_to_a_size_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    config = sequential(("AdaptiveAveragePooling2D", {"output_size": [3, 3]}))
    config["config"]["layers"][0]["config"]["batch_shape"] = [None, 7, 6, 3]
    message = refusal(write_model(tmp_path / "m.h5", config, {}))
    assert "output_size (3, 3) does not divide its input's (7, 6)" in message
    assert "Resizing" in message


def test_a_custom_class_is_refused_even_under_the_name_of_a_keras_layer(tmp_path: Path) -> None:
    config = sequential(DENSE)
    config["config"]["layers"][1] |= {"module": "my.layers", "registered_name": "Mine>Dense"}
    path = write_model(tmp_path / "m.h5", config, {"layer0": DENSE_WEIGHTS})
    assert "not one of Keras' own layers" in refusal(path)


def test_an_unknown_activation_is_named(tmp_path: Path) -> None:
    config = sequential(("Dense", {"units": 2, "activation": "my_activation"}))
    path = write_model(tmp_path / "m.h5", config, {"layer0": DENSE_WEIGHTS})
    message = refusal(path)
    assert "layer 'layer0' (Dense)" in message
    assert "'my_activation' is not supported" in message


def test_a_subclassed_model_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.h5", {"class_name": "MyModel", "config": {}}, {})
    assert "only Sequential and functional models" in refusal(path)


def test_an_object_that_is_no_model_is_refused() -> None:
    assert "int" in refusal(3)


def test_a_live_model_that_does_not_describe_itself_is_refused() -> None:
    class Subclassed:
        def to_json(self) -> str:
            raise NotImplementedError("get_config is missing")

        def get_layer(self, name: str) -> None: ...

    assert "rebuild it as a Sequential" in refusal(Subclassed())
