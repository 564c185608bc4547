"""Operations that move, pick, repeat or drop elements: slices, reshapes, transposes, pads."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers.operations import (
    axis_of,
    constant,
    operation,
    scalar,
    tensor,
    whole,
)
from converters.keras_layers.reshaping import permuted


def _in_shape(graph: Graph, value: Symbol, shape: tuple[int, ...]) -> Symbol:
    """The elements in another shape."""
    if shape == value.shape:
        return value
    if not shape:
        raise ConversionError("it leaves a single number without an axis for each sample")
    if math.prod(shape) != value.size:
        raise ConversionError(f"a sample of shape {value.shape} does not fit the shape {shape}")
    if len(shape) == 1:
        return graph.flatten(value)
    return graph.reshaped(graph.natural(value), shape)


def _whole_list(values: Any, what: str) -> list[int]:
    if isinstance(values, np.ndarray):
        values = values.ravel().tolist()
    return [whole(n, what) for n in (values if isinstance(values, list) else [values])]


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
    return _in_shape(graph, value, tuple(shape))


@operation("expand_dims")
def expand_dims(graph: Graph, x: Any, axis: Any) -> Symbol:
    value = tensor(x)
    shape = list(value.shape)
    axes = _whole_list(axis, "axis")
    places = [axis_of(a, len(shape) + len(axes)) for a in axes]
    for place in sorted(places):
        shape.insert(place, 1)
    return _in_shape(graph, value, tuple(shape))


@operation("squeeze")
def squeeze(graph: Graph, x: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    rank = len(value.shape)
    if axis is None or axis == []:
        places = [a for a, n in enumerate(value.shape) if n == 1]
    else:
        places = [axis_of(a, rank) for a in _whole_list(axis, "axis")]
    if any(value.shape[a] != 1 for a in places):
        raise ConversionError(f"it drops an axis of a sample of shape {value.shape} that is not 1")
    return _in_shape(graph, value, tuple(n for a, n in enumerate(value.shape) if a not in places))


@operation("transpose")
def transpose(graph: Graph, x: Any, axes: Any = None) -> Symbol:
    value = tensor(x)
    rank = len(value.shape)
    order = list(range(rank, -1, -1)) if axes is None else _whole_list(axes, "axes")
    order = [a % (rank + 1) for a in order]
    if sorted(order) != list(range(rank + 1)):
        raise ConversionError(f"its axes {order} are no order of its input's axes")
    if order[0] != 0:
        raise ConversionError("it moves the batch axis, and samples are served one by one")
    return value if rank == 1 else permuted(_shaped(graph, value), tuple(a - 1 for a in order[1:]))


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
    sources = [axis_of(a, rank) for a in _whole_list(source, "source")]
    targets = [axis_of(a, rank) for a in _whole_list(destination, "destination")]
    if len(sources) != len(targets):
        raise ConversionError("its source and destination are of different lengths")
    order = [a for a in range(rank) if a not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return transpose_sample(graph, value, order)


def transpose_sample(graph: Graph, value: Symbol, order: list[int]) -> Symbol:
    """Keras' transpose with axes that do not count the batch."""
    return value if len(order) == 1 else permuted(_shaped(graph, value), tuple(order))


def _shaped(graph: Graph, value: Symbol) -> Symbol:
    return value if value.flatten is None and value.order is None else graph.natural(value)


# --- picking -----------------------------------------------------------------------------


def picked(graph: Graph, value: Symbol, axis: int, places: np.ndarray) -> Symbol:
    """The elements at `places` along an axis of a sample, in that order."""
    if not len(places):
        raise ConversionError("it picks nothing")
    value = _shaped(graph, value)
    shape = (*value.shape[:axis], len(places), *value.shape[axis + 1 :])
    result = graph.value("", shape, value.axes)
    at = value.axes.index(axis) + 1
    steps = np.diff(places)
    if len(places) == 1 or (len(set(steps.tolist())) == 1 and steps[0] > 0):
        step = int(steps[0]) if len(places) > 1 else 1
        ends = [[int(places[0])], [int(places[-1]) + 1], [at], [step]]
        names = [
            graph.constant(np.array(end), name)
            for end, name in zip(ends, ("starts", "ends", "axes", "steps"), strict=True)
        ]
        return replace(result, name=graph.emit("Slice", [value.name, *names]))
    rows = graph.constant(places.astype(np.int64), "places")
    return replace(result, name=graph.emit("Gather", [value.name, rows], axis=at))


