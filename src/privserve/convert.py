"""Convert a Keras model file to ONNX and say what is in it: privserve convert

privserve convert model.h5                 writes model.onnx beside it
privserve convert model.h5 --check xy.npz  and compares with Keras' own outputs

The table's last column says who runs a layer: the engines that can, "client" for a final
activation such as softmax, "none" where no engine can, and "-" where nothing is left to
compute (inputs, Dropout). A BatchNormalization is run by engines, be it folded or not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import ConversionError, Converted, convert
from privserve.command_lines import convert as command_line
from privserve.exit_codes import FAILED, INTERRUPTED
from privserve.support import Support
from privserve.terminal import progress, table

TOLERANCE = 1e-4
"""Of --check: relative to the largest output."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. 0: converted; 1: --check found a difference; 2: not converted."""
    options = command_line.parser().parse_args(arguments)
    try:
        return run(options)
    except ConversionError as error:
        print(f"convert: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    """Convert what the options say, and tell of it; returns the exit code."""
    target: Path = options.output or options.model.with_suffix(".onnx")
    if target.resolve() == options.model.resolve():
        raise ConversionError(f"{target}: would be overwritten; name another file with -o")
    with progress(f"converting {options.model.name}"):
        converted = convert(
            options.model, options.architecture, options.input_shape, options.backend
        )
    with progress("trying which engine runs which layer"):
        rows = layer_rows(converted)
    _write(target, converted.onnx.SerializeToString())
    told = [] if options.check is None else differences(converted, options.check)
    if options.json:
        print(json.dumps(_as_json(converted, rows, target, told)))
    else:
        print(converted.source)
        print(_table(rows))
        for note in converted.notes:
            print(f"note: {note}")
        print(f"wrote {target}")
        for one in told:
            print(one)
    return 0 if all(one.relative <= TOLERANCE for one in told) else 1


@dataclass(frozen=True)
class ShownLayer:
    """One line of the layer table."""

    name: str
    class_name: str
    shape: tuple[int | None, ...]
    """Of its output, the batch as None."""
    parameters: int
    runs_on: str

    @property
    def shape_text(self) -> str:
        """The shape as people write it."""
        return f"({', '.join('batch' if n is None else str(n) for n in self.shape)})"


def layer_rows(converted: Converted) -> list[ShownLayer]:
    """Return a model's layers and who runs them; asks every engine, which takes a second."""
    support = Support(converted.onnx)
    return [
        ShownLayer(
            row.name, row.class_name, row.shape, row.parameters, support.where(set(row.nodes))
        )
        for row in converted.layers
    ]


def _table(layers: Sequence[ShownLayer]) -> str:
    rows = [("layer", "class", "output shape", "params", "runs on")]
    for one in layers:
        parameters = f"{one.parameters:,}"
        rows.append((one.name, one.class_name, one.shape_text, parameters, one.runs_on))
    total = sum(one.parameters for one in layers)
    return "\n".join([*table(rows, right=[3]), f"{total:,} parameters"])


def _as_json(
    converted: Converted, layers: Sequence[ShownLayer], target: Path, told: Sequence[Difference]
) -> dict[str, Any]:
    return {
        "source": converted.source,
        "layers": [asdict(one) for one in layers],
        "notes": list(converted.notes),
        "wrote": str(target),
        "differences": [asdict(one) for one in told],
    }


def _write(target: Path, data: bytes) -> None:
    """Write the whole file or none of it: a reader never sees half a model."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            partial.write_bytes(data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Difference:
    """How far an output is from what Keras gave, at most."""

    output: str
    largest: float
    relative: float
    """To the largest output."""

    def __str__(self) -> str:
        said = f"{self.output}: largest difference {self.largest:.3g}"
        return f"{said} ({self.relative:.3g} of the largest output)"


def differences(converted: Converted, path: Path) -> list[Difference]:
    """Compare with the outputs in an .npz file; raises ConversionError where that cannot be."""
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
    told = []
    for name, got in zip(outputs, found if len(outputs) > 1 else [found], strict=True):
        wanted = arrays[name]
        if got.shape != wanted.shape:
            raise ConversionError(f"{path}: {name!r} is {wanted.shape}, the model's is {got.shape}")
        largest = float(np.abs(got - wanted).max(initial=0))
        relative = largest / max(float(np.abs(wanted).max(initial=0)), 1e-30)
        told.append(Difference(name, largest, relative))
    return told


if __name__ == "__main__":
    sys.exit(main())
