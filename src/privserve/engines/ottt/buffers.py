"""What the ops of a program write into at one batch size, made once and used for every batch.

What an op opens is read within the op only, so all ops share that room. Its result stays
until the last op that reads it, and then lends its room to a later result: a large network
needs room for the widest few of its layers and not for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from privserve.engines.ottt.bits import packed_words
from privserve.engines.ottt.comparison import plan_comparison
from privserve.fixedpoint import RingArray
from privserve.program import Op, Program

COMMUNICATING = ("linear", "relu", "truncate", "multiply", "lookup")
COPYING = ("add", "sub", "scale", "add_parameter", "concat", "gather", "pad", "sum_pool")
"""Local ops whose result shares no memory with their inputs; others may return views."""


@dataclass(frozen=True)
class OpBuffers:
    """What one op writes into at one batch size."""

    opened: RingArray
    packed: RingArray
    out: RingArray
    shaped: RingArray
    """`out` in the value's shape."""
    matrix: RingArray
    packed_matrix: RingArray


@dataclass
class Buffers:
    """The buffers of all ops at one batch size."""

    of: dict[int, OpBuffers]
    nbytes: int
    """What they take together."""

    @classmethod
    def for_batch(cls, program: Program, batch: int) -> Buffers:
        """Buffers for `batch` queries at a time."""
        rooms = {
            index: room_of(program, op)
            for index, op in enumerate(program.ops)
            if op.kind in COMMUNICATING
        }
        scratch = [
            np.zeros(batch * max((room[i] for room in rooms.values()), default=0), np.int64)
            for i in range(4)
        ]
        places = place_results(program)
        sizes: dict[int, int] = {}
        for index, place in places.items():
            size = program.values[program.ops[index].output].size
            sizes[place] = max(sizes.get(place, 0), batch * size)
        results = {place: np.zeros(size, np.int64) for place, size in sizes.items()}
        of: dict[int, OpBuffers] = {}
        for index, room in rooms.items():
            value = program.values[program.ops[index].output]
            opened, packed, matrix, packed_matrix = (
                flat[: batch * words].reshape(batch, words)
                for flat, words in zip(scratch, room, strict=True)
            )
            out = results[places[index]][: batch * value.size].reshape(batch, value.size)
            shaped = out.reshape(batch, *value.shape)
            of[index] = OpBuffers(opened, packed, out, shaped, matrix, packed_matrix)
        return cls(of, sum(a.nbytes for a in (*scratch, *results.values())))


def room_of(program: Program, op: Op) -> tuple[int, int, int, int]:
    """Words per query of what the op opens, twice with its packed form."""
    count = sum(program.values[i].size for i in op.inputs)
    bits = op.attributes.get("comparison_bits", program.values[op.output].bits)
    if op.kind != "relu":
        return count, packed_words(count, bits), 0, 0
    opened_bits = plan_comparison(bits).opened_bits
    return count, packed_words(count, bits), count, packed_words(count, opened_bits)


def last_readers(program: Program) -> list[int]:
    """Per value the index of the last op that reads it; past the end for outputs."""
    last = [-1] * len(program.values)
    for index, op in enumerate(program.ops):
        last[op.output] = index
        for number in op.inputs:
            last[number] = index
    for port in program.outputs:
        last[port.value] = len(program.ops)
    return last


def expiring(program: Program) -> list[tuple[int, ...]]:
    """Per op the values that nobody reads after it."""
    dead: list[list[int]] = [[] for _ in program.ops]
    for number, index in enumerate(last_readers(program)):
        if 0 <= index < len(dead):
            dead[index].append(number)
    return [tuple(numbers) for numbers in dead]


def place_results(program: Program) -> dict[int, int]:
    """Per index of a communicating op: the number of the place where its result lies.

    Two results share a place only if the first one's last reader, through whatever views,
    comes before the op that makes the second one.
    """
    last = last_readers(program)
    # The results whose memory a value may show, and when each is seen for the last time.
    shown: dict[int, frozenset[int]] = {port.value: frozenset() for port in program.inputs}
    seen: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        if op.kind in COMMUNICATING:
            shown[op.output] = frozenset([index])
        elif op.kind in COPYING:
            shown[op.output] = frozenset()
        else:
            shown[op.output] = frozenset().union(*(shown[i] for i in op.inputs))
        for result in shown[op.output]:
            seen[result] = max(seen.get(result, 0), last[op.output])
    sizes: list[int] = []
    free: list[int] = []
    places: dict[int, int] = {}
    held: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        for result in [r for r in held if seen[r] < index]:
            free.append(held.pop(result))
        if op.kind not in COMMUNICATING:
            continue
        size = program.values[op.output].size
        # The smallest free place that is large enough, or else the largest one, grown.
        fitting = [p for p in free if sizes[p] >= size]
        if fitting:
            place = min(fitting, key=lambda p: sizes[p])
        elif free:
            place = max(free, key=lambda p: sizes[p])
        else:
            place = len(sizes)
            sizes.append(0)
            free.append(place)
        free.remove(place)
        sizes[place] = max(sizes[place], size)
        places[index] = held[index] = place
    return places