@operation("getitem")
def getitem(graph: Graph, x: Any, key: Any) -> Symbol:
    """Slices, whole numbers, new axes and `...`; all samples of the batch."""
    value = tensor(x)
    keys = list(key) if isinstance(key, list) else [key]
    used = sum(k is not None and k is not Ellipsis for k in keys)
    if Ellipsis in [k for k in keys if not isinstance(k, np.ndarray)]:
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(value.shape) + 1 - used)
    else:
        keys += [slice(None)] * (len(value.shape) + 1 - used)
    if not keys or keys[0] != slice(None):
        raise ConversionError("it picks among the samples of a batch, which are served one by one")
    axis, shape = 0, []
    for part in keys[1:]:
        if part is None:
            shape.append(1)
            continue
        if axis >= len(value.shape):
            raise ConversionError("it has more indices than its input has axes")
        length = value.shape[axis]
        places, is_single = _places(part, length)
        if not np.array_equal(places, np.arange(length)):
            value = picked(graph, value, axis, places)
        if not is_single:
            shape.append(len(places))
        axis += 1
    return _in_shape(graph, value, tuple(shape))


def _places(part: Any, length: int) -> tuple[np.ndarray, bool]:
    """The indices that one key names along an axis, and whether the axis goes."""
    if isinstance(part, slice):
        ends = (part.start, part.stop, part.step)
        whole_ends = [None if end is None else whole(end, "slice") for end in ends]
        if whole_ends[2] == 0:
            raise ConversionError("its slice has the step 0")
        return np.arange(length)[slice(*whole_ends)], False
    if isinstance(part, list) or (isinstance(part, np.ndarray) and part.ndim == 1):
        raise ConversionError("it is indexed by a list; use keras.ops.take along one axis")
    at = whole(part, "index")
    if not -length <= at < length:
        raise ConversionError(f"its index {at} is outside of an axis of {length}")
    return np.array([at % length]), True


@operation("strided_slice")
def strided_slice(
    graph: Graph,
    x: Any,
    begin: Any,
    end: Any,
    strides: Any,
    begin_mask: int = 0,
    end_mask: int = 0,
    shrink_axis_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
) -> Symbol:
    """TensorFlow's slice, a bit of each mask per key."""
    keys: list[Any] = []
    starts, stops, steps = (_whole_list(v, "slice") for v in (begin, end, strides))
    for i, (start, stop, step) in enumerate(zip(starts, stops, steps, strict=True)):
        bit = 1 << i
        if ellipsis_mask & bit:
            keys.append(Ellipsis)
        elif new_axis_mask & bit:
            keys.append(None)
        elif shrink_axis_mask & bit:
            keys.append(start)
        else:
            first = None if begin_mask & bit else start
            keys.append(slice(first, None if end_mask & bit else stop, step))
            if first is None and end_mask & bit and step == 1:
                keys[-1] = slice(None)
    return getitem(graph, x, keys)


