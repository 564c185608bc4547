"""The opening itself, and what an op that takes a tuple from the pack is to the engine.

Every op that communicates goes through the same four steps:

1. *Deal*. Every party draws its words of the op's tuple from its own stream: masks, and what the
   dealer sends to party 0 instead, corrections: the op's secrets minus what the others drew.
2. *Precompute*. What a party can work out before a query comes, in words of its own.
3. *Open*. Each party masks its share of x with words of the pack, and all send each other what
   comes out: with A = sum A_i and r = sum r_i mod 2^K,

       opened = x - A mod 2^bits                           (linear ops, products)
       opened = (x >> shift) + offset + r mod 2^K          (comparisons, lookups)

   uniform whatever x is, since A or r is. An opening takes one exchange and carries `bits` bits
   per element.
4. *Finish*. Each party computes its share of the result from what was opened and its tuple.

`TupleOp` is what an op says of these steps. Layout, costs, buffers, dealer and online phase follow
from it: they know no op by its name. A pack's words are in `layout`.

In the kernels' arguments: pool int64[slots, pack words]; first the slot of the batch's first pack
(slots wrap around); lead 1 at party 0, which adds public terms, else 0; values int64[B, count].
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.engines.ottt.bits import pack, packed_words, unpack_add, unpack_dealt, unpack_xor
from privserve.engines.ottt.jit import Rows, kernel
from privserve.engines.ottt.ops.arrangement import HeldWeight
from privserve.engines.ottt.stats import Stats
from privserve.errors import ClusterError, TooManyRows
from privserve.fixedpoint import RingArray
from privserve.mesh import Mesh
from privserve.program import Op, Program

NO_PACK = -1
LACKING = struct.pack("<q", NO_PACK)
"""Sent for a batch's first opening by a party that has no memory for the batch."""

Step = Callable[[int], None]
"""An op's online step; takes the number of the batch's first pack."""
Source = Callable[[], RingArray]
DealerStep = Callable[[RingArray, RingArray, RingArray], None]
"""Writes an op's corrections for a batch of packs, piece by piece.

Takes int64[B, mask words], party 0's masks; int64[n - 1, B, drawn words], the streams of the
others; and int64[B, corrected words] to write to.
"""
AheadStep = Callable[[int, int], None]
"""What a party computes of an op's tuple ahead of queries; takes the number of the first pack and
how many packs."""


@dataclass(frozen=True)
class Opening:
    """One exchange: `count` values of `bits` bits per query, which sum up (or XOR) to public."""

    count: int
    bits: int
    xor: bool = False
    beside: tuple[Opening, ...] = ()
    """What else travels in the exchange, of other sizes."""

    @property
    def parts(self) -> tuple[Opening, ...]:
        """All that travels, in order."""
        return self, *self.beside

    @property
    def values(self) -> int:
        """How many values are opened per query."""
        return sum(part.count for part in self.parts)

    @property
    def words(self) -> int:
        """64-bit words that a party sends to each peer per query."""
        return sum(packed_words(part.count, part.bits) for part in self.parts)


@dataclass(frozen=True)
class Place:
    """Where the words of an op's tuple lie, for the dealer."""

    masks: int
    """In a piece."""
    fields: int
    """In a piece."""
    target: int
    """In the piece's corrections: where the fields go."""


@dataclass(frozen=True)
class Held:
    """Where an op's tuple lies in the packs of a party's pool."""

    packs: RingArray
    """int64[slots, words]"""
    masks: int
    fields: int
    ready: int
    weight: HeldWeight | None
    """Of a linear op."""


@dataclass(frozen=True)
class BoundPart:
    """One part of an opening, at one party."""

    total: RingArray
    """This party's values, int64[B, count]; after `open`, those that all parties' sum up to."""
    packed: RingArray
    """Where this party puts their low bits, int64[B, words]."""


@dataclass(frozen=True)
class BoundOpening:
    """An opening at one party, bound to the arrays of one batch size."""

    parts: tuple[BoundPart, ...]
    """As of the opening."""
    open: Callable[[], None]
    nbytes: int
    """What is sent to each peer."""

    @property
    def total(self) -> RingArray:
        """Of the first part."""
        return self.parts[0].total

    @property
    def packed(self) -> RingArray:
        """Of the first part."""
        return self.parts[0].packed


@dataclass(frozen=True)
class Guard:
    """What a guarded op needs to flag rows that left its range; see `check`."""

    zeros: int
    """The word of a pack where its shares of zero begin."""
    coefficients: RingArray
    matrix: RingArray
    flags: RingArray
    """Its words, int64[B, FLAGS]."""


