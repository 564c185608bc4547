"""Operations used as layers: arithmetic with tensors and constants, slices, reductions.

One function per operation, under Keras' name for it; `converters.operations` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.graph import Graph, Value
from converters.keras_layers import activations, merging, reshaping
from converters.keras_layers.registry import keras_layer
from converters.network import Layer
from converters.operations import Slot

Array = NDArray[Any]


class Given:
    """An operation's arguments, tensors put in their places."""

    def __init__(self, config: dict[str, Any], inputs: Sequence[Value]) -> None:
        self._positional = [_filled(a, inputs) for a in config["positional"]]
        self._named = {k: _filled(v, inputs) for k, v in config["named"].items()}

    def get(self, position: int, *names: str, default: Any = None) -> Any:
        """The argument at a position, or by any of its names."""
        if position < len(self._positional):
            return self._positional[position]
        return next((self._named[n] for n in names if self._named.get(n) is not None), default)

    def tensor(self, position: int = 0, *names: str) -> Value:
        """An argument that is a tensor."""
        value = self.get(position, *names, "x", "input_tensor", "input", "features", "tensor")
        if not isinstance(value, Value):
            raise ConversionError("it is called on something that is not a tensor")
        return value

    def number(self, position: int, *names: str, default: float) -> float:
        """An argument that is a number."""
        value = self.get(position, *names, default=default)
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConversionError(f"its argument {names[0]!r} is {value!r}, not a number")
        return float(value)


def _filled(value: Any, inputs: Sequence[Value]) -> Any:
    if isinstance(value, Slot):
        return inputs[value.number]
    if isinstance(value, list | tuple):
        return [_filled(item, inputs) for item in value]
    return value


Emit = Callable[[Graph, Given, tuple[int, int]], Value]
OPERATIONS: dict[str, Emit] = {}


def operation(*names: str) -> Callable[[Emit], Emit]:
    """Register the meaning of operations."""

    def register(function: Emit) -> Emit:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return register


@keras_layer("Operation")
def operation_layer(
    graph: Graph, layer: Layer, inputs: list[Value], keras: tuple[int, int]
) -> Value:
    """`x + y`, `1 - x`, `x[:, 1:]`, `keras.ops.mean(x, 1)` and the like, as layers in a file.

    Arithmetic, slices, activations, joining, reshaping, and what reduces along axes.
    """
    name = layer.config["function"]
    if name not in OPERATIONS:
        raise ConversionError(
            f"the operation {name!r} is not supported; these are: {', '.join(sorted(OPERATIONS))}"
        )
    return OPERATIONS[name](graph, Given(layer.config, inputs), keras)


# --- arithmetic ------------------------------------------------------------------------


