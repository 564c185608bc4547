"""Weights reach the layers that Keras would give them to, from whatever file."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_refusals import refusal, sequential, write_model

import converters

RANDOM = np.random.default_rng(2)
FIRST, SECOND, THIRD = (
    {"kernel:0": RANDOM.normal(size=(4, 4)), "bias:0": RANDOM.normal(size=4)} for _ in range(3)
)
DENSE = ("Dense", {"units": 4})


def expected(x: np.ndarray, *layers: dict[str, np.ndarray]) -> np.ndarray:
    for layer in layers:
        x = x @ layer["kernel:0"] + layer["bias:0"]
    return x


def samples() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def weights_alone(path: Path, weights: dict[str, dict[str, np.ndarray]]) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in weights]
        for name, arrays in weights.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [role.encode() for role in arrays]
            for role, array in arrays.items():
                group[role] = array
    return path


@pytest.mark.parametrize("names", [("layer1", "layer0"), ("layer0", "layer1"), ("a", "layer0")])
def test_legacy_weights_go_by_order_whatever_the_layers_are_called(
    names: tuple[str, str], tmp_path: Path
) -> None:
    path = weights_alone(tmp_path / "w.h5", dict(zip(names, (FIRST, SECOND), strict=True)))
    converted = converters.convert(path, sequential(DENSE, DENSE))
    np.testing.assert_allclose(
        converted.predict(samples()), expected(samples(), FIRST, SECOND), atol=1e-5
    )


def test_weights_of_more_layers_than_there_are_are_refused(tmp_path: Path) -> None:
    weights = {"layer0": FIRST, "layer1": SECOND, "layer2": THIRD}
    path = weights_alone(tmp_path / "w.h5", weights)
    assert "weights of 3 layers" in refusal(path, sequential(DENSE, DENSE))
    whole = write_model(tmp_path / "m.h5", sequential(DENSE, DENSE), weights)
    assert "weights of 3 layers" in refusal(whole)


def test_names_that_windows_joined_with_backslashes_are_read(tmp_path: Path) -> None:
    """Also in models in models."""
    inner = sequential(DENSE, name="inside")
    outer = sequential(DENSE)
    outer["config"]["layers"].append({**inner, "name": "inside"})
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, arrays in (
            ("layers\\dense", FIRST),
            ("layers\\sequential\\layers\\dense", SECOND),
        ):
            held = file.create_group(name).create_group("vars")
            for i, array in enumerate(arrays.values()):
                held[str(i)] = array
    path = tmp_path / "windows.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(outer))
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        archive.writestr("model.weights.h5", content.getvalue())
    np.testing.assert_allclose(
        converters.convert(path).predict(samples()),
        expected(samples(), FIRST, SECOND),
        atol=1e-5,
    )
