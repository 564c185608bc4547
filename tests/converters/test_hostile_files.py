"""Files made to do harm are refused quickly, in little memory, and nothing of them is run."""

from __future__ import annotations

import contextlib
import json
import resource
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from golden import FILES
from test_refusals import DENSE, DENSE_WEIGHTS, refusal, sequential, write_model

SECONDS = 15.0
MEGABYTES = 600


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Every refusal here has to come fast and without taking much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10


def functional(layers: list[dict], outputs: list) -> dict:
    first = {
        "class_name": "InputLayer",
        "name": "in",
        "config": {"batch_input_shape": [None, 4], "name": "in"},
        "inbound_nodes": [],
    }
    return {
        "class_name": "Functional",
        "config": {
            "name": "model",
            "layers": [first, *layers],
            "input_layers": [["in", 0, 0]],
            "output_layers": outputs,
        },
    }


def activation(name: str, *sources: list) -> dict:
    return {
        "class_name": "Activation",
        "name": name,
        "config": {"name": name, "activation": "relu"},
        "inbound_nodes": [[[*source, {}]] for source in sources],
    }


# --- configurations --------------------------------------------------------------------


def test_a_configuration_nested_without_end(tmp_path: Path) -> None:
    text = '{"a":' * 100_000 + "1" + "}" * 100_000
    assert "nested too deeply" in refusal(write_model(tmp_path / "m.h5", text, {}))


def test_models_nested_without_end(tmp_path: Path) -> None:
    config = sequential(DENSE)
    for i in range(40):
        config = {"class_name": "Sequential", "config": {"name": f"m{i}", "layers": [config]}}
    assert "nested more than" in refusal(write_model(tmp_path / "m.h5", config, {}))


def test_models_that_call_each_other_exponentially_often(tmp_path: Path) -> None:
    model = functional([activation("a", ["in", 0, 0])], [["a", 0, 0]])
    for i in range(14):
        name = f"m{i}"
        calls = [[["in", 0, 0, {}]]] + [[[name, j, 0, {}]] for j in range(7)]
        layer = {**model, "name": name, "inbound_nodes": calls}
        model = functional([layer], [[name, 7, 0]])
    message = refusal(write_model(tmp_path / "m.h5", model, {}))
    assert "more than 50000 operations" in message


def test_a_model_that_leads_round_in_a_circle(tmp_path: Path) -> None:
    layers = [activation("a", ["b", 0, 0]), activation("b", ["a", 0, 0])]
    config = functional(layers, [["b", 0, 0]])
    assert "circle" in refusal(write_model(tmp_path / "m.h5", config, {}))


@pytest.mark.parametrize(
    "layer",
    [
        ("RepeatVector", {"n": 10**30}),
        ("Reshape", {"target_shape": [10**9, 10**9]}),
        ("Reshape", {"target_shape": [-1, 0]}),
        ("Dense", {"units": 10**12}),
        ("Dense", {"units": -1}),
        ("Dense", {"units": "4"}),
        ("Activation", {"activation": {"class_name": ["x"], "config": {}}}),
        ("LeakyReLU", {"alpha": float("nan")}),
    ],
)
def test_settings_that_keras_could_not_have_written(tmp_path: Path, layer: tuple) -> None:
    weights = {"layer0": DENSE_WEIGHTS} if layer[0] == "Dense" else {}
    path = write_model(tmp_path / "m.h5", sequential(layer), weights)
    assert f"layer 'layer0' ({layer[0]})" in refusal(path)


@pytest.mark.parametrize(
    "layer",
    [
        ("UpSampling2D", {"size": [100_000, 100_000]}),
        ("ZeroPadding2D", {"padding": 1_000_000}),
        ("MaxPooling2D", {"pool_size": 1_000_000, "padding": "same"}),
        ("Resizing", {"height": 100_000, "width": 100_000, "interpolation": "nearest"}),
        ("Cropping2D", {"cropping": 100}),
        ("Conv2D", {"filters": 1, "kernel_size": 1_000_000, "padding": "same"}),
    ],
)
def test_windows_and_images_of_enormous_size(tmp_path: Path, layer: tuple) -> None:
    config = sequential(layer)
    config["config"]["layers"][0]["config"]["batch_shape"] = [None, 8, 8, 1]
    refusal(write_model(tmp_path / "m.h5", config, {"layer0": DENSE_WEIGHTS}))


@pytest.mark.parametrize("broken", ["[]", "null", '{"class_name": 3}', "{", '"x"', "NaN"])
def test_a_configuration_that_is_no_model(tmp_path: Path, broken: str) -> None:
    refusal(write_model(tmp_path / "m.h5", broken, {}))


# --- HDF5 ------------------------------------------------------------------------------


