"""Builds an ONNX graph from layers that think in Keras' axis order.

Keras mostly keeps channels last, ONNX's convolutions want them first. A `Symbol`
therefore knows both: the shape that Keras sees, and in which order of axes the ONNX
tensor holds it. A Transpose is emitted only where a layer cannot work on the order
that it finds, so a stack of convolutions begins with one Transpose and has no more;
a Flatten in front of a Dense is paid for by permuting the kernel's rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.errors import ConversionError
from converters.onnx_nodes import IR_VERSION, OPSET, Array, needed

# Bounds that no model which can be served privately comes near; they keep the time and
# the memory that a hostile file can cost within what a user expects.
MAX_NODES = 50_000
MAX_ELEMENTS = 1 << 28

# Nodes that act on each element alone: a Transpose may be moved across them.
ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu", "Sigmoid",
     "HardSigmoid", "Tanh", "Softplus", "Softsign", "Exp"}
)  # fmt: skip


@dataclass(frozen=True)
class Symbol:
    """A tensor of the network while it is being converted: no numbers yet, but where they go.

    Shapes leave out the batch.

    name: the ONNX tensor.
    shape: the shape in Keras.
    stored: the shape, still in Keras' axis order, that the ONNX tensor holds. It
        differs from `shape` only while a Flatten is pending.
    axes: axis i of the ONNX tensor is axis axes[i] of `stored`.
    order: for one axis only: element k of the ONNX tensor is element order[k] in Keras;
        None is the identity.
    flatten: the name of the pending Flatten layer, or None.
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[int, ...]
    axes: tuple[int, ...]
    order: NDArray[np.int64] | None = None
    flatten: str | None = None

    @property
    def is_natural(self) -> bool:
        """Whether the ONNX tensor is exactly Keras' tensor."""
        return (
            self.flatten is None
            and self.order is None
            and self.axes == tuple(range(len(self.shape)))
        )

    @property
    def size(self) -> int:
        """Elements per sample."""
        return math.prod(self.shape)


