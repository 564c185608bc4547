"""What every source becomes: an ONNX model, and what people want to see of it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class LayerRow:
    """One line of the layer table.

    name: the layer, with the models that it is inside of: "encoder/conv2d".
    shape: its (first) output, the batch as None.
    nodes: the names of the ONNX nodes that it became.
    """

    name: str
    class_name: str
    shape: Shape
    parameters: int
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tensor:
    """An input or an output: its name, and its shape with the batch as None."""

    name: str
    shape: Shape


@dataclass
class Translated:
    """An ONNX model and what a user wants to see of it."""

    model: onnx.ModelProto
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[LayerRow, ...]
    notes: tuple[str, ...] = ()
    """What the source left open, or holds beside what is served."""
