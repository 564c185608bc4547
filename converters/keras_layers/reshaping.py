"""Layers that move elements and change none."""

from __future__ import annotations

from converters.graph import Graph, Value
from converters.keras_layers import settings
from converters.keras_layers.core import only
from converters.keras_layers.registry import keras_layer
from converters.network import Layer


@keras_layer("Flatten")
def flatten(graph: Graph, layer: Layer, inputs: list[Value], keras: tuple[int, int]) -> Value:
    """Keras' order of elements, both data formats."""
    value = only(inputs)
    if settings.data_format(layer.config) == "channels_first" and len(value.shape) > 1:
        value = permuted(value, (*range(1, len(value.shape)), 0))
    return graph.flatten(value)


def permuted(value: Value, axes: tuple[int, ...]) -> Value:
    """Keras' transpose: axis i of the result is axis axes[i] of `value` (no batch)."""
    places = tuple(axes.index(axis) for axis in value.axes)
    shape = tuple(value.shape[axis] for axis in axes)
    return Value(value.name, shape, shape, places)
