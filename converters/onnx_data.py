"""Weights that an ONNX file keeps in a second file beside it, as torch's exporter writes them.

A model file must not name just any file of its user's disk to be read as weights: only the
one that is called after the model itself, in the same folder, is opened.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.errors import ConversionError

MAX_BYTES = 8 << 30


def read_weights(model: onnx.ModelProto, path: Path) -> None:
    """Put the weights that lie in `path`.data (or `path`_data) into the model, in place.

    Raises: ConversionError for any other file, and for one that is missing or too short.
    """
    outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if not outside:
        return
    places = {entry.key: entry.value for entry in outside[0].external_data}
    location = places.get("location", "")
    if location not in (f"{path.name}.data", f"{path.name}_data", f"{path.stem}.data"):
        raise ConversionError(
            f"its weights are kept in a file {location!r}; only {path.name}.data is opened beside "
            "it. Save the model as one file: onnx.save(onnx.load(path), path)"
        )
    data = _opened(path.parent / location)
    for tensor in outside:
        _fill(tensor, data, location)


def _opened(path: Path) -> np.ndarray:
    """The file's bytes, mapped; links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_BYTES:
                raise ConversionError(f"its weights' file {path.name!r} is empty or too large")
            return np.memmap(file, np.uint8, "r")
    except FileNotFoundError:
        raise ConversionError(
            f"its weights are kept in a file {path.name!r}, which is not beside it; copy both"
        ) from None
    except OSError as error:
        raise ConversionError(
            f"its weights' file {path.name!r} cannot be read: {error.strerror}"
        ) from None


def _fill(tensor: onnx.TensorProto, data: np.ndarray, location: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        start = int(entries.get("offset", "0"))
        length = int(entries.get("length", "-1"))
        size = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    except (KeyError, TypeError, ValueError):
        raise ConversionError(f"the weight {tensor.name!r} is not described properly") from None
    count = size
    for n in tensor.dims:
        count *= n
    length = count if length < 0 else length
    if entries.get("location") != location or length != count or start < 0:
        raise ConversionError(f"the weight {tensor.name!r} is not described properly")
    if start + length > len(data):
        raise ConversionError(
            f"its weights' file {location!r} is too short for {tensor.name!r}; copy it again"
        )
    tensor.raw_data = data[start : start + length].tobytes()
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT
