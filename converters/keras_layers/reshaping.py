"""Layers that move, repeat, drop or interpolate elements."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import settings
from converters.keras_layers.core import only
from converters.keras_layers.registry import keras_layer
from converters.keras_layers.window import spatial_axes
from converters.network import Layer


@keras_layer("Flatten")
def flatten(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Keras' order of elements, both data formats."""
    value = only(inputs)
    if settings.data_format(layer.config) == "channels_first" and len(value.shape) > 1:
        value = permuted(value, (*range(1, len(value.shape)), 0))
    return graph.flatten(value)


@keras_layer("Reshape")
def reshape(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Any target shape, also with -1."""
    value = only(inputs)
    target = layer.config.get("target_shape")
    if isinstance(target, dict):
        target = target.get("items")
    if not isinstance(target, list | tuple) or not all(type(n) is int for n in target):
        raise ConversionError(f"its target_shape {target!r} is malformed")
    shape = list(target)
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and known > 0 and value.size % known == 0:
        shape[shape.index(-1)] = value.size // known
    if not shape or min(shape) < 1 or math.prod(shape) != value.size:
        raise ConversionError(f"its target_shape {target} does not fit its input {value.shape}")
    if len(shape) == 1:
        return graph.flatten(value)
    return graph.reshaped(graph.natural(value), tuple(shape))


@keras_layer("Permute")
def permute(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Any order of the axes; costs nothing until a layer needs another layout."""
    value = only(inputs)
    dims = settings.integers(layer.config, "dims", len(value.shape))
    axes = tuple(n - 1 for n in dims)
    if sorted(axes) != list(range(len(axes))):
        raise ConversionError(f"its dims {dims} are no order of its input's axes")
    return value if len(axes) == 1 else permuted(value, axes)


def permuted(value: Symbol, axes: tuple[int, ...]) -> Symbol:
    """Return Keras' transpose: axis i of the result is axis axes[i] of `value` (no batch)."""
    places = tuple(axes.index(axis) for axis in value.axes)
    shape = tuple(value.shape[axis] for axis in axes)
    return Symbol(value.name, shape, shape, places)


@keras_layer("RepeatVector")
def repeat_vector(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """n."""
    value = only(inputs)
    count = settings.integer(layer.config, "n")
    if len(value.shape) != 1:
        raise ConversionError(f"it needs an input of one axis besides the batch, not {value.shape}")
    rows = graph.reshaped(graph.natural(value), (1, value.size))
    repeats = graph.constant(np.array([1, count, 1]), "repeats")
    return graph.value(graph.emit("Tile", [rows.name, repeats]), (count, value.size))


@keras_layer("ZeroPadding1D", "ZeroPadding2D")
def zero_padding(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """Each side its own width, both data formats."""
    value = only(inputs)
    rank = 1 if layer.class_name.endswith("1D") else 2
    axes = spatial_axes(value, rank, settings.data_format(layer.config))
    widths = dict(zip(axes, settings.pairs(layer.config, "padding", rank), strict=True))
    shape = [n + sum(widths.get(axis, (0, 0))) for axis, n in enumerate(value.shape)]
    result = graph.value("", shape, value.axes)  # refuses what is too large
    sides = [[widths.get(axis, (0, 0))[side] for axis in value.axes] for side in (0, 1)]
    pads = graph.constant(np.array([0, *sides[0], 0, *sides[1]]), "pads")
    return replace(result, name=graph.emit("Pad", [value.name, pads]))


@keras_layer("Cropping1D", "Cropping2D")
def cropping(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Each side its own width, both data formats."""
    value = only(inputs)
    rank = 1 if layer.class_name.endswith("1D") else 2
    axes = spatial_axes(value, rank, settings.data_format(layer.config))
    return cropped(graph, value, axes, settings.pairs(layer.config, "cropping", rank))


@keras_layer("CenterCrop")
def center_crop(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """Inputs at least as large as the crop."""
    value = only(inputs)
    axes = spatial_axes(value, 2, settings.data_format(layer.config))
    wanted = (settings.integer(layer.config, "height"), settings.integer(layer.config, "width"))
    extra = [value.shape[axis] - n for axis, n in zip(axes, wanted, strict=True)]
    if min(extra) < 0:
        raise ConversionError(f"its input {value.shape} is smaller than the crop {wanted}")
    return cropped(graph, value, axes, tuple((n // 2, n - n // 2) for n in extra))


def cropped(
    graph: Graph, value: Symbol, axes: tuple[int, ...], widths: tuple[tuple[int, int], ...]
) -> Symbol:
    """Return `value` without widths[i] = (before, after) of its axis axes[i]."""
    shape = list(value.shape)
    for axis, width in zip(axes, widths, strict=True):
        shape[axis] -= sum(width)
    result = graph.value("", shape, value.axes)  # refuses what crops everything away
    starts = np.array([before for before, _ in widths])
    ends = np.array([value.shape[a] - after for a, (_, after) in zip(axes, widths, strict=True)])
    places = np.array([value.axes.index(axis) + 1 for axis in axes])
    constants = [
        graph.constant(array, name)
        for name, array in (("starts", starts), ("ends", ends), ("axes", places))
    ]
    return replace(result, name=graph.emit("Slice", [value.name, *constants]))


@keras_layer("UpSampling1D", "UpSampling2D")
def up_sampling(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """nearest; bilinear from Keras 2.4 on."""
    value, config = only(inputs), layer.config
    rank = 1 if layer.class_name.endswith("1D") else 2
    data_format = settings.data_format(config)
    axes = spatial_axes(value, rank, data_format)
    factors = settings.integers(config, "size", rank, 2)
    mode = settings.choice(config, "interpolation", "nearest", "nearest", "bilinear")
    if mode == "bilinear" and keras < (2, 4):
        raise ConversionError(
            "bilinear interpolation before Keras 2.4 depends on the TensorFlow below it, which "
            "the file does not tell; save the model with a newer Keras"
        )
    lengths = tuple(value.shape[a] * f for a, f in zip(axes, factors, strict=True))
    return _resize(graph, value, data_format, axes, lengths, mode)


@keras_layer("Resizing")
def resizing(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """nearest and bilinear, without antialiasing or keeping the aspect ratio."""
    value, config = only(inputs), layer.config
    for key in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"):
        if config.get(key):
            raise ConversionError(f"{key}=True is not supported; resize the images before")
    data_format = settings.data_format(config)
    axes = spatial_axes(value, 2, data_format)
    lengths = (settings.integer(config, "height"), settings.integer(config, "width"))
    mode = settings.choice(config, "interpolation", "bilinear", "nearest", "bilinear")
    return _resize(graph, value, data_format, axes, lengths, mode)


def _resize(
    graph: Graph,
    value: Symbol,
    data_format: str,
    axes: tuple[int, ...],
    lengths: tuple[int, ...],
    mode: str,
) -> Symbol:
    """`value` with its spatial axes resized to `lengths`, by TensorFlow's half-pixel rule."""
    shape = list(value.shape)
    for axis, length in zip(axes, lengths, strict=True):
        shape[axis] = length
    graph.value("", shape)  # refuses what is too large
    olds = [value.shape[axis] for axis in axes]
    if list(lengths) == olds:
        return value
    if mode == "nearest" and any(n % old for n, old in zip(lengths, olds, strict=True)):
        return _picked(graph, value, axes, lengths)
    value = graph.channels_first(value, data_format)
    # The runtime computes floor(old * scale) in float32; it must not fall short.
    scales = np.array([1, 1, *(n / old for n, old in zip(lengths, olds, strict=True))], np.float32)
    for i, (length, old) in enumerate(zip(lengths, olds, strict=True), start=2):
        while math.floor(np.float32(old) * scales[i]) < length:
            scales[i] = np.nextafter(scales[i], np.float32(np.inf))
    if mode == "nearest":  # whole factors: each element repeated
        rule = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        rule = {"coordinate_transformation_mode": "half_pixel"}
    name = graph.emit(
        "Resize",
        [value.name, "", graph.constant(scales, "scales")],
        mode="nearest" if mode == "nearest" else "linear",
        **rule,
    )
    return graph.value(name, shape, value.axes)


def _picked(graph: Graph, value: Symbol, axes: tuple[int, ...], lengths: tuple[int, ...]) -> Symbol:
    """Nearest by any factor: element i comes from floor((i + 1/2) * old / new)."""
    for axis, length in zip(axes, lengths, strict=True):
        old = value.shape[axis]
        if length == old:
            continue
        places = np.array([(2 * i + 1) * old // (2 * length) for i in range(length)])
        constant = graph.constant(places, f"places_{axis}")
        name = graph.emit("Gather", [value.name, constant], axis=value.axes.index(axis) + 1)
        shape = (*value.shape[:axis], length, *value.shape[axis + 1 :])
        value = graph.value(name, shape, value.axes)
    return value
