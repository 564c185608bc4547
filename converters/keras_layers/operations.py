"""Operations on tensors: arithmetic, functions of each element, reductions, joins.

Those that only move elements are in `movements`, those that pick some in `picking`. Axes count
the batch, as they do in Keras' operations, though not in its layers; nothing may work across it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import activations
from converters.keras_layers.core import pointwise
from converters.keras_layers.merging import concatenated, joined
from converters.keras_layers.operands import axis_of, constant, listed, scalar, tensor
from converters.keras_operations import bind
from converters.network import Arguments, Layer, TensorAt
from converters.registry import enter

Operation = Callable[..., Symbol | list[Symbol]]
F = TypeVar("F", bound=Operation)
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[F], F]:
    """Register what the operations of these names compute: f(graph, **arguments)."""

    def register(function: F) -> F:
        entry: Operation = function
        enter(OPERATIONS, names, entry)
        return function

    return register


def operate(
    graph: Graph, layer: Layer, arguments: Arguments, inputs: Sequence[Symbol]
) -> list[Symbol]:
    """Return the outputs of an operation's call."""
    assert layer.operation is not None
    name, bound = bind(layer.operation, layer.config, arguments)
    function = OPERATIONS[name]
    known = inspect.signature(function).parameters
    unknown = sorted(set(bound) - set(known) - {"name"})
    if unknown:
        raise ConversionError(f"its argument {unknown[0]!r} is not supported")
    bound = {key: _with_values(value, inputs) for key, value in bound.items() if key in known}
    missing = [
        key
        for key, p in known.items()
        if p.default is p.empty and key not in bound and key not in ("graph", "name")
    ]
    if missing:
        raise ConversionError(f"it is called without {missing[0]!r}")
    if "name" in known:
        bound["name"] = name
    result = function(graph, **bound)
    return result if isinstance(result, list) else [result]


def _with_values(argument: Any, inputs: Sequence[Symbol]) -> Any:
    if isinstance(argument, TensorAt):
        return inputs[argument.place]
    if isinstance(argument, list):
        return [_with_values(item, inputs) for item in argument]
    return argument


# --- arithmetic --------------------------------------------------------------------------

_OPERATORS = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max",
    "minimum": "Min",
}  # fmt: skip


@operation(*_OPERATORS)
def arithmetic(graph: Graph, name: str, x1: Any, x2: Any) -> Symbol:
    operator = _OPERATORS[name]
    if isinstance(x1, Symbol) and isinstance(x2, Symbol):
        return joined(graph, operator, [x1, x2])
    if isinstance(x1, Symbol):
        return _with_constant(graph, operator, x1, constant(x2), False)
    return _with_constant(graph, operator, tensor(x2), constant(x1), True)


def _with_constant(
    graph: Graph, operator: str, value: Symbol, array: NDArray[np.float64], first: bool
) -> Symbol:
    """`value` op `array`, or, if the constant is `first`, `array` op `value`."""
    rank = len(value.shape)
    if array.ndim == rank + 1 and array.shape[0] == 1:
        array = array.reshape(array.shape[1:])
    if array.ndim > rank:
        raise ConversionError(
            f"a constant of shape {array.shape} does not fit a sample of shape {value.shape}"
        )
    try:
        fits = np.broadcast_shapes(array.shape, value.shape) == value.shape
    except ValueError:
        fits = False
    if not fits:
        raise ConversionError(
            f"a constant of shape {array.shape} does not fit a sample of shape {value.shape}"
        )
    if operator in ("Max", "Min"):
        return _bound_by(graph, operator, value, array)
    if operator == "Div" and not first:
        if not array.all():
            raise ConversionError("it divides by zero")
        operator, array = "Mul", 1 / array
    laid_out = graph.constant(graph.along(array.astype(np.float32), value), "constant")
    operands = [laid_out, value.name] if first else [value.name, laid_out]
    return replace(value, name=graph.emit(operator, operands))


def _bound_by(graph: Graph, operator: str, value: Symbol, array: NDArray[np.float64]) -> Symbol:
    """Maximum or minimum with a constant: a Clip, about the constant if it has elements."""
    lower = operator == "Max"
    if array.size == 1:
        bound = float(array.item())
        return activations.clip(graph, value, bound if lower else None, None if lower else bound)
    array = array.astype(np.float32)
    value = graph.with_constant("Sub", value, array, "constant")
    value = activations.clip(graph, value, 0.0 if lower else None, None if lower else 0.0)
    return graph.with_constant("Add", value, array, "constant")