@operation("take")
def take(graph: Graph, x: Any, indices: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    if axis is None:
        raise ConversionError("it picks among the samples of a batch; give it an axis")
    at = axis_of(axis, len(value.shape))
    if isinstance(indices, Symbol):
        raise ConversionError("it picks by computed indices, which would be told by what is read")
    listed = np.array(indices.tolist() if isinstance(indices, np.ndarray) else indices)
    if listed.dtype.kind == "f" and np.array_equal(listed, np.rint(listed)):
        listed = listed.astype(np.int64)
    length = value.shape[at]
    if listed.dtype.kind != "i" or listed.ndim > 1 or not np.all(abs(listed + 0.5) < length + 0.5):
        raise ConversionError(f"its indices {indices!r} are no list of places among {length}")
    result = picked(graph, value, at, listed.reshape(-1) % length)
    if listed.ndim:
        return result
    return _in_shape(graph, result, (*value.shape[:at], *value.shape[at + 1 :]))


@operation("flip")
def flip(graph: Graph, x: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    if axis is None:
        raise ConversionError("it turns the batch around; give it the axes of a sample")
    for a in _whole_list(axis, "axis"):
        at = axis_of(a, len(value.shape))
        value = picked(graph, value, at, np.arange(value.shape[at])[::-1])
    return value


@operation("roll")
def roll(graph: Graph, x: Any, shift: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    if axis is None:
        raise ConversionError("it moves elements between samples; give it an axis")
    shifts, axes = _whole_list(shift, "shift"), _whole_list(axis, "axis")
    many = max(len(shifts), len(axes))
    if not {len(shifts), len(axes)} <= {1, many}:
        raise ConversionError(f"it has {len(shifts)} shifts for {len(axes)} axes")
    # One shift serves all axes, and one axis takes all shifts, as in numpy.
    for amount, a in zip(np.resize(shifts, many), np.resize(axes, many), strict=True):
        at = axis_of(int(a), len(value.shape))
        value = picked(graph, value, at, np.roll(np.arange(value.shape[at]), amount))
    return value


@operation("repeat")
def repeat(graph: Graph, x: Any, repeats: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    if axis is None:
        raise ConversionError("it repeats across the batch; give it an axis")
    at, times = axis_of(axis, len(value.shape)), whole(repeats, "number of repeats")
    _refuse_growth(value, times)
    return picked(graph, value, at, np.repeat(np.arange(value.shape[at]), times))


@operation("tile")
def tile(graph: Graph, x: Any, repeats: Any) -> Symbol:
    value = tensor(x)
    times = _whole_list(repeats, "number of repeats")
    if len(times) != len(value.shape) + 1 or times[0] != 1:
        raise ConversionError("it repeats the batch; give it a number for each axis, 1 first")
    for at, count in enumerate(times[1:]):
        _refuse_growth(value, count)
        if count != 1:
            value = picked(graph, value, at, np.tile(np.arange(value.shape[at]), count))
    return value


def _refuse_growth(value: Symbol, times: int) -> None:
    if not 0 < times * value.size <= 1 << 28:
        raise ConversionError(f"it repeats a sample of {value.size} elements {times} times")


@operation("split")
def split(
    graph: Graph, x: Any, indices_or_sections: Any = None, axis: Any = 0, sizes: Any = None
) -> list[Symbol]:
    """Equal parts, at indices, or parts of given sizes."""
    value = tensor(x)
    at = axis_of(axis, len(value.shape))
    length = value.shape[at]
    if sizes is not None:
        if not isinstance(sizes, list | np.ndarray):
            indices_or_sections = sizes
        else:
            listed = _whole_list(sizes, "size")
            if listed.count(-1) == 1:
                listed[listed.index(-1)] = length - sum(listed) - 1
            if sum(listed) != length or min(listed) < 1:
                raise ConversionError(f"its sizes {listed} do not add up to {length}")
            indices_or_sections = np.cumsum(listed)[:-1].tolist()
    if isinstance(indices_or_sections, list | np.ndarray):
        cuts = _whole_list(indices_or_sections, "index")
    else:
        count = whole(indices_or_sections, "number of parts")
        if not 0 < count <= length or length % count:
            raise ConversionError(f"it splits an axis of {length} into {count} equal parts")
        cuts = [length // count * i for i in range(1, count)]
    ends = [0, *cuts, length]
    if any(b <= a for a, b in pairwise(ends)):
        raise ConversionError(f"it splits an axis of {length} at {cuts}")
    return [picked(graph, value, at, np.arange(a, b)) for a, b in pairwise(ends)]


# --- padding and blocks ------------------------------------------------------------------


@operation("pad")
def pad(
    graph: Graph, x: Any, pad_width: Any, mode: Any = "constant", constant_values: Any = 0
) -> Symbol:
    """A constant around, or a reflection, or the edge repeated."""
    value = tensor(x)
    try:
        widths = np.broadcast_to(constant(pad_width), (len(value.shape) + 1, 2)).astype(int)
    except ValueError:
        raise ConversionError(f"its pad_width does not fit a sample of {value.shape}") from None
    if widths[0].any() or (widths < 0).any() or widths.max(initial=0) > 1 << 20:
        raise ConversionError("it pads the batch, or by less than nothing")
    mode = str(mode).lower()
    value = _shaped(graph, value)
    if mode == "constant":
        sides = [[int(widths[axis + 1][side]) for axis in value.axes] for side in (0, 1)]
        shape = [n + int(widths[a + 1].sum()) for a, n in enumerate(value.shape)]
        result = graph.value("", shape, value.axes)
        operands = [
            value.name,
            graph.constant(np.array([0, *sides[0], 0, *sides[1]]), "pads"),
            graph.constant(np.array(scalar(constant_values), np.float32), "fill"),
        ]
        return replace(result, name=graph.emit("Pad", operands))
    if mode not in ("reflect", "symmetric", "edge"):
        raise ConversionError(f"padding of mode {mode!r} is not supported")
    for axis, (before, after) in enumerate(widths[1:].tolist()):
        length = value.shape[axis]
        if mode == "symmetric" and max(before, after) > 1:
            raise ConversionError(
                "symmetric padding by more than one element is not the same on all of Keras' "
                "backends; use reflect"
            )
        if mode == "reflect" and max(before, after) >= length:
            raise ConversionError(f"it reflects more than the {length} elements that there are")
        rows = np.pad(np.arange(length), (before, after), mode=mode)
        if before or after:
            value = picked(graph, value, axis, rows)
    return value


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
