"""What a lowering works with: the tensors that its node reads, its layer and the builder.

A tensor is a constant, a value of the program, or something that is emitted only when a reader
needs it as a value: a linear op that may still be folded into, a ReLU that may come after a
maximum, or a smooth function of a value that may still become part of a larger one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from privserve.compiler import moves
from privserve.compiler.builder import ProgramBuilder
from privserve.compiler.onnx_graph import Constant
from privserve.compiler.products import linear, square
from privserve.compiler.ranges import Floats
from privserve.compiler.smooth import apply_function
from privserve.compiler.traced import Traced
from privserve.errors import ModelError
from privserve.functions import Expression
from privserve.geometry import Geometry

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class PendingLinear:
    """A linear op that may still be folded into: out = weight * x + bias, then `shape`.

    `shape` is the ONNX tensor's; channels are its first axis, or its last if `channels_last`.
    """

    x: Traced
    geometry: Geometry
    weight: Floats
    bias: Floats
    shape: tuple[int, ...]
    layer: str
    channels_last: bool = False

    def emitted(self, b: ProgramBuilder) -> Traced:
        """Emit the op, in its own layer's scope."""
        with b.scope(self.layer):
            out = linear(b, self.x, self.geometry, self.weight, self.bias)
            if self.channels_last:
                channels, positions, _ = out.shape
                out = moves.reshape(b, out, (channels, positions))
                out = moves.transpose(b, out, (1, 0))
            return moves.reshape(b, out, self.shape)


@dataclass(frozen=True)
class PendingRelu:
    """max(x, 0), not emitted yet: a maximum over windows may come before it."""

    x: Traced
    layer: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, as of the value."""
        return self.x.shape

    def emitted(self, b: ProgramBuilder) -> Traced:
        """Emit the comparison, in its own layer's scope."""
        with b.scope(self.layer):
            return b.relu(self.x)


@dataclass(frozen=True)
class SmoothFunction:
    """A smooth function of one value, not emitted yet: see `ops.functions`."""

    x: Traced
    expression: Expression
    layer: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result, as of the value."""
        return self.x.shape

    def emitted(self, b: ProgramBuilder, tolerance: float) -> Traced:
        """Emit the function, within `tolerance`, in its own layer's scope; a square is exact."""
        with b.scope(self.layer):
            if self.expression == ["mul", "x", "x"]:
                return square(b, self.x)
            return apply_function(b, self.x, self.expression, tolerance=tolerance)


Tensor = Constant | Traced | PendingLinear | PendingRelu | SmoothFunction


class Tensors:
    """The tensors of one graph while it is compiled, by name, each until its last reader."""

    def __init__(
        self,
        builder: ProgramBuilder,
        tolerance: float,
        constants: Mapping[str, Constant],
        readers: Mapping[str, int],
    ) -> None:
        """readers: how many times each tensor is read, by nodes and as an output."""
        self.builder = builder
        self.tolerance = tolerance
        self._tensors: dict[str, Tensor] = dict(constants)
        self.numbers: dict[str, int] = {}
        """The values of the program that tensors became, also once those are released."""
        self._readers = readers
        self._unread = dict(readers)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor
        if isinstance(tensor, Traced):
            self.numbers[name] = tensor.number

    def readers(self, name: str) -> int:
        """Return how many times a tensor is read."""
        return self._readers.get(name, 0)

    def constants(self, names: Iterable[str]) -> dict[str, Constant] | None:
        """Return those tensors, if all of them are constants; None otherwise."""
        found = {name: self._tensors.get(name) for name in names if name}
        constants = {n: t for n, t in found.items() if isinstance(t, np.ndarray)}
        return constants if len(constants) == len(found) else None

    def traced(self, name: str) -> Traced:
        """Return a tensor as a value; emits what it is pending on."""
        tensor = self._tensors[name]
        if isinstance(tensor, np.ndarray):
            raise ModelError(f"tensor '{name}' is a constant where a computed value is expected")
        if isinstance(tensor, PendingLinear | PendingRelu):
            tensor = self[name] = tensor.emitted(self.builder)
        if isinstance(tensor, SmoothFunction):
            tensor = self[name] = tensor.emitted(self.builder, self.tolerance)
        return tensor

    def foldable(self, name: str) -> PendingLinear | None:
        """Return the pending linear op behind a tensor, if nothing else reads it."""
        tensor = self._tensors[name]
        return tensor if isinstance(tensor, PendingLinear) and self._readers[name] == 1 else None

    def release(self, names: Iterable[str]) -> None:
        """Note that a node has read these: the ranges of a large network's are gigabytes."""
        for name in filter(None, names):
            self._unread[name] -= 1
            if not self._unread[name]:
                del self._tensors[name]


