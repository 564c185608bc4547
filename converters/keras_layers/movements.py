"""Operations that only say anew how elements are arranged: reshapes, transposes, blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers.operands import axis_of, tensor, whole, whole_list
from converters.keras_layers.operations import operation
from converters.keras_layers.reshaping import permuted


def in_shape(graph: Graph, value: Symbol, shape: tuple[int, ...]) -> Symbol:
    """Return the elements in another shape."""
    if shape == value.shape:
        return value
    if not shape:
        raise ConversionError("it leaves a single number without an axis for each sample")
    if math.prod(shape) != value.size:
        raise ConversionError(f"a sample of shape {value.shape} does not fit the shape {shape}")
    if len(shape) == 1:
        return graph.flatten(value)
    return graph.reshaped(graph.natural(value), shape)


@operation("reshape")
def reshape(graph: Graph, x: Any, newshape: Any) -> Symbol:
    """The first size stands for the batch: -1, None, or whatever it was at export."""
    value = tensor(x)
    sizes = newshape.tolist() if isinstance(newshape, np.ndarray) else newshape
    if not isinstance(sizes, list) or not sizes:
        raise ConversionError("its new shape is no list of numbers; use a Reshape layer")
    if any(isinstance(n, Symbol) for n in sizes[1:]):
        raise ConversionError("its new shape is computed; use a Reshape layer")
    shape = [whole(n, "new shape") for n in sizes[1:]]
    if not isinstance(sizes[0], Symbol) and sizes[0] is not None and sizes[0] != -1:
        raise ConversionError(
            f"its new shape {sizes} fixes the size of the batch; use a Reshape layer"
        )
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and known > 0 and value.size % known == 0:
        if sizes[0] == -1:
            raise ConversionError(f"its new shape {sizes} leaves two sizes open")
        shape[shape.index(-1)] = value.size // known
    return in_shape(graph, value, tuple(shape))


@operation("expand_dims")
def expand_dims(graph: Graph, x: Any, axis: Any) -> Symbol:
    value = tensor(x)
    shape = list(value.shape)
    axes = whole_list(axis, "axis")
    places = [axis_of(a, len(shape) + len(axes)) for a in axes]
    for place in sorted(places):
        shape.insert(place, 1)
    return in_shape(graph, value, tuple(shape))


@operation("squeeze")
def squeeze(graph: Graph, x: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    rank = len(value.shape)
    if axis is None or axis == []:
        places = [a for a, n in enumerate(value.shape) if n == 1]
    else:
        places = [axis_of(a, rank) for a in whole_list(axis, "axis")]
    if any(value.shape[a] != 1 for a in places):
        raise ConversionError(f"it drops an axis of a sample of shape {value.shape} that is not 1")
    return in_shape(graph, value, tuple(n for a, n in enumerate(value.shape) if a not in places))


@operation("transpose")
def transpose(graph: Graph, x: Any, axes: Any = None) -> Symbol:
    value = tensor(x)
    rank = len(value.shape)
    order = list(range(rank, -1, -1)) if axes is None else whole_list(axes, "axes")
    order = [a % (rank + 1) for a in order]
    if sorted(order) != list(range(rank + 1)):
        raise ConversionError(f"its axes {order} are no order of its input's axes")
    if order[0] != 0:
        raise ConversionError("it moves the batch axis, and samples are served one by one")
    return value if rank == 1 else permuted(shaped(graph, value), tuple(a - 1 for a in order[1:]))


@operation("swapaxes")
def swapaxes(graph: Graph, x: Any, axis1: Any, axis2: Any) -> Symbol:
    value = tensor(x)
    rank = len(value.shape)
    order = list(range(rank))
    one, other = axis_of(axis1, rank), axis_of(axis2, rank)
    order[one], order[other] = other, one
    return transpose_sample(graph, value, order)


@operation("moveaxis")
def moveaxis(graph: Graph, x: Any, source: Any, destination: Any) -> Symbol:
    value = tensor(x)
    rank = len(value.shape)
    sources = [axis_of(a, rank) for a in whole_list(source, "source")]
    targets = [axis_of(a, rank) for a in whole_list(destination, "destination")]
    if len(sources) != len(targets):
        raise ConversionError("its source and destination are of different lengths")
    order = [a for a in range(rank) if a not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return transpose_sample(graph, value, order)


def transpose_sample(graph: Graph, value: Symbol, order: list[int]) -> Symbol:
    """Return Keras' transpose with axes that do not count the batch."""
    return value if len(order) == 1 else permuted(shaped(graph, value), tuple(order))


def shaped(graph: Graph, value: Symbol) -> Symbol:
    """Return the value with its axes as they are in Keras, in whatever order they are stored."""
    return value if value.flatten is None and value.order is None else graph.natural(value)


@operation("depth_to_space", "space_to_depth")
def blocks(graph: Graph, name: str, x: Any, block_size: Any, data_format: Any = "NHWC") -> Symbol:
    """Channels to blocks of pixels and back, channels last."""
    if data_format != "NHWC":
        raise ConversionError(f"data_format={data_format!r} is not supported; use NHWC")
    value, size = graph.natural(tensor(x)), whole(block_size, "block_size")
    if len(value.shape) != 3 or size < 1:
        raise ConversionError("it works on images (height, width, channels) only")
    height, width, depth = value.shape
    if name == "depth_to_space":
        if depth % size**2:
            raise ConversionError(f"{depth} channels are no {size} x {size} blocks")
        split_up = (height, width, size, size, depth // size**2)
        shape = (height * size, width * size, depth // size**2)
        order = (0, 2, 1, 3, 4)
    else:
        if height % size or width % size:
            raise ConversionError(f"{height} x {width} pixels are no {size} x {size} blocks")
        split_up = (height // size, size, width // size, size, depth)
        shape = (height // size, width // size, size * size * depth)
        order = (0, 2, 1, 3, 4)
    parts = graph.reshaped(value, split_up)
    return graph.reshaped(graph.natural(permuted(parts, order)), shape)
