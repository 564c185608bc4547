"""What compute parties sent each other online, taken apart by what the ops say they open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from privserve.engines.ottt.bits import packed_words
from privserve.engines.ottt.ops import openings_of
from privserve.engines.ottt.ops.opening import Opening
from privserve.program import Program


def unpack(words: np.ndarray, opening: Opening) -> np.ndarray:
    """The values in int64[B, words], by the definition of `bits`: int64[B, count]."""
    count, bits = opening.count, opening.bits
    lanes = -(-count // 64)
    planes = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    # Word w belongs to lane w % lanes; the words of a lane follow each other.
    by_lane = planes.reshape(len(words), -1, lanes, 64).transpose(0, 2, 1, 3)
    rows = -(-count // lanes)
    fields = by_lane.reshape(len(words), lanes, -1)[:, :, : rows * bits]
    fields = fields.reshape(len(words), lanes, rows, bits).transpose(0, 2, 1, 3)
    weights = np.left_shift(np.int64(1), np.arange(bits, dtype=np.int64))
    values = (fields.reshape(len(words), -1, bits) * weights).sum(2)
    return values[:, :count]


def online_values(
    program: Program, frames: Sequence[bytes], batches: Sequence[int]
) -> Iterator[tuple[Opening, np.ndarray]]:
    """Every opening of one party and its shares, int64[B, count], from what it sent.

    frames: all to one peer, the one that opens the weights first; batches: rows of each run.
    """
    online = iter(frames[1:])
    openings = [opening for op in program.ops for opening in openings_of(program, op)]
    for rows in batches:
        for number, opening in enumerate(openings):
            words = np.frombuffer(next(online), np.int64)[0 if number else 1 :]
            assert words.size == rows * opening.words
            for part in opening.parts:
                size = rows * packed_words(part.count, part.bits)
                yield part, unpack(words[:size].reshape(rows, -1), part)
                words = words[size:]
    assert next(online, None) is None


def bits_by_value(values: np.ndarray, bits: int) -> np.ndarray:
    """{0, 1}[elements, bits], the lowest bit first."""
    return (values.reshape(-1, 1) >> np.arange(bits) & 1).astype(np.uint8)
