"""Layers that join several tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import settings
from converters.keras_layers.registry import keras_layer
from converters.network import Layer

_OPERATORS = {
    "Add": "Add",
    "Average": "Add",
    "Subtract": "Sub",
    "Multiply": "Mul",
    "Maximum": "Max",
    "Minimum": "Min",
}


@keras_layer("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
def merge(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Any number of inputs, broadcast as Keras does."""
    if not inputs or (layer.class_name == "Subtract" and len(inputs) != 2):
        raise ConversionError(f"it cannot be called on {len(inputs)} tensors")
    result = joined(graph, _OPERATORS[layer.class_name], inputs)
    if layer.class_name == "Average" and len(inputs) > 1:
        share = np.array(1 / len(inputs))
        result = graph.with_constant("Mul", result, share, "share")
    return result


def joined(graph: Graph, operator: str, inputs: Sequence[Symbol]) -> Symbol:
    """Return the values joined element by element, one after the other, broadcast as Keras does."""
    rank = max(len(value.shape) for value in inputs)
    values = [with_rank(graph, value, rank) for value in inputs]
    result = values[0]
    for value in values[1:]:
        left, right = graph.aligned([result, value])
        name = graph.emit(operator, [left.name, right.name])
        try:
            shape = np.broadcast_shapes(left.shape, right.shape)
        except ValueError:
            raise ConversionError(
                f"its inputs of shapes {left.shape} and {right.shape} do not fit together"
            ) from None
        same = left.shape == shape
        result = replace(left, name=name) if same else graph.value(name, shape, left.axes)
    return result


def with_rank(graph: Graph, value: Symbol, rank: int) -> Symbol:
    """Return `value` with axes of length 1 put in front, as Keras does before it merges."""
    if len(value.shape) == rank:
        return value
    value = graph.natural(value)
    shape = (1,) * (rank - len(value.shape)) + value.shape
    return graph.reshaped(value, shape)


@keras_layer("CustomScaleLayer")
def scaled_residual(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """Of Keras' InceptionResNetV2: the first input and a part of the second."""
    if len(inputs) != 2:
        raise ConversionError(f"it is called on {len(inputs)} tensors instead of two")
    scale = layer.config.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ConversionError(f"its scale {scale!r} is not a number")
    part = graph.with_constant("Mul", inputs[1], np.array(float(scale)), "scale")
    return merge(graph, Layer(layer.name, "Add", {}), [inputs[0], part], keras)


@keras_layer("Concatenate")
def concatenate(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Any axis but the batch."""
    if not inputs:
        raise ConversionError("it is called on nothing")
    return concatenated(graph, inputs, settings.axis(layer.config, "axis", len(inputs[0].shape)))


def concatenated(graph: Graph, inputs: list[Symbol], axis: int) -> Symbol:
    """Return the values one after the other along an axis that does not count the batch."""
    rank = len(inputs[0].shape)
    rests = {value.shape[:axis] + value.shape[axis + 1 :] for value in inputs}
    if len(rests) > 1 or any(len(value.shape) != rank for value in inputs):
        shapes = ", ".join(str(value.shape) for value in inputs)
        raise ConversionError(f"its inputs of shapes {shapes} do not fit together")
    if len(inputs) == 1:
        return inputs[0]
    length = sum(value.shape[axis] for value in inputs)
    if rank == 1:
        return _concatenate_features(graph, inputs, length)
    values = graph.aligned(inputs)
    axes = values[0].axes
    name = graph.emit("Concat", [value.name for value in values], axis=axes.index(axis) + 1)
    shape = (*values[0].shape[:axis], length, *values[0].shape[axis + 1 :])
    return graph.value(name, shape, axes)


def _concatenate_features(graph: Graph, inputs: list[Symbol], length: int) -> Symbol:
    """Flat tensors one after the other; each may be in an order of its own."""
    values = [graph.flat(value) for value in inputs]
    name = graph.emit("Concat", [value.name for value in values], axis=1)
    result = graph.value(name, (length,))
    if all(value.order is None for value in values):
        return result
    orders, start = [], 0
    for value in values:
        order = np.arange(value.size) if value.order is None else value.order
        orders.append(order + start)
        start += value.size
    return replace(result, order=np.concatenate(orders).astype(np.int64))