@operation("add_n")
def add_n(graph: Graph, xs: Any) -> Symbol:
    return joined(graph, "Add", [tensor(x) for x in listed(xs)])


@operation("squared_difference")
def squared_difference(graph: Graph, x1: Any, x2: Any) -> Symbol:
    difference = arithmetic(graph, "subtract", x1, x2)
    return joined(graph, "Mul", [difference, difference])


@operation("square")
def square(graph: Graph, x: Any) -> Symbol:
    return joined(graph, "Mul", [tensor(x), tensor(x)])


@operation("power")
def power(graph: Graph, x1: Any, x2: Any) -> Symbol:
    return graph.with_constant("Pow", tensor(x1), constant(scalar(x2)), "exponent")


@operation("matmul")
def matmul(graph: Graph, x1: Any, x2: Any) -> Symbol:
    """A tensor times a constant matrix."""
    value, kernel = tensor(x1), constant(x2)
    if kernel.ndim != 2 or kernel.shape[0] != value.shape[-1]:
        raise ConversionError(
            f"a sample of shape {value.shape} is multiplied by a constant of shape {kernel.shape}; "
            "constant matrices that fit are supported"
        )
    return pointwise(graph, value, kernel.astype(np.float32), None)


# --- functions of each element -----------------------------------------------------------

_UNARY = {"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "erf": "Erf",
          "absolute": "Abs"}  # fmt: skip


@operation(*_UNARY)
def unary(graph: Graph, name: str, x: Any) -> Symbol:
    return graph.unary(_UNARY[name], tensor(x))


@operation(
    "relu", "relu6", "selu", "sigmoid", "tanh", "hard_tanh", "softplus", "softsign", "silu",
    "hard_silu", "mish", "hard_sigmoid",
)  # fmt: skip
def activation(graph: Graph, name: str, x: Any) -> Symbol:
    return activations.FUNCTIONS[name](graph, tensor(x))


@operation("relu_layer")
def relu_layer(
    graph: Graph, x: Any, negative_slope: Any = 0.0, max_value: Any = None, threshold: Any = 0.0
) -> Symbol:
    """keras.activations.relu, which is written with the options of the layer."""
    config = {"negative_slope": negative_slope, "max_value": max_value, "threshold": threshold}
    return activations.relu(graph, Layer("relu", "ReLU", config), [tensor(x)], (3, 0))


@operation("elu", "celu")
def elu(graph: Graph, name: str, x: Any, alpha: Any = 1.0) -> Symbol:
    return graph.unary(name.capitalize(), tensor(x), alpha=scalar(alpha))


@operation("leaky_relu")
def leaky_relu(graph: Graph, x: Any, negative_slope: Any) -> Symbol:
    return graph.unary("LeakyRelu", tensor(x), alpha=scalar(negative_slope))


@operation("gelu")
def gelu(graph: Graph, x: Any, approximate: Any = False) -> Symbol:
    value = tensor(x)
    if not approximate:
        return activations.gelu(graph, value)
    # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    number = np.float32
    cube = graph.with_constant("Pow", value, np.array(3, number), "three")
    cube = graph.with_constant("Mul", cube, np.array(0.044715, number), "share")
    inner = replace(value, name=graph.emit("Add", [value.name, cube.name]))
    root = np.array(math.sqrt(2 / math.pi), number)
    gate = graph.unary("Tanh", graph.with_constant("Mul", inner, root, "root"))
    gate = graph.with_constant("Add", gate, np.array(1, number), "one")
    half = graph.with_constant("Mul", value, np.array(0.5, number), "half")
    return replace(value, name=graph.emit("Mul", [half.name, gate.name]))


@operation("softmax", "log_softmax")
def softmax(graph: Graph, name: str, x: Any, axis: Any = -1) -> Symbol:
    value = tensor(x)
    op = "Softmax" if name == "softmax" else "LogSoftmax"
    return activations.softmax(graph, value, axis_of(axis, len(value.shape)), op)


@operation("rsqrt")
def rsqrt(graph: Graph, x: Any) -> Symbol:
    return graph.unary("Reciprocal", graph.unary("Sqrt", tensor(x)))