class Graph:
    """An ONNX graph under construction: nodes, initializers, inputs and outputs."""

    def __init__(self) -> None:
        self.scope = ""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._inputs: list[Symbol] = []
        self._outputs: list[tuple[str, str, tuple[int, ...]]] = []  # tensor, its name, its shape
        self._used: dict[str, int] = {}  # names, and how often each was varied
        self._moved: dict[tuple[str, tuple[int, ...]], str] = {}

    # --- nodes and constants ------------------------------------------------------

    def emit(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append one node with one output and return the output's name."""
        if len(self._nodes) >= MAX_NODES:
            raise ConversionError(f"more than {MAX_NODES} operations; such models are not served")
        name = self._unique(f"{self.scope}/{op}" if self.scope else op)
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, array: Array, name: str) -> str:
        """Store an initializer; the same array under the same name is stored once."""
        # A float64 model is served in float32: fixed point holds fewer bits than either.
        dtype = np.float32 if array.dtype.kind == "f" else np.int64
        array = np.ascontiguousarray(array, dtype=dtype)
        wanted = f"{self.scope}/{name}" if self.scope else name
        known = self._constants.get(wanted)
        if known is not None and known.shape == array.shape and np.array_equal(known, array):
            return wanted
        wanted = self._unique(wanted)
        self._constants[wanted] = array
        return wanted

    def _unique(self, name: str) -> str:
        candidate = name
        while candidate in self._used:
            self._used[name] += 1
            candidate = f"{name}_{self._used[name]}"
        self._used[candidate] = 0
        return candidate

    def value(self, name: str, shape: Sequence[int], axes: Sequence[int] | None = None) -> Symbol:
        """Return the value of Keras shape `shape` that ONNX tensor `name` holds in order `axes`."""
        shape = tuple(int(n) for n in shape)
        if any(n < 1 for n in shape):
            raise ConversionError(f"its output would have the empty shape {shape}")
        if math.prod(shape) > MAX_ELEMENTS:
            raise ConversionError(f"its output of shape {shape} is too large to be served")
        return Symbol(name, shape, shape, tuple(axes) if axes else tuple(range(len(shape))))

    @staticmethod
    def value_like(value: Symbol, name: str) -> Symbol:
        """Return ONNX tensor `name`, laid out exactly as `value`."""
        return replace(value, name=name)

    def input(self, name: str, shape: Sequence[int]) -> Symbol:
        """Declare an input of the graph, in Keras' layout."""
        value = self.value(self._unique(name), shape)
        self._inputs.append(value)
        return value

    # --- layouts ------------------------------------------------------------------

    def arranged(self, value: Symbol, axes: Sequence[int]) -> Symbol:
        """Return `value` with its axes in the order `axes`; emit a Transpose if it must."""
        return self._transposed(value, tuple(axes))

    def channels_first(self, value: Symbol, data_format: str = "channels_last") -> Symbol:
        """Return `value` as (channels, *spatial), where `data_format` tells which are which."""
        rank = len(value.shape)
        if data_format == "channels_first":
            return self.arranged(value, range(rank))
        return self.arranged(value, (rank - 1, *range(rank - 1)))

    def natural(self, value: Symbol) -> Symbol:
        """Return `value` as Keras holds it."""
        if value.flatten is not None:
            identity = tuple(range(len(value.stored)))
            return self.flat(self._transposed(value, identity))
        if value.order is not None:
            places = self.constant(np.argsort(value.order), "order")
            name = self.emit("Gather", [value.name, places], axis=1)
            return self.value(name, value.shape)
        return self._transposed(value, tuple(range(len(value.shape))))

    def flat(self, value: Symbol) -> Symbol:
        """Return a value of one axis with its pending Flatten emitted; the order may stay."""
        if value.flatten is None:
            return value
        scope, self.scope = self.scope, value.flatten
        name = self._once("Flatten", value.name, ())
        self.scope = scope
        order = np.arange(value.size).reshape(value.stored).transpose(value.axes).ravel()
        is_identity = bool((order[1:] > order[:-1]).all())
        return replace(
            self.value(name, value.shape), order=None if is_identity else order.astype(np.int64)
        )

    def flatten(self, value: Symbol) -> Symbol:
        """Return Keras' Flatten. Nothing is emitted until a layer needs the flat tensor."""
        if len(value.shape) == 1:
            return value
        return replace(value, shape=(value.size,), stored=value.shape, flatten=self.scope)

    def aligned(self, values: Sequence[Symbol]) -> list[Symbol]:
        """Return the values in one common layout, for operations on pairs of elements."""
        first = next((v for v in values if not v.is_natural), values[0])

        def same_layout(value: Symbol) -> bool:
            if first.flatten is not None or value.flatten is not None:
                return first.flatten is not None and (value.stored, value.axes) == (
                    first.stored,
                    first.axes,
                )
            if first.order is not None or value.order is not None:
                return np.array_equal(first.order, value.order)  # type: ignore[arg-type]
            return first.axes == value.axes

        if all(same_layout(value) for value in values):
            return list(values)
        if len(first.shape) > 1:
            return [self.arranged(value, first.axes) for value in values]
        return [self.natural(value) for value in values]

    def along(self, array: Array, value: Symbol) -> Array:
        """Return `array`, which broadcasts against value.shape in Keras, laid out as `value` is."""
        if array.size == 1:
            return array.reshape(())
        if value.flatten is not None or value.order is not None:
            array = np.broadcast_to(array, value.shape)
            if value.order is not None:
                return array[value.order]
            return array.reshape(value.stored).transpose(value.axes)
        array = array.reshape((1,) * (len(value.shape) - array.ndim) + array.shape)
        return array.transpose(value.axes)

    def _transposed(self, value: Symbol, axes: tuple[int, ...]) -> Symbol:
        if value.axes == axes:
            return value
        moves = tuple(value.axes.index(axis) for axis in axes)
        name = self._once("Transpose", value.name, (0, *(m + 1 for m in moves)))
        return replace(value, name=name, axes=axes)

    def _once(self, op: str, source: str, perm: tuple[int, ...]) -> str:
        """A Transpose or Flatten of `source`, shared by all who ask for the same one."""
        if (source, perm) not in self._moved:
            attributes = {"perm": perm} if op == "Transpose" else {"axis": 1}
            self._moved[source, perm] = self.emit(op, [source], **attributes)
        return self._moved[source, perm]

    # --- small compositions -------------------------------------------------------

    def unary(self, op: str, value: Symbol, **attributes: Any) -> Symbol:
        """Return what an elementwise node gives: the layout stays whatever it is."""
        return replace(value, name=self.emit(op, [value.name], **attributes))

    def with_constant(self, op: str, value: Symbol, array: Array, name: str) -> Symbol:
        """Return elementwise `op` between `value` and a constant that broadcasts in Keras."""
        laid_out = self.constant(self.along(array, value), name)
        return replace(value, name=self.emit(op, [value.name, laid_out]))

    def reshaped(self, value: Symbol, shape: tuple[int, ...]) -> Symbol:
        """Return a natural value's elements in another shape."""
        result = self.value("", shape)
        target = self.constant(np.array([-1, *shape]), "shape")
        return replace(result, name=self.emit("Reshape", [value.name, target]))

    # --- the end ------------------------------------------------------------------

    @property
    def outputs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and Keras shapes of the declared outputs."""
        return [(name, shape) for _, name, shape in self._outputs]

    def output(self, value: Symbol, name: str) -> None:
        """Declare an output of the graph, in Keras' layout."""
        value = self.natural(self._with_transpose_first(value))
        self._outputs.append((value.name, self._unique(name), value.shape))

    def _with_transpose_first(self, value: Symbol) -> Symbol:
        """Move the final layout change in front of a final activation.

        Whoever serves the model strips the last Sigmoid and applies it elsewhere, so
        it has to be the last node.
        """
        last = next((node for node in self._nodes if node.output[0] == value.name), None)
        if value.is_natural or value.order is not None or last is None:
            return value
        if last.op_type not in ELEMENTWISE:
            return value
        before = self.natural(replace(value, name=last.input[0]))
        copy = onnx.NodeProto()
        copy.CopyFrom(last)
        copy.name = copy.output[0] = self._unique(f"{last.name}_out")
        copy.input[0] = before.name
        self._nodes.append(copy)
        return replace(before, name=copy.output[0])

    def model(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """Return the finished model, without the nodes and constants that nothing needs.

        The constants move into it: the builder is empty afterwards, so that the weights
        are in memory once.
        """
        model = onnx.ModelProto(
            ir_version=IR_VERSION,
            producer_name="privserve",
            opset_import=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(model, metadata)
        graph = model.graph
        graph.name = "network"
        nodes = needed(self._nodes, [tensor for tensor, _, _ in self._outputs])
        self._name_outputs(nodes)
        graph.node.extend(nodes)
        graph.input.extend(self._declared(v.name, v.shape) for v in self._inputs)
        graph.output.extend(self._declared(name, shape) for _, name, shape in self._outputs)
        used = {name for node in nodes for name in node.input}
        for name in list(self._constants):
            array = self._constants.pop(name)
            if name in used:
                graph.initializer.append(_tensor(name, array))
        return model

    def _name_outputs(self, nodes: list[onnx.NodeProto]) -> None:
        """Give the outputs their names; where a tensor has one already, by an Identity."""
        named = {value.name: value.name for value in self._inputs}
        copies = []
        for tensor, name, _ in self._outputs:
            if tensor in named:
                copies.append((tensor, name))
            else:
                named[tensor] = name
        for node in nodes:
            for names in (node.input, node.output):
                for i, tensor in enumerate(names):
                    names[i] = named.get(tensor, tensor)
        for tensor, name in copies:
            nodes.append(
                helper.make_node("Identity", [named[tensor]], [name], name=f"{name}/Identity")
            )

    @staticmethod
    def _declared(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def _tensor(name: str, array: Array) -> onnx.TensorProto:
    kind = TensorProto.FLOAT if array.dtype == np.float32 else TensorProto.INT64
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return onnx.TensorProto(
        name=name, data_type=kind, dims=array.shape, raw_data=little_endian.tobytes()
    )
