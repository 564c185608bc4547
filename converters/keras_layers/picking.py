"""Operations that pick, repeat or add elements along an axis: slices, splits, tiles, pads."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from converters.errors import ConversionError
from converters.graph import MAX_ELEMENTS, Graph, Symbol
from converters.keras_layers.movements import in_shape, shaped
from converters.keras_layers.operands import axis_of, constant, scalar, tensor, whole, whole_list
from converters.keras_layers.operations import operation


def picked(graph: Graph, value: Symbol, axis: int, places: np.ndarray) -> Symbol:
    """Return the elements at `places` along an axis of a sample, in that order."""
    if not len(places):
        raise ConversionError("it picks nothing")
    value = shaped(graph, value)
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
    return in_shape(graph, value, tuple(shape))


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
    starts, stops, steps = (whole_list(v, "slice") for v in (begin, end, strides))
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
    return in_shape(graph, result, (*value.shape[:at], *value.shape[at + 1 :]))


@operation("flip")
def flip(graph: Graph, x: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    if axis is None:
        raise ConversionError("it turns the batch around; give it the axes of a sample")
    for a in whole_list(axis, "axis"):
        at = axis_of(a, len(value.shape))
        value = picked(graph, value, at, np.arange(value.shape[at])[::-1])
    return value


@operation("roll")
def roll(graph: Graph, x: Any, shift: Any, axis: Any = None) -> Symbol:
    value = tensor(x)
    if axis is None:
        raise ConversionError("it moves elements between samples; give it an axis")
    shifts, axes = whole_list(shift, "shift"), whole_list(axis, "axis")
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
    times = whole_list(repeats, "number of repeats")
    if len(times) != len(value.shape) + 1 or times[0] != 1:
        raise ConversionError("it repeats the batch; give it a number for each axis, 1 first")
    for at, count in enumerate(times[1:]):
        _refuse_growth(value, count)
        if count != 1:
            value = picked(graph, value, at, np.tile(np.arange(value.shape[at]), count))
    return value


def _refuse_growth(value: Symbol, times: int) -> None:
    if not 0 < times * value.size <= MAX_ELEMENTS:
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
            listed = whole_list(sizes, "size")
            if listed.count(-1) == 1:
                listed[listed.index(-1)] = length - sum(listed) - 1
            if sum(listed) != length or min(listed) < 1:
                raise ConversionError(f"its sizes {listed} do not add up to {length}")
            indices_or_sections = np.cumsum(listed)[:-1].tolist()
    if isinstance(indices_or_sections, list | np.ndarray):
        cuts = whole_list(indices_or_sections, "index")
    else:
        count = whole(indices_or_sections, "number of parts")
        if not 0 < count <= length or length % count:
            raise ConversionError(f"it splits an axis of {length} into {count} equal parts")
        cuts = [length // count * i for i in range(1, count)]
    ends = [0, *cuts, length]
    if any(b <= a for a, b in pairwise(ends)):
        raise ConversionError(f"it splits an axis of {length} at {cuts}")
    return [picked(graph, value, at, np.arange(a, b)) for a, b in pairwise(ends)]


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
    value = shaped(graph, value)
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