@dataclass(frozen=True)
class Site:
    """One op at one compute party, for batches of one size: what its step reads and writes."""

    program: Program
    op: Op
    packs: RingArray
    """The pool's, int64[slots, words]."""
    masks: int
    """The word of a pack where its masks begin."""
    fields: int
    """The word where the corrected words of its tuple begin."""
    ready: int
    """The word where what was worked out ahead begins."""
    parties: int
    rank: int
    inputs: tuple[Source, ...]
    """Its inputs, contiguous int64[B, size] each."""
    openings: tuple[BoundOpening, ...]
    out: RingArray
    """int64[B, size]"""
    weight: HeldWeight | None
    """Of a linear op."""
    guard: Guard | None
    """None where its range is sound."""

    @property
    def lead(self) -> int:
        """1 at the party that adds public constants, else 0."""
        return int(self.rank == 0)

    @property
    def output_bits(self) -> int:
        """The low bits of its output that matter."""
        return self.program.values[self.op.output].bits

    @property
    def bias(self) -> int:
        """What this party adds before the op's shift; see `rounding`."""
        return self.lead * rounding(self.parties, self.op.attributes["shift"])


def _no_words(program: Program, op: Op) -> int:
    return 0


def _no_opening(program: Program, op: Op) -> tuple[Opening, ...]:
    return ()


@dataclass(frozen=True)
class TupleOp:
    """A kind of op that takes a tuple from the pack, by what it deals, opens and computes."""

    bind: Callable[[Site], Step]
    """The online step, for batches of one size."""
    openings: Callable[[Program, Op], tuple[Opening, ...]] = _no_opening
    """Its exchanges, in order."""
    masks: Callable[[Program, Op], int] = _no_words
    """Words per query that every party, party 0 too, draws from its stream."""
    dealt: Callable[[Program, Op], int] = _no_words
    """Words per query that party 0 is sent, shares of zero for a guard not among them."""
    ready: Callable[[Program, Op], int] = _no_words
    """Words per query that a party works out ahead."""
    deal: Callable[[Program, Op, Place, RingArray | None], DealerStep] | None = None
    """The dealer's step, from where the tuple lies and B, the mask of a linear op's weight."""
    ahead: Callable[[Program, Op, Held], AheadStep] | None = None
    """What works out the words of `ready`."""
    dealer_table: Callable[[Program, Op], int] = _no_words
    """Words that the dealer holds for the op as long as the session lasts, B not among them."""


def rounding(parties: int, shift: int) -> int:
    """Return what party 0 adds before a shift, so that the dropped carries average to zero.

    A share-wise shift loses 0 to n - 1 units, and the real quotient's fraction; with n/2
    units added the result lies within n/2 of the quotient, without a bias.
    """
    return parties << (shift - 1) if shift else 0


