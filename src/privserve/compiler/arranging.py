"""Linear ops open what they read, and once: a finished program, put in another order.

1. Local ops that compute the same become one, so that ops that read the same read one value.
2. What no window of a value's linear ops reads is cut away before: a convolution of one tap and
   stride 2 reads a quarter of its input.
3. What makes a value of which only a part is read is computed for that part: the cut moves before
   it, as far as ops go element by element, and into the stride of a linear op.
4. Linear ops of one value follow each other: they share a mask and an opening (`Program.leaders`).
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from privserve.geometry import Geometry
from privserve.lift import lifting_ops
from privserve.program import OP_KINDS, Op, Program, Value

CUTS = ("slice", "gather")
ELEMENTWISE = ("relu", "truncate", "lookup", "square", "add", "sub", "offset", "reread")
"""Ops whose every element follows from those at the same place."""


class Axis(NamedTuple):
    """What windows read of one axis, and how they lie on what is left of it."""

    rows: tuple[int, ...]
    stride: int
    dilation: int
    pads: tuple[int, int]


def arranged(program: Program) -> Program:
    """Return a program that computes the same, and opens less where linear ops allow it."""
    program = _without_repeats(program)
    while True:
        before = program
        program = _hoisted(_narrowed(program))
        if program.ops == before.ops:
            return _ordered(program)


# -- one value for what is the same -------------------------------------------------------


def _without_repeats(program: Program) -> Program:
    values, ops = list(program.values), []
    kept = {port.value for port in (*program.inputs, *program.outputs)}
    same: dict[int, int] = {}
    seen: dict[tuple[Any, ...], int] = {}
    for op in program.ops:
        inputs = tuple(same.get(number, number) for number in op.inputs)
        value = values[op.output]
        what = (op.kind, inputs, json.dumps(dict(op.attributes), sort_keys=True))
        key = (*what, value.shape, value.step)
        if OP_KINDS[op.kind].communicates or op.kind == "check" or op.output in kept:
            ops.append(replace(op, inputs=inputs))
        elif key in seen:
            first = same[op.output] = seen[key]
            values[first] = _both(values[first], value)
        else:
            seen[key] = op.output
            ops.append(replace(op, inputs=inputs))
    return replace(program, values=tuple(values), ops=tuple(ops))


def _both(one: Value, other: Value) -> Value:
    """What holds for either."""
    return replace(one, bits=max(one.bits, other.bits), bound=max(one.bound, other.bound))


# -- what is read -----------------------------------------------------------------------------


def read_of(size: int, outputs: int, kernel: int, stride: int, dilation: int, before: int) -> Axis:
    """Return what the windows of a linear op read of an axis of `size` elements.

    before: the padding in front. What lies between and behind the windows is left out, as far as
    windows on what is left can have one stride and one dilation.
    """
    if stride > dilation * (kernel - 1):  # no two windows overlap
        places = [i * stride + tap * dilation for i in range(outputs) for tap in range(kernel)]
        stride, dilation = kernel, 1
    else:
        each = math.gcd(stride, dilation)
        places = list(range(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1, each))
        stride, dilation = stride // each, dilation // each
    rows = [place - before for place in places]
    pads = sum(row < 0 for row in rows), sum(row >= size for row in rows)
    return Axis(tuple(row for row in rows if 0 <= row < size), stride, dilation, pads)


def _axes(geometry: Geometry) -> tuple[Axis, Axis]:
    top, left, _, _ = geometry.pads
    _, height, width = geometry.output_shape
    down, right = (
        read_of(*sizes)
        for sizes in zip(
            geometry.shape[1:],
            (height, width),
            geometry.kernel,
            geometry.strides,
            geometry.dilations,
            (top, left),
            strict=True,
        )
    )
    return down, right


def _on_what_is_left(geometry: Geometry, down: Axis, right: Axis) -> Geometry:
    return replace(
        geometry,
        shape=(geometry.shape[0], len(down.rows), len(right.rows)),
        strides=(down.stride, right.stride),
        pads=(down.pads[0], right.pads[0], down.pads[1], right.pads[1]),
        dilations=(down.dilation, right.dilation),
    )


def _narrowed(program: Program) -> Program:
    """Cut away what none of a value's linear ops reads, where that is less to open."""
    readers: dict[int, list[int]] = defaultdict(list)
    for index, op in enumerate(program.ops):
        if op.kind == "linear":
            readers[op.inputs[0]].append(index)
    values, ops = list(program.values), list(program.ops)
    cuts: dict[int, list[Op]] = defaultdict(list)
    for number, indices in readers.items():
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
        for index in indices:
            geometry = Geometry.from_json(ops[index].attributes["geometry"])
            groups[tuple(axis.rows for axis in _axes(geometry))].append(index)
        shape = Geometry.from_json(ops[indices[0]].attributes["geometry"]).shape
        left = sum(len(rows) * len(columns) for rows, columns in groups)
        if not 0 < left < shape[1] * shape[2] or values[number].shape != shape:
            continue
        for kept, members in groups.items():
            source = _cut(ops[members[0]].layer, number, kept, values, cuts[members[0]])
            for index in members:
                ops[index] = _reading(ops[index], source)
    return replace(
        program,
        values=tuple(values),
        ops=tuple(step for index, op in enumerate(ops) for step in (*cuts[index], op)),
    )


