"""Model files that other people trained, with what Keras answers; no part of this repository."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from serving import ROOT

import converters

FOLDER = ROOT.parent / "shared" / "data" / "wild"
INDEX = FOLDER / "index.json"


def entries(expected: str) -> list[dict[str, Any]]:
    """The index' entries of files to "convert" or to "refuse"; none where the files are absent."""
    files = json.loads(INDEX.read_text())["files"] if INDEX.exists() else []
    return [entry for entry in files if entry["expected"] == expected]


def entry_named(start: str) -> dict[str, Any]:
    """The one entry whose file name begins with `start`."""
    (entry,) = (e for e in entries("convert") if e["file"].startswith(start))
    return entry


@dataclass(frozen=True)
class Golden:
    """Inputs, and what Keras gave for them."""

    x: np.ndarray
    y: np.ndarray

    @property
    def spread(self) -> float:
        """Largest minus smallest output: what an error is small against."""
        return float(self.y.max() - self.y.min())


def convert(entry: dict[str, Any]) -> converters.Converted:
    """The converted file, with its architecture where that is a file of its own."""
    architecture = entry.get("architecture_file")
    return converters.convert(FOLDER / entry["file"], architecture and FOLDER / architecture)


def goldens(entry: dict[str, Any]) -> list[Golden]:
    """All pairs of inputs and outputs; a second pair has inputs that look like real ones."""
    with np.load(FOLDER / entry["golden"]) as archive:
        pairs = [("x", "y"), ("x_nat", "y_nat")]
        return [Golden(archive[x], archive[y]) for x, y in pairs if x in archive.files]


def range_of(inputs: np.ndarray) -> tuple[float, float]:
    """What the inputs lie in."""
    return float(inputs.min()), float(inputs.max())