@kernel
def mask_input(
    pool: Rows, first: int, masks: int, values: Rows, bits: int, masked: Rows, packed: Rows
) -> None:
    """Set masked = values - A_i and pack its low `bits` bits; masks: the word where A_i begins."""
    count = values.shape[1]
    for sample in range(values.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        source = values[sample]
        out = masked[sample]
        mask = row[masks : masks + count]
        for e in range(count):
            out[e] = source[e] - mask[e]
        pack(out, count, bits, packed[sample])


@kernel
def mask_shifted(
    pool: Rows,
    first: int,
    masks: int,
    offset: int,
    values: Rows,
    shift: int,
    comparison_bits: int,
    bias: int,
    masked: Rows,
    packed: Rows,
) -> None:
    """Set masked = ((values + bias) >> shift) + offset + r_i mod 2^K, and pack it.

    masks: the word of the fields that carry r_i in their low K = `comparison_bits` bits.
    """
    slots = pool.shape[0]
    batch, count = values.shape
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        source = values[sample]
        out = masked[sample]
        mask = row[masks : masks + count]
        for e in range(count):
            out[e] = (((source[e] + bias) >> shift) + offset + mask[e]) & keep
        pack(out, count, comparison_bits, packed[sample])


@kernel
def _unpack_values(
    pool: Rows, first: int, many: int, fields: int, ready: int, count: int, bits: int
) -> None:
    """Unpack `count` values of `bits` bits at word `fields` to words, in `many` packs."""
    for k in range(many):
        row = pool[(first + k) % pool.shape[0]]
        unpack_dealt(row[fields:], count, bits, row[ready : ready + count])


def unpack_values(program: Program, op: Op, held: Held) -> AheadStep:
    """Return what unpacks one dealt value per element of the op's output, of its bits."""
    value = program.values[op.output]

    def step(first: int, many: int) -> None:
        _unpack_values(held.packs, first, many, held.fields, held.ready, value.size, value.bits)

    return step


def open_shifted(site: Site, masks: int, offset: int) -> Step:
    """Return the step that opens (x >> shift) + offset + r mod 2^K, the op's first opening.

    masks: the word of a pack where the r_i lie.
    """
    packs, (source, *_), opening = site.packs, site.inputs, site.openings[0]
    shift, comparison_bits = site.op.attributes["shift"], site.op.attributes["comparison_bits"]
    bias, total, packed, open_ = site.bias, opening.total, opening.packed, opening.open
    offset *= site.lead

    def step(first: int) -> None:
        mask_shifted(
            packs, first, masks, offset, source(), shift, comparison_bits, bias, total, packed
        )
        open_()

    return step


def cut_up(flat: RingArray, sizes: Sequence[int], batch: int) -> list[RingArray]:
    """Return what lies in `flat` one after the other: int64[batch, size] of each size."""
    ends = np.cumsum([batch * size for size in sizes]).tolist()
    return [
        flat[end - batch * size : end].reshape(batch, size)
        for end, size in zip(ends, sizes, strict=True)
    ]


def bind_opening(
    opening: Opening,
    values: RingArray,
    packed: RingArray,
    numbered: RingArray | None,
    batch: int,
    mesh: Mesh,
    stats: Stats,
) -> BoundOpening:
    """Return the opening of `values` at the party of `mesh`: int64[B * opening.values], its shares.

    It adds (or XORs) the other parties' packed shares to them. packed: int64[B * opening.words].
    numbered: for a run's first opening, which is packed there instead, int64[1 + B * words]; its
    first word is the number of the first pack that the run takes, and travels in front. Parties
    that disagree raise ClusterError before any uses what was opened under other masks.
    """
    payload = packed.data.cast("B")
    if numbered is not None:
        packed, payload = numbered[1:], numbered.data.cast("B")
    sizes = [packed_words(part.count, part.bits) for part in opening.parts]
    totals = cut_up(values, [part.count for part in opening.parts], batch)
    parts = tuple(map(BoundPart, totals, cut_up(packed, sizes, batch)))
    steps = [
        (unpack_xor if part.xor else unpack_add, part.count, part.bits, total)
        for part, total in zip(opening.parts, totals, strict=True)
    ]
    peers = [peer for peer in range(mesh.n) if peer != mesh.rank]
    # A channel hands frames of one size out in one view again and again: to read each view as
    # words once takes 6 % off a small network's query.
    seen: list[memoryview | None] = [None] * mesh.n
    numbers: list[RingArray] = [packed] * mesh.n
    rows: list[list[RingArray]] = [[]] * mesh.n

    def open_() -> None:
        began = time.perf_counter()
        received = mesh.exchange(payload)
        stats.exchange_seconds += time.perf_counter() - began
        for peer in peers:
            frame = received[peer]
            if frame is not seen[peer]:
                ahead = 0 if numbered is None else 1
                if ahead and frame is not None and bytes(frame[:9]) == LACKING:
                    raise lacking_memory(batch)
                words = received_words(mesh, peer, frame, ahead + packed.size)
                numbers[peer], rows[peer] = words[:ahead], cut_up(words[ahead:], sizes, batch)
                seen[peer] = frame if words.base is not None else None  # no copy
            if numbered is not None and numbers[peer][0] != numbered[0]:
                raise ClusterError("the parties' packs are out of step; share the model again")
            for (unpack, count, bits, total), row in zip(steps, rows[peer], strict=True):
                unpack(row, count, bits, total)

    return BoundOpening(parts, open_, payload.nbytes)


def lacking_memory(rows: int) -> TooManyRows:
    """Return what a batch ends with where a party has no memory for it."""
    return TooManyRows(f"a party has no memory for {rows} rows at a time; ask fewer per query")


def received_words(mesh: Mesh, peer: int, frame: memoryview | None, count: int) -> RingArray:
    """Return the frame of `peer` as `count` int64 words; copied only where it is not aligned.

    Raises BadFrame where it holds more or less than that.
    """
    assert frame is not None  # only the own rank's is
    if len(frame) != 8 * count:
        raise mesh.bad_frame(peer, f"{len(frame)} bytes in place of {8 * count}")
    words: NDArray[Any] = np.frombuffer(frame, dtype=np.int64)
    return words if words.flags.aligned else words.copy()