def spoil(path: Path) -> Path:
    """A good model whose kernel is taken out, for a test to put something else in."""
    write_model(path, sequential(DENSE), {"layer0": DENSE_WEIGHTS})
    with h5py.File(path, "r+") as file:
        del file["model_weights/layer0/kernel:0"]
    return path


def test_a_kernel_behind_an_external_link(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as other:
        other["kernel"] = np.ones((4, 2), np.float32)
    path = spoil(tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        link = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/kernel")
        file["model_weights/layer0/kernel:0"] = link
    assert "link elsewhere" in refusal(path)


def test_a_kernel_behind_a_soft_link(tmp_path: Path) -> None:
    path = spoil(tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        file["other"] = np.ones((4, 2), np.float32)
        file["model_weights/layer0/kernel:0"] = h5py.SoftLink("/other")
    assert "link elsewhere" in refusal(path)


def test_a_kernel_that_reads_the_bytes_of_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(32))
    path = spoil(tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights/layer0"].create_dataset(
            "kernel:0", (4, 2), np.float32, external=[(str(tmp_path / "secret"), 0, 32)]
        )
    assert "outside of the file" in refusal(path)


def test_a_kernel_that_is_a_virtual_dataset(tmp_path: Path) -> None:
    path = spoil(tmp_path / "m.h5")
    layout = h5py.VirtualLayout((4, 2), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (4, 2))
    with h5py.File(path, "r+") as file:
        file["model_weights/layer0"].create_virtual_dataset("kernel:0", layout)
    assert "outside of the file" in refusal(path)


def test_a_small_file_whose_kernel_claims_terabytes(tmp_path: Path) -> None:
    path = spoil(tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights/layer0"].create_dataset(
            "kernel:0", (1 << 20, 1 << 20), np.float32, chunks=(1 << 10, 1 << 10)
        )
    assert "far more than the file holds" in refusal(path)


@pytest.mark.parametrize("name", ["/model_weights/layer0/bias:0", "../bias:0", "", ".", "a//b"])
def test_a_weight_name_that_points_elsewhere(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path / "m.h5", sequential(DENSE), {"layer0": DENSE_WEIGHTS})
    with h5py.File(path, "r+") as file:
        file["model_weights/layer0"].attrs["weight_names"] = [name.encode(), b"bias:0"]
    assert "weight" in refusal(path)


def test_a_kernel_of_text(tmp_path: Path) -> None:
    path = spoil(tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        file["model_weights/layer0/kernel:0"] = ["a", "b"]
    assert "not an array of numbers" in refusal(path)


# --- zip -------------------------------------------------------------------------------


def keras_zip(path: Path, config: bytes | None, weights: bytes | None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        if config is not None:
            archive.writestr("config.json", config)
        if weights is not None:
            archive.writestr("model.weights.h5", weights)
    return path


CONFIG = json.dumps(sequential(DENSE)).encode()


def test_a_configuration_that_is_a_zip_bomb(tmp_path: Path) -> None:
    path = keras_zip(tmp_path / "m.keras", b" " * (80 << 20), b"")
    assert "unpacks to more than" in refusal(path)


def test_weights_that_are_a_zip_bomb(tmp_path: Path) -> None:
    path = keras_zip(tmp_path / "m.keras", CONFIG, bytes(400 << 20))
    assert "unpacks to far too much" in refusal(path)


def test_a_zip_that_is_no_model(tmp_path: Path) -> None:
    assert "config.json is missing" in refusal(keras_zip(tmp_path / "m.keras", None, b""))


def test_weights_in_a_pickled_form_are_never_opened(tmp_path: Path) -> None:
    path = keras_zip(tmp_path / "m.keras", CONFIG, None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model.weights.npz", b"\x80\x04.")
    assert "other than model.weights.h5" in refusal(path)


def test_weights_that_are_not_hdf5(tmp_path: Path) -> None:
    assert "damaged" in refusal(keras_zip(tmp_path / "m.keras", CONFIG, b"nothing"))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_zip(tmp_path: Path, part: float) -> None:
    whole = (FILES / "nested_keras3_keras.keras").read_bytes()
    path = tmp_path / "cut.keras"
    path.write_bytes(whole[: int(len(whole) * part)])
    refusal(path)


def test_bytes_changed_at_random_never_end_in_a_traceback(tmp_path: Path) -> None:
    from converters import ConversionError, convert

    random = np.random.default_rng(7)
    for name in ("nested_keras3_keras.keras", "residual_tf_keras2_h5.h5"):
        whole = np.frombuffer((FILES / name).read_bytes(), np.uint8)
        for trial in range(40):
            spoilt = whole.copy()
            places = random.integers(0, len(spoilt), 1 + trial)
            spoilt[places] = random.integers(0, 256, len(places))
            path = tmp_path / name
            path.write_bytes(spoilt.tobytes())
            with contextlib.suppress(ConversionError):
                convert(path)
