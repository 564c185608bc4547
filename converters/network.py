"""A Keras model of any generation as plain data: layers, and calls of layers on tensors.

`keras_config` reads it from a model's configuration; the weights come in afterwards. A model
inside a model is a layer that holds a `Network` of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Config = dict[str, Any]
"""Settings as Keras writes them: what a JSON object holds."""

Ref = tuple[str, int, int]
"""A tensor: the layer it comes from, the number of its call, the number of the call's output."""


@dataclass(frozen=True)
class TensorAt:
    """Stands for a tensor in arguments: its place in `Arguments.tensors`."""

    place: int


@dataclass
class Arguments:
    """The arguments of one call, tensors replaced by `TensorAt`, slices and arrays made such."""

    tensors: list[Ref] = field(default_factory=list)
    positional: list[Any] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)

    def add(self, ref: Ref) -> TensorAt:
        """Add a tensor, and return what stands for it."""
        self.tensors.append(ref)
        return TensorAt(len(self.tensors) - 1)


@dataclass
class Layer:
    """One layer: its settings, and its weights by role once they are read.

    operation: for what Keras writes when arithmetic is done on its tensors, the operation's
        name in `keras_operations`.
    """

    name: str
    class_name: str
    config: Config
    weights: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    network: Network | None = None
    operation: str | None = None

    @property
    def place(self) -> str:
        """How error messages name the layer."""
        return f"layer {self.name!r} ({self.class_name})"


@dataclass
class Call:
    """`layer` applied, as its `number`-th call, to the tensors `inputs`.

    is_keras3: whether it is written the way of Keras 3.
    arguments: for operations, what they are called with.
    """

    layer: Layer
    number: int
    inputs: list[Ref]
    is_keras3: bool = False
    arguments: Arguments | None = None


@dataclass
class Network:
    """A model: its layers in file order, its calls in an order that they can run in.

    keras: the version that wrote it, as (major, minor), because meanings changed.
    """

    name: str
    layers: list[Layer]
    calls: list[Call]
    inputs: list[Ref]
    outputs: list[Ref]
    keras: tuple[int, int]