@dataclass(frozen=True)
class Lowering:
    """One node while it is lowered, in the builder's scope of its layer.

    Inputs are named by their positions.
    """

    node: onnx.NodeProto
    tensors: Tensors

    @property
    def op(self) -> str:
        """The node's ONNX op."""
        return self.node.op_type

    @property
    def layer(self) -> str:
        """The layer that errors and ops name: the node's name, or its first output's."""
        return self.node.name or self.node.output[0]

    @property
    def builder(self) -> ProgramBuilder:
        """What emits the ops."""
        return self.tensors.builder

    @property
    def tolerance(self) -> float:
        """Of the splines that stand for smooth functions."""
        return self.tensors.tolerance

    @property
    def inputs(self) -> list[str]:
        """The names of the node's inputs, "" where an optional one is absent."""
        return list(self.node.input)

    def refuse(self, why: str) -> ModelError:
        """Return an error that names the op and the node, to be raised."""
        return ModelError(f"op '{self.op}' (node '{self.layer}'): {why}")

    def unknown(self, attribute: str) -> ModelError:
        """Return an error about an attribute that would be ignored, to be raised."""
        return self.refuse(f"its attribute '{attribute}' is not supported")

    def tensor(self, position: int) -> Tensor:
        """Return an input as it is."""
        return self.tensors[self.inputs[position]]

    def constant(self, position: int) -> Constant | None:
        """Return a constant input, None where it is absent; raises ModelError if computed."""
        if position >= len(self.inputs) or not self.inputs[position]:
            return None
        tensor = self.tensor(position)
        if not isinstance(tensor, np.ndarray):
            raise self.refuse(f"its input {position} must be a constant")
        return tensor

    def traced(self, position: int) -> Traced:
        """Return an input as a value; emits what it is pending on.

        Raises ModelError for a constant.
        """
        return self.tensors.traced(self.inputs[position])

    def foldable(self, position: int) -> PendingLinear | None:
        """Return the pending linear op behind an input, if nothing else reads it."""
        return self.tensors.foldable(self.inputs[position])

    def affine(
        self, position: int, scale: Constant | float, shift: Constant | float
    ) -> Traced | PendingLinear:
        """Return scale * x + shift, folded into the linear op before it where there is one."""
        x = self.foldable(position) or self.traced(position)
        return affine(self.builder, x, scale, shift)

    def axis(self, axis: int, rank: int) -> int:
        """Return an ONNX axis, the batch's counted, as one of a value's `rank`, it not counted.

        Raises ModelError for the batch axis.
        """
        axis = axis if axis >= 0 else axis + rank + 1
        if axis == 0:
            raise self.refuse("it works across the batch")
        return axis - 1


def emitted(b: ProgramBuilder, x: Traced | PendingLinear) -> Traced:
    """Return a value, or a pending linear op as one."""
    return x.emitted(b) if isinstance(x, PendingLinear) else x


def affine(
    b: ProgramBuilder,
    x: Traced | PendingLinear,
    scale: Constant | float,
    shift: Constant | float,
) -> Traced | PendingLinear:
    """Return scale * x + shift, with secret constants that broadcast to x's shape."""
    scale, shift = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
    shape = x.shape
    axis = len(shape) - 1 if isinstance(x, PendingLinear) and x.channels_last else 0
    factor, constant = _per_channel(scale, shape, axis), _per_channel(shift, shape, axis)
    if isinstance(x, PendingLinear):
        if (
            factor is not None
            and constant is not None
            # An op that makes all of several positions at once has an output for each element.
            and {len(factor), len(constant)} <= {1, len(x.weight)}
        ):
            return replace(
                x,
                weight=x.weight * factor[:, None, None, None],
                bias=x.bias * factor + constant,
            )
        x = emitted(b, x)
    if np.all(scale == 1):
        return b.add_parameter(x, _without_batch(shift, shape))
    if scale.size == 1 and scale.item() > 0:
        x = b.with_step(x, scale.item())
        return b.add_parameter(x, _without_batch(shift, shape)) if np.any(shift) else x
    if factor is None or constant is None:
        x = moves.reshape(b, x, (math.prod(shape),))
        factor = np.broadcast_to(_without_batch(scale, shape), shape).ravel()
        constant = np.broadcast_to(_without_batch(shift, shape), shape).ravel()
    channels = x.shape[0]
    planes = (channels, math.prod(x.shape[1:]), 1)
    x = moves.reshape(b, x, planes)
    geometry = Geometry(planes, channels, groups=channels)
    return PendingLinear(x, geometry, factor.reshape(channels, 1, 1, 1), constant, shape, b.layer)


def _without_batch(constant: Floats, shape: tuple[int, ...]) -> Floats:
    """The constant without the leading axis of 1 that stands for the batch."""
    if constant.ndim == len(shape) + 1 and constant.shape[0] == 1:
        return constant.reshape(constant.shape[1:])
    return constant


def _per_channel(constant: Floats, shape: tuple[int, ...], axis: int) -> Floats | None:
    """The constant as a vector over one axis, or None if it varies along another."""
    constant = _without_batch(constant, shape)
    if constant.ndim > len(shape):
        return None
    full = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if any(d != 1 for i, d in enumerate(full.shape) if i != axis):
        return None
    vector: Floats = np.broadcast_to(full.ravel(), (shape[axis],)).astype(np.float64)
    return vector
