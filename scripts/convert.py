#!/usr/bin/env python3
"""Converts a Keras model file to ONNX and prints what is in it.

python scripts/convert.py model.h5                 writes model.onnx beside it
python scripts/convert.py model.h5 --check xy.npz  and compares with Keras' own outputs

The table's last column says who runs a layer: the engines that can, "client" for a final
activation such as softmax, "none" where no engine can, and "-" where nothing is left to
compute (inputs, Dropout). A BatchNormalization is run by engines, be it folded or not.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from pathlib import Path

import numpy as np

from converters import ConversionError, Converted, convert
from privserve.support import Support
from privserve.text_table import table

TOLERANCE = 1e-4  # relative to the largest output


def main() -> int:
    """Exit code 0: converted; 1: converted, but --check found a difference; 2: not converted."""
    arguments = _parser().parse_args()
    target: Path = arguments.output or arguments.model.with_suffix(".onnx")
    try:
        if target.resolve() == arguments.model.resolve():
            raise ConversionError(f"{target}: would be overwritten; name another file with -o")
        converted = convert(
            arguments.model, arguments.architecture, arguments.input_shape, arguments.backend
        )
        _write(target, converted.onnx.SerializeToString())
        print(converted.source)
        print(_table(converted))
        for note in converted.notes:
            print(f"note: {note}")
        print(f"wrote {target}")
        if arguments.check is None:
            return 0
        return 0 if _check(converted, arguments.check) else 1
    except ConversionError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Converts a Keras model file to ONNX.")
    parser.add_argument("model", type=Path, help=".h5, .keras or .onnx")
    parser.add_argument(
        "-o", "--output", type=Path, help="where to write (default: the model's name with .onnx)"
    )
    parser.add_argument(
        "--architecture", type=Path, help="what model.to_json() wrote, for files of weights alone"
    )
    parser.add_argument(
        "--input-shape",
        type=_shape,
        help="without the batch, such as 224,224,3, for models that leave it open",
    )
    parser.add_argument(
        "--backend",
        choices=("tensorflow", "theano"),
        help="what Keras 1 ran on, for files that do not say it (default: tensorflow)",
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="NPZ",
        help="arrays x and y (x_1, y_1 for a second input or output): inputs and Keras' outputs",
    )
    return parser


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 28,28,1")
    return shape


def _write(target: Path, data: bytes) -> None:
    """Writes the whole file or none of it: a reader never sees half a model."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            partial.write_bytes(data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written: {error.strerror}") from None


def _table(converted: Converted) -> str:
    rows = [("layer", "class", "output shape", "params", "runs on")]
    support = Support(converted.onnx)
    for row in converted.layers:
        shape = ", ".join("batch" if n is None else str(n) for n in row.shape)
        where = _where(support, set(row.nodes))
        rows.append((row.name, row.class_name, f"({shape})", f"{row.parameters:,}", where))
    total = sum(row.parameters for row in converted.layers)
    return "\n".join([*table(rows, right=[3]), f"{total:,} parameters"])


def _where(support: Support, nodes: set[str]) -> str:
    """Who computes these nodes: engines, and the client for a final activation."""
    engines, is_last = support.engines(nodes), bool(nodes & support.client_nodes)
    if engines is None:
        return "client" if is_last else "-"
    return (", ".join(engines) or "none") + (", then client" if is_last else "")


def _check(converted: Converted, path: Path) -> bool:
    """Compares with the outputs in an .npz file; prints the largest differences."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{path}: not an .npz file of arrays ({error})") from None
    inputs = [f"x_{i}" if i else "x" for i in range(len(converted.inputs))]
    outputs = [f"y_{i}" if i else "y" for i in range(len(converted.outputs))]
    missing = [name for name in inputs + outputs if name not in arrays]
    if missing:
        raise ConversionError(f"{path}: the array {missing[0]!r} is missing")
    given = [arrays[name] for name in inputs]
    found = converted.predict(given if len(given) > 1 else given[0])
    is_close = True
    for name, got in zip(outputs, found if len(outputs) > 1 else [found], strict=True):
        wanted = arrays[name]
        if got.shape != wanted.shape:
            raise ConversionError(f"{path}: {name!r} is {wanted.shape}, the model's is {got.shape}")
        largest = float(np.abs(got - wanted).max(initial=0))
        relative = largest / max(float(np.abs(wanted).max(initial=0)), 1e-30)
        is_close &= relative <= TOLERANCE
        print(f"{name}: largest difference {largest:.3g} ({relative:.3g} of the largest output)")
    return is_close


if __name__ == "__main__":
    sys.exit(main())
