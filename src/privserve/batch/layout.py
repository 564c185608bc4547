"""Which file holds which rows of which output."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from privserve.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]
"""By output of the model: its shape without the batch axis."""

PART_ROWS = 65_536
PART_BYTES = 256 << 20
"""A part of a directory has fewer rows where it would be larger."""


def row_bytes(shapes: Shapes) -> int:
    """Return what the answers to one row take, as float32."""
    return 4 * sum(math.prod(shape) for shape in shapes.values())


class Layout:
    """See the module."""

    def __init__(
        self, output: Path, shapes: Shapes, rows: int, part_rows: int | None = None
    ) -> None:
        """part_rows: of a directory. Raises ConfigError for an output that cannot hold these."""
        self.output, self.shapes, self.rows = output, shapes, rows
        self.kind = {".npy": "npy", ".parquet": "parquet"}.get(output.suffix, "directory")
        if self.kind == "npy" and len(shapes) != 1:
            raise ConfigError(
                f"a .npy file holds one output, and the model has {len(shapes)}; name a directory "
                "or a .parquet file"
            )
        if output.suffix in (".npz", ".csv", ".json", ".txt"):
            raise ConfigError(
                f"no {output.suffix} can be written; name .npy, .parquet or a directory"
            )
        if self.kind == "parquet":
            import_module("privserve.batch.parquet")  # or it is missed once all rows are answered
        if part_rows is not None and self.kind != "directory":
            raise ConfigError("--part-rows is for a directory of parts")
        each = max(1, row_bytes(shapes))
        self.part_rows = part_rows or min(PART_ROWS, max(1, PART_BYTES // each))
        if self.kind != "directory":
            self.part_rows = max(1, rows)
        self.home = {
            "npy": output.parent,
            "directory": output,
            "parquet": output.with_name(output.name + ".rows"),
        }[self.kind]
        """Where the parts are."""

    def names(self, number: int) -> dict[str, str]:
        """Return the files of a part by output, as paths in `home`."""
        if self.kind == "npy":
            return {next(iter(self.shapes)): self.output.name}
        file = f"part-{number:06d}.npy"
        if len(self.shapes) == 1:
            return {next(iter(self.shapes)): file}
        return {
            name: f"{index}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}/{file}"
            for index, name in enumerate(self.shapes)
        }

    def part_size(self, number: int) -> int:
        """Return how many rows a part has once it is full."""
        return min(self.part_rows, self.rows - number * self.part_rows)

    def options(self) -> dict[str, Any]:
        """Return what may not change while a job is under way; JSON."""
        return {"output": self.kind, "part_rows": self.part_rows}


def npy_header(rows: int, shape: tuple[int, ...]) -> bytes:
    """Return what an .npy file of float32[rows, *shape] begins with."""
    buffer = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def beside(output: Path, suffix: str) -> Path:
    """Return the path of what belongs to an output, and is not in it."""
    return output.with_name(output.name + suffix)
