"""Normalizations with fixed statistics: affine at inference."""

from __future__ import annotations

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import settings
from converters.keras_layers.core import only, weight
from converters.keras_layers.registry import keras_layer
from converters.network import Config, Layer

EPSILON = 1e-7  # keras.config.epsilon(), below which Normalization takes no deviation


def _batch_weights(config: Config) -> tuple[str, ...]:
    scale = ("gamma",) if config.get("scale", True) else ()
    center = ("beta",) if config.get("center", True) else ()
    return (*scale, *center, "moving_mean", "moving_variance")


@keras_layer("BatchNormalization", weights=_batch_weights)
def batch_normalization(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """Any single axis, with or without gamma and beta."""
    value, config = only(inputs), layer.config
    if config.get("renorm"):
        raise ConversionError("batch renormalization (renorm=True) is not supported")
    axis = settings.axis(config, "axis", len(value.shape))
    count = value.shape[axis]
    mean = weight(layer, "moving_mean", (count,))
    variance = weight(layer, "moving_variance", (count,))
    gamma = weight(layer, "gamma", (count,)) if "gamma" in layer.weights else np.ones(count)
    beta = weight(layer, "beta", (count,)) if "beta" in layer.weights else np.zeros(count)
    # ONNX normalizes along the first axis after the batch.
    if len(value.shape) == 1:
        value = graph.flat(value)
    elif value.axes[0] != axis:
        value = graph.arranged(value, (axis, *(a for a in range(len(value.shape)) if a != axis)))
    statistics = {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": variance}
    constants = [
        graph.constant(array if value.order is None else array[value.order], name)
        for name, array in statistics.items()
    ]
    epsilon = settings.number(config, "epsilon", 1e-3)
    name = graph.emit("BatchNormalization", [value.name, *constants], epsilon=epsilon)
    return graph.value_like(value, name)


def _statistics(config: Config) -> tuple[str, ...]:
    return () if config.get("mean") is not None else ("mean", "variance", "count")


@keras_layer("Normalization", weights=_statistics)
def normalization(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """Adapted or given statistics, any axes, invert."""
    value, config = only(inputs), layer.config
    rank = len(value.shape)
    listed = config.get("axis", -1)
    listed = [] if listed is None else listed if isinstance(listed, list | tuple) else [listed]
    axes = [settings.axis({"axis": axis}, "axis", rank) for axis in listed]
    shape = tuple(n if axis in axes else 1 for axis, n in enumerate(value.shape))
    kept = tuple(n for axis, n in enumerate(value.shape) if axis in axes)
    if "mean" in layer.weights:
        mean = weight(layer, "mean", kept)
        variance = weight(layer, "variance", kept)
    else:
        mean, variance = settings.array(config, "mean"), settings.array(config, "variance")
    try:
        mean = np.broadcast_to(mean.reshape(shape) if mean.size > 1 else mean, shape)
        variance = np.broadcast_to(
            variance.reshape(shape) if variance.size > 1 else variance, shape
        )
    except ValueError:
        raise ConversionError(f"its mean and variance do not fit its input {value.shape}") from None
    deviation = np.maximum(np.sqrt(variance.astype(np.float64)), EPSILON)
    if config.get("invert"):
        value = graph.with_constant("Mul", value, deviation, "deviation")
        return graph.with_constant("Add", value, mean, "mean")
    value = graph.with_constant("Sub", value, mean, "mean")
    return graph.with_constant("Mul", value, 1 / deviation, "inverse_deviation")


@keras_layer("Rescaling")
def rescaling(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """scale and offset, single or per channel."""
    value = only(inputs)
    scale = settings.array(layer.config, "scale")
    offset = settings.array(layer.config, "offset", 0.0)
    try:
        for array in (scale, offset):
            np.broadcast_to(array, value.shape)
    except ValueError:
        raise ConversionError(f"its scale and offset do not fit its input {value.shape}") from None
    if np.any(scale != 1):
        value = graph.with_constant("Mul", value, scale, "scale")
    return graph.with_constant("Add", value, offset, "offset") if np.any(offset != 0) else value