def _constant(value: Any, other: Value) -> Array:
    """A constant operand without the batch axis that it may have."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ConversionError(f"it calculates with {value!r}, which is not a number")
    if array.ndim > len(other.shape) and array.shape[0] == 1:
        array = array[0]
    try:
        fits = np.broadcast_shapes(array.shape, other.shape) == other.shape
    except ValueError:
        fits = False
    if not fits:
        raise ConversionError(f"a constant of shape {array.shape} does not fit {other.shape}")
    return array.astype(np.float32)


def _merged(class_name: str) -> Emit:
    op = merging.OPERATORS[class_name]

    def emit(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
        x, y = given.get(0, "x1", "x", "a"), given.get(1, "x2", "y", "b")
        if isinstance(x, Value) and isinstance(y, Value):
            return merging.merge(graph, Layer(class_name, class_name, {}), [x, y], keras)
        if isinstance(x, Value):
            if op in ("Max", "Min"):
                return _bounded(graph, x, y, op)
            return graph.with_constant(op, x, _constant(y, x), "constant")
        if not isinstance(y, Value):
            raise ConversionError("it calculates with constants only")
        if op in ("Max", "Min"):
            return _bounded(graph, y, x, op)
        if op == "Sub":
            y = graph.with_constant("Mul", y, np.array(-1.0, np.float32), "minus")
            op_here = "Add"
        else:
            op_here = op
        return graph.with_constant(op_here, y, _constant(x, y), "constant")

    return emit


def _bounded(graph: Graph, value: Value, bound: Any, op: str) -> Value:
    array = _constant(bound, value)
    if array.size != 1:
        raise ConversionError("a maximum or minimum with several constants is not supported")
    low, high = (array.item(), None) if op == "Max" else (None, array.item())
    return activations.clip(graph, value, low, high)


for _name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum"):
    operation(_name.lower())(_merged(_name))


@operation("divide")
def divide(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    x, y = given.get(0, "x1", "x", "a"), given.get(1, "x2", "y", "b")
    if isinstance(x, Value) and isinstance(y, Value):
        left, right = graph.aligned([x, y])
        if left.shape != right.shape:
            raise ConversionError("it divides tensors of unlike shapes")
        return replace(left, name=graph.emit("Div", [left.name, right.name]))
    if isinstance(x, Value):
        return graph.with_constant("Div", x, _constant(y, x), "constant")
    if not isinstance(y, Value):
        raise ConversionError("it calculates with constants only")
    inverse = graph.unary("Reciprocal", y)
    array = _constant(x, y)
    return inverse if np.all(array == 1) else graph.with_constant("Mul", inverse, array, "constant")


@operation("negative")
def negative(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    return graph.with_constant("Mul", given.tensor(), np.array(-1.0, np.float32), "minus")


@operation("square")
def square(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    x = given.tensor()
    return replace(x, name=graph.emit("Mul", [x.name, x.name]))


@operation("power")
def power(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    x = given.tensor(0, "x1")
    exponent = given.number(1, "x2", "y", default=1.0)
    return graph.with_constant("Pow", x, np.array(exponent, np.float32), "exponent")


@operation("rsqrt")
def rsqrt(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    return graph.unary("Reciprocal", graph.unary("Sqrt", given.tensor()))


def _unary(op: str) -> Emit:
    return lambda graph, given, keras: graph.unary(op, given.tensor())


for _name, _op in {
    "abs": "Abs",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
}.items():
    operation(_name)(_unary(_op))


@operation("clip")
def clip(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    low = given.number(1, "x_min", "clip_value_min", default=-np.inf)
    high = given.number(2, "x_max", "clip_value_max", default=np.inf)
    bounds = [None if np.isinf(bound) else bound for bound in (low, high)]
    return activations.clip(graph, given.tensor(0, "t"), *bounds)


@operation("identity")
def identity(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    return given.tensor(0, "value")


# --- activations -----------------------------------------------------------------------


def _activation(name: str) -> Emit:
    return lambda graph, given, keras: activations.function_named(name, (3, 0))(
        graph, given.tensor()
    )


for _name in (
    "relu", "relu6", "sigmoid", "tanh", "softplus", "softsign", "silu", "mish", "selu",
    "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh",
):  # fmt: skip
    operation(_name)(_activation(_name))


@operation("elu", "celu")
def elu(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    return graph.unary("Elu", given.tensor(), alpha=given.number(1, "alpha", default=1.0))


@operation("leaky_relu")
def leaky_relu(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    slope = given.number(1, "negative_slope", "alpha", default=0.2)
    return graph.unary("LeakyRelu", given.tensor(), alpha=slope)


@operation("gelu")
def gelu(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    # Keras approximates by default, TensorFlow does not.
    approximate = given.get(1, "approximate", default=keras[0] >= 3)
    if not approximate:
        return activations.gelu(graph, given.tensor())
    x = given.tensor()
    cube = replace(x, name=graph.emit("Mul", [graph.emit("Mul", [x.name, x.name]), x.name]))
    bend = graph.with_constant("Mul", cube, np.array(0.044715, np.float32), "cubic")
    total = replace(x, name=graph.emit("Add", [x.name, bend.name]))
    scale = np.array(np.sqrt(2 / np.pi), np.float32)
    gate = graph.unary("Tanh", graph.with_constant("Mul", total, scale, "scale"))
    more = graph.with_constant("Add", gate, np.array(1, np.float32), "one")
    half = graph.with_constant("Mul", x, np.array(0.5, np.float32), "half")
    return replace(x, name=graph.emit("Mul", [half.name, more.name]))


@operation("softmax", "log_softmax")
def softmax(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    x = given.tensor(0, "logits")
    axis = given.get(1, "axis", default=-1)
    return activations.softmax(graph, x, _axis(axis, len(x.shape)))


# --- shapes ----------------------------------------------------------------------------


def _axis(axis: Any, rank: int) -> int:
    """An axis of the sample from one that counts the batch."""
    if isinstance(axis, list | tuple) and len(axis) == 1:
        axis = axis[0]
    if type(axis) is not int or not -rank - 1 <= axis <= rank:
        raise ConversionError(f"its axis {axis!r} does not exist")
    place: int = axis if axis >= 0 else axis + rank + 1
    if place == 0:
        raise ConversionError("it works across the batch")
    return place - 1


@operation("concatenate")
def concatenate(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    values = _tensors(given.get(0, "xs", "values"))
    axis = _axis(given.get(1, "axis", default=0), len(values[0].shape))
    layer = Layer("concatenate", "Concatenate", {"axis": axis + 1})
    return merging.concatenate(graph, layer, values, keras)


@operation("stack")
def stack(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    values = _tensors(given.get(0, "x", "xs", "values"))
    axis = _axis(given.get(1, "axis", default=0), len(values[0].shape) + 1)
    expanded = [_with_axis(graph, value, axis) for value in values]
    layer = Layer("stack", "Concatenate", {"axis": axis + 1})
    return merging.concatenate(graph, layer, expanded, keras)


def _tensors(values: Any) -> list[Value]:
    found = values if isinstance(values, list) else [values]
    if not found or not all(isinstance(value, Value) for value in found):
        raise ConversionError("it joins something that is not a tensor")
    return found


def _with_axis(graph: Graph, value: Value, axis: int) -> Value:
    shape = (*value.shape[:axis], 1, *value.shape[axis:])
    return graph.reshaped(graph.natural(value), shape)


@operation("expand_dims")
def expand_dims(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    x = given.tensor()
    return _with_axis(graph, x, _axis(given.get(1, "axis", default=-1), len(x.shape) + 1))


@operation("squeeze")
def squeeze(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    x = given.tensor()
    axes = given.get(1, "axis")
    if axes is None:
        gone = {i for i, d in enumerate(x.shape) if d == 1}
    else:
        gone = {_axis(a, len(x.shape)) for a in (axes if isinstance(axes, list) else [axes])}
    if any(x.shape[axis] != 1 for axis in gone):
        raise ConversionError("it drops axes that are longer than 1")
    shape = tuple(d for i, d in enumerate(x.shape) if i not in gone)
    return graph.reshaped(graph.natural(x), shape)


@operation("reshape")
def reshape(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    shape = given.get(1, "newshape", "shape")
    if not isinstance(shape, list) or not shape or shape[0] not in (-1, None):
        raise ConversionError(
            f"it reshapes to {shape!r}; the batch has to stay the first axis (-1)"
        )
    layer = Layer("reshape", "Reshape", {"target_shape": shape[1:]})
    return reshaping.reshape(graph, layer, [given.tensor()], keras)


@operation("transpose")
def transpose(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    x = given.tensor(0, "a")
    order = given.get(1, "axes", "perm")
    if not isinstance(order, list) or not order or order[0] != 0:
        raise ConversionError("it moves the batch axis")
    axes = tuple(_axis(a, len(x.shape)) for a in order[1:])
    if sorted(axes) != list(range(len(x.shape))):
        raise ConversionError(f"its order {order} is no order of its input's axes")
    natural = graph.natural(x)
    return natural if len(axes) == 1 else reshaping.permuted(natural, axes)


@operation("getitem")
def getitem(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
    """Slices, single places, new axes and an ellipsis; the batch stays whole."""
    x = graph.natural(given.tensor())
    key = given.get(1, "key", "slice_spec")
    keys = _expanded(key if isinstance(key, list) else [key], len(x.shape) + 1)
    if keys[0] != slice(None):
        raise ConversionError("it picks samples out of the batch")
    shape: list[int] = []
    axis = 0
    for item in keys[1:]:
        if item is None:
            shape.append(1)
            continue
        size = x.shape[axis]
        if type(item) is int:
            if not -size <= item < size:
                raise ConversionError(f"it picks element {item} of {size}")
            rows = [item % size]
        elif isinstance(item, slice) and all(
            v is None or type(v) is int for v in (item.start, item.stop, item.step)
        ):
            rows = list(range(size)[item])
            shape.append(len(rows))
        else:
            raise ConversionError(f"it is indexed by {item!r}, which is not supported")
        x = _rows(graph, x, axis, rows)
        axis += 1
    return x if tuple(shape) == x.shape else graph.reshaped(x, tuple(shape))


def _expanded(keys: list[Any], rank: int) -> list[Any]:
    """The keys with an ellipsis, or nothing at the end, spelled out."""
    used = sum(key is not None and key is not Ellipsis for key in keys)
    if used > rank or sum(key is Ellipsis for key in keys) > 1:
        raise ConversionError("it has more indices than there are axes")
    rest = [slice(None)] * (rank - used)
    at = next((i for i, key in enumerate(keys) if key is Ellipsis), len(keys))
    return [*keys[:at], *rest, *keys[at + 1 :]]


def _rows(graph: Graph, x: Value, axis: int, rows: list[int]) -> Value:
    if rows == list(range(x.shape[axis])):
        return x
    shape = (*x.shape[:axis], len(rows), *x.shape[axis + 1 :])
    out = graph.value("", shape)
    steps = {b - a for a, b in pairwise(rows)}
    if len(rows) == 1 or (len(steps) == 1 and min(steps) > 0):
        step = steps.pop() if steps else 1
        ends = [
            graph.constant(np.array([n]), name)
            for n, name in (
                (rows[0], "start"),
                (rows[-1] + 1, "stop"),
                (axis + 1, "axis"),
                (step, "step"),
            )
        ]
        return replace(out, name=graph.emit("Slice", [x.name, *ends]))
    places = graph.constant(np.array(rows), "places")
    return replace(out, name=graph.emit("Gather", [x.name, places], axis=axis + 1))


# --- reductions ------------------------------------------------------------------------


def _reduced(op: str) -> Emit:
    def emit(graph: Graph, given: Given, keras: tuple[int, int]) -> Value:
        x = graph.natural(given.tensor())
        axes = given.get(1, "axis")
        if axes is None:
            raise ConversionError("it works across the batch; name the axes")
        listed = axes if isinstance(axes, list) else [axes]
        gone = sorted({_axis(a, len(x.shape)) for a in listed})
        keep = bool(given.get(2, "keepdims", default=False))
        if len(gone) == len(x.shape) and not keep:
            raise ConversionError("nothing is left of a sample; reduce with keepdims=True")
        shape = tuple(1 if i in gone else d for i, d in enumerate(x.shape) if keep or i not in gone)
        numbers = [axis + 1 for axis in gone]
        if op == "ReduceSum":
            names = [x.name, graph.constant(np.array(numbers), "axes")]
            name = graph.emit(op, names, keepdims=int(keep))
        else:
            name = graph.emit(op, [x.name], axes=numbers, keepdims=int(keep))
        return graph.value(name, shape)

    return emit


for _name, _op in {
    "mean": "ReduceMean",
    "sum": "ReduceSum",
    "max": "ReduceMax",
    "min": "ReduceMin",
}.items():
    operation(_name)(_reduced(_op))
