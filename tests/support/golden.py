"""Finds the files that real Keras wrote and holds conversions against its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import converters

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "keras"
FILES = DATA / "files"
THIRD_PARTY = ROOT.parent / "shared" / "data"


def stem(path: Path) -> str:
    return path.name.split(".")[0]


def convert_fixture(path: Path) -> converters.Converted:
    architecture = path.with_name(f"{stem(path)}.json")
    return converters.convert(path, architecture if architecture.exists() else None)


def golden(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    with np.load(path) as archive:
        names = sorted(archive.files)
        return (
            [archive[n] for n in names if n.startswith("x")],
            [archive[n] for n in names if n.startswith("y")],
        )


def as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def assert_agrees(converted: converters.Converted, inputs: list, outputs: list) -> None:
    """torch, ONNX and Keras agree within 1e-5, or 1e-5 of the largest output."""
    onnx.checker.check_model(converted.onnx, full_check=True)
    session = onnxruntime.InferenceSession(converted.onnx.SerializeToString())
    feeds = {t.name: x.astype(np.float32) for t, x in zip(converted.inputs, inputs, strict=True)}
    by_runtime = session.run([t.name for t in converted.outputs], feeds)
    by_torch = as_list(converted.predict(inputs if len(inputs) > 1 else inputs[0]))
    assert len(by_torch) == len(outputs)
    for tensor, keras, ort, mine in zip(
        converted.outputs, outputs, by_runtime, by_torch, strict=True
    ):
        assert mine.dtype == np.float32
        assert mine.shape == keras.shape == (len(keras), *tensor.shape[1:])
        tolerance = 1e-5 * max(1.0, float(np.abs(keras).max()))
        np.testing.assert_allclose(mine, keras, rtol=0, atol=tolerance)
        np.testing.assert_allclose(ort, keras, rtol=0, atol=tolerance)