@operation("negative")
def negative(graph: Graph, x: Any) -> Symbol:
    return graph.with_constant("Mul", tensor(x), np.array(-1, np.float32), "minus_one")


@operation("identity")
def identity(graph: Graph, x: Any) -> Symbol:
    return tensor(x)


@operation("cast")
def cast(graph: Graph, x: Any, dtype: Any) -> Symbol:
    """Between floats; whole numbers would cut off what fixed point holds."""
    name = dtype if isinstance(dtype, str) else str((dtype or {}).get("config", ""))
    name = name.lower().removeprefix("dt_").removeprefix("tf.")
    floats = ("float", "float16", "float32", "float64", "double", "half", "bfloat16")
    if name not in floats:
        raise ConversionError(f"it casts to {name}; casts between floats are supported")
    return tensor(x)


@operation("clip")
def clip(graph: Graph, x: Any, x_min: Any = None, x_max: Any = None) -> Symbol:
    low, high = (None if bound is None else scalar(bound) for bound in (x_min, x_max))
    return activations.clip(graph, tensor(x), low, high)


# --- reductions --------------------------------------------------------------------------


@operation("mean", "sum", "max", "min")
def reduce(graph: Graph, name: str, x: Any, axis: Any = None, keepdims: Any = False) -> Symbol:
    value = tensor(x)
    rank = len(value.shape)
    if axis is None:
        raise ConversionError("it reduces over the batch too; name the axes of a sample")
    listed = axis.tolist() if isinstance(axis, np.ndarray) else axis
    listed = listed if isinstance(listed, list) else [listed]
    reduced = sorted({axis_of(a, rank) for a in listed})
    kept = [a for a in range(rank) if a not in reduced]
    if not kept and not keepdims:
        raise ConversionError(
            "it leaves a single number without an axis for each sample; give keepdims=True"
        )
    if not reduced:
        return value
    count = math.prod(value.shape[a] for a in reduced)
    if name == "min":
        value = negative(graph, value)
    pooled = _pooled(graph, value, kept, reduced, name)
    if name == "min":
        pooled = negative(graph, pooled)
    if name == "sum":
        pooled = graph.with_constant("Mul", pooled, np.array(count, np.float32), "count")
    shape = tuple(
        1 if a in reduced else n for a, n in enumerate(value.shape) if keepdims or a in kept
    )
    if len(shape) == 1:
        return graph.flat(graph.flatten(pooled)) if len(pooled.shape) > 1 else pooled
    return graph.reshaped(pooled, shape) if shape != pooled.shape else pooled


def _pooled(graph: Graph, value: Symbol, kept: list[int], reduced: list[int], name: str) -> Symbol:
    """A global pooling over `reduced`: in natural order, the kept axes and ones."""
    op = "GlobalMaxPool" if name in ("max", "min") else "GlobalAveragePool"
    rank = len(value.shape)
    shape = tuple(value.shape[a] for a in kept)
    # A flat value may stay in whatever order it is.
    value = graph.flat(value) if rank == 1 else graph.arranged(value, (*kept, *reduced))
    if len(kept) != 1 or len(reduced) > 2:
        rows = graph.constant(np.array([-1, math.prod(shape), _count(value, reduced)]), "rows")
        name = graph.emit(op, [graph.emit("Reshape", [value.name, rows])])
        return graph.reshaped(graph.value(name, (math.prod(shape), 1)), shape or (1,))
    return graph.value(graph.emit(op, [value.name]), (*shape, *(1 for _ in reduced)))


def _count(value: Symbol, axes: list[int]) -> int:
    return math.prod(value.shape[a] for a in axes)


# --- joins -------------------------------------------------------------------------------


@operation("concatenate")
def concatenate(graph: Graph, xs: Any, axis: Any = 0) -> Symbol:
    values = [tensor(x) for x in listed(xs)]
    return concatenated(graph, values, axis_of(axis, len(values[0].shape)))


@operation("stack")
def stack(graph: Graph, xs: Any, axis: Any = 0) -> Symbol:
    values = [tensor(x) for x in listed(xs)]
    rank = len(values[0].shape)
    place = axis_of(axis, rank + 1)
    if any(value.shape != values[0].shape for value in values):
        raise ConversionError("it stacks tensors of different shapes")
    shape = (*values[0].shape[:place], 1, *values[0].shape[place:])
    rows = [graph.reshaped(graph.natural(value), shape) for value in values]
    return concatenated(graph, rows, place)