def _cut(
    layer: str,
    source: int,
    kept: Sequence[tuple[int, ...]],
    values: list[Value],
    ops: list[Op],
) -> int:
    """Add the ops that keep these rows and columns; returns the value that they make."""
    value = values[source]
    triples: list[list[int]] = [[0, value.shape[0], 1]]
    for axis, rows in enumerate(kept, 1):
        step = rows[1] - rows[0] if len(rows) > 1 else 1
        triples.append([rows[0], rows[-1] + 1, step])
        if rows != tuple(range(rows[0], rows[-1] + 1, step)):
            shape = (*value.shape[:axis], len(rows), *value.shape[axis + 1 :])
            value = replace(value, shape=shape)
            values.append(value)
            attributes = {"rows": list(rows), "axis": axis}
            ops.append(Op("gather", layer, (source,), len(values) - 1, attributes))
            source, triples[axis] = len(values) - 1, [0, len(rows), 1]
    shape = (value.shape[0], *(len(rows) for rows in kept))
    if shape != value.shape:
        values.append(replace(value, shape=shape))
        ops.append(Op("slice", layer, (source,), len(values) - 1, {"slices": triples}))
    return len(values) - 1


def _reading(op: Op, source: int) -> Op:
    """A linear op on what is left of its input."""
    geometry = Geometry.from_json(op.attributes["geometry"])
    narrow = _on_what_is_left(geometry, *_axes(geometry))
    return replace(op, inputs=(source,), attributes={**op.attributes, "geometry": narrow.to_json()})


# -- what is made ------------------------------------------------------------------------------


def _hoisted(program: Program) -> Program:
    """Move each cut before the op whose result nothing else reads."""
    fixed = {port.value for port in (*program.inputs, *program.outputs)}
    for op in lifting_ops(program):
        fixed.update((op.output, *op.inputs))
    values, ops = list(program.values), list(program.ops)
    readers = Counter(number for op in ops for number in op.inputs)
    makers = {op.output: index for index, op in enumerate(ops)}
    moved: dict[int, list[Op]] = {}
    now: dict[int, int] = {}
    for index, cut in enumerate(ops):
        source, value = cut.inputs[0], values[cut.output]
        at = makers.get(source, -1)
        if cut.kind not in CUTS or readers[source] != 1 or source in fixed or at in moved:
            continue
        if value.size >= values[source].size:
            continue
        maker = ops[at]
        if maker.kind == "linear":
            strided = _strided(maker, cut, value.shape)
            if strided is None:
                continue
            moved[at] = [strided]
        elif maker.kind in ELEMENTWISE:
            cuts = []
            for number in maker.inputs:
                values.append(replace(values[number], shape=value.shape))
                cuts.append(replace(cut, inputs=(number,), output=len(values) - 1))
            moved[at] = [*cuts, replace(maker, inputs=tuple(one.output for one in cuts))]
        else:
            continue
        moved[index] = []
        values[source] = replace(values[source], shape=value.shape)
        now[cut.output] = source
    steps = (step for index, op in enumerate(ops) for step in moved.get(index, [op]))
    return replace(
        program,
        outputs=tuple(replace(p, value=now.get(p.value, p.value)) for p in program.outputs),
        values=tuple(values),
        ops=tuple(replace(op, inputs=tuple(now.get(n, n) for n in op.inputs)) for op in steps),
    )


def _strided(op: Op, cut: Op, shape: tuple[int, ...]) -> Op | None:
    """The linear op that makes only what is cut out of its result; None where none does."""
    geometry = Geometry.from_json(op.attributes["geometry"])
    if cut.kind != "slice":
        return None
    channels, *spatial = (slice(*triple) for triple in cut.attributes["slices"])
    if range(*channels.indices(geometry.outputs)) != range(geometry.outputs):
        return None
    down, right = (
        _stride(geometry, axis, range(*part.indices(geometry.output_shape[axis + 1])))
        for axis, part in enumerate(spatial)
    )
    if min(*down, *right) < 0:
        return None
    pads = (down[1], right[1], down[2], right[2])
    made = replace(geometry, strides=(down[0], right[0]), pads=pads)
    if made.output_shape != shape:
        return None
    return replace(op, attributes={**op.attributes, "geometry": made.to_json()})


def _stride(geometry: Geometry, axis: int, rows: range) -> tuple[int, int, int]:
    """The stride and the paddings with which these rows of a linear op's result are made."""
    stride = geometry.strides[axis] * (rows.step if len(rows) > 1 else 1)
    reach = geometry.dilations[axis] * (geometry.kernel[axis] - 1) + 1
    before = geometry.pads[axis] - rows.start * geometry.strides[axis]
    after = (len(rows) - 1) * stride + reach - before - geometry.shape[axis + 1]
    return stride, before, max(0, after)


# -- who shares an opening ------------------------------------------------------------------


def _ordered(program: Program) -> Program:
    """Put the linear ops of a value right behind the first of them."""
    following: dict[int, list[Op]] = defaultdict(list)
    for op in program.ops:
        if op.kind == "linear":
            following[op.inputs[0]].append(op)
    ops: list[Op] = []
    for op in program.ops:
        if op.kind != "linear":
            ops.append(op)
        elif op is following[op.inputs[0]][0]:
            ops += following[op.inputs[0]]
    return replace(program, ops=tuple(ops))
