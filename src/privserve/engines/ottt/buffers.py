"""What the ops of a program write into at one batch size, made once and used for every batch.

What an op opens is read within the op only, so all ops share that room. Its result stays
until the last op that reads it, and then lends its room to a later result: a large network
needs room for the widest few of its layers and not for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from privserve.engines.ottt.ops import openings_of
from privserve.fixedpoint import RingArray
from privserve.program import OP_KINDS, Memory, Program


@dataclass(frozen=True)
class OpBuffers:
    """What one op writes into at one batch size."""

    openings: tuple[tuple[RingArray, RingArray], ...]
    """Per opening all its values, int64[B * values], and their packed form, int64[B * words]."""
    out: RingArray
    """int64[B, size]"""
    shaped: RingArray
    """`out` in the value's shape."""


@dataclass
class Buffers:
    """The buffers of all ops at one batch size."""

    of: dict[int, OpBuffers]
    nbytes: int
    """What they take together."""

    @classmethod
    def for_batch(cls, program: Program, batch: int) -> Buffers:
        """Make buffers for `batch` queries at a time."""
        scratch = [
            (np.zeros(batch * count, np.int64), np.zeros(batch * words, np.int64))
            for count, words in scratch_sizes(program)
        ]
        places = place_results(program)
        sizes = result_sizes(program, places)
        results = {place: np.zeros(batch * size, np.int64) for place, size in sizes.items()}
        of: dict[int, OpBuffers] = {}
        for index, place in places.items():
            op = program.ops[index]
            value = program.values[op.output]
            openings = tuple(
                (values[: batch * opening.values], packed[: batch * opening.words])
                for opening, (values, packed) in zip(
                    openings_of(program, op), scratch, strict=False
                )
            )
            out = _rows(results[place], batch, value.size)
            of[index] = OpBuffers(openings, out, out.reshape(batch, *value.shape))
        arrays = [*results.values(), *(array for pair in scratch for array in pair)]
        return cls(of, sum(array.nbytes for array in arrays))


def _rows(flat: RingArray, batch: int, words: int) -> RingArray:
    """The beginning of `flat` as int64[batch, words]."""
    return flat[: batch * words].reshape(batch, words)


def scratch_sizes(program: Program) -> list[tuple[int, int]]:
    """Return the words per query for an op's first opening, its second one ..., and packed."""
    sizes: list[tuple[int, int]] = []
    for op in program.ops:
        for number, opening in enumerate(openings_of(program, op)):
            if number == len(sizes):
                sizes.append((0, 0))
            count, words = sizes[number]
            sizes[number] = max(count, opening.values), max(words, opening.words)
    return sizes


def result_sizes(program: Program, places: Mapping[int, int]) -> dict[int, int]:
    """Return the words per query of every place of `place_results`."""
    sizes: dict[int, int] = {}
    for index, place in places.items():
        size = program.values[program.ops[index].output].size
        sizes[place] = max(sizes.get(place, 0), size)
    return sizes


def last_readers(program: Program) -> list[int]:
    """Return per value the index of the last op that reads it; past the end for outputs."""
    last = [-1] * len(program.values)
    for index, op in enumerate(program.ops):
        last[op.output] = index
        for number in op.inputs:
            last[number] = index
    for port in program.outputs:
        last[port.value] = len(program.ops)
    return last


def expiring(program: Program) -> list[tuple[int, ...]]:
    """Return per op the values that nobody reads after it."""
    dead: list[list[int]] = [[] for _ in program.ops]
    for number, index in enumerate(last_readers(program)):
        if 0 <= index < len(dead):
            dead[index].append(number)
    return [tuple(numbers) for numbers in dead]


def place_results(program: Program) -> dict[int, int]:
    """Return per index of a communicating op the number of the place where its result lies.

    Two results share a place only if the first one's last reader, through whatever views,
    comes before the op that makes the second one.
    """
    last = last_readers(program)
    # The results whose memory a value may show, and when each is seen for the last time.
    shown: dict[int, frozenset[int]] = {port.value: frozenset() for port in program.inputs}
    seen: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        kind = OP_KINDS[op.kind]
        if kind.communicates:
            shown[op.output] = frozenset([index])
        elif kind.memory is Memory.NEW:
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
        if not OP_KINDS[op.kind].communicates:
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
