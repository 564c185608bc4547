"""Where each op's tuple lies in a pack: word offsets that all parties and the dealer share.

A pack is a run of 64-bit words, cut into *pieces*: the tuples of some ops that follow each
other. A piece begins with the masks of its ops, which every party draws from its own stream;
then come the fields that party 0 is sent by the dealer and that the other parties draw from
their streams too; and last what each party works out of these ahead of queries. The pack of a
small network is one piece, and many packs travel in a message. Of a large network's pack each
piece is a message, so that the dealer holds pieces only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from privserve.engines.ottt.ops import TUPLE_OPS
from privserve.engines.ottt.ops.check import FLAGS
from privserve.errors import ModelError
from privserve.program import Op, Program

MAX_PACK_WORDS = 1 << 31
MESSAGE_BYTES = 5 << 18
PIECE_BYTES = 16 << 20
"""A piece ends before the op with which it would exceed this; an op is never cut, nor are ops that
share a mask put into two."""
FRAME_WORDS = 1 << 17
"""A single pack's piece travels in frames of at most this many words, which stay in the cache."""


@dataclass(frozen=True)
class PackPiece:
    """The part of a pack that belongs to the ops first .. last - 1."""

    first: int
    last: int
    start: int
    """Its first word in the pack."""
    mask_words: int
    corrected_words: int
    """What party 0 is sent of it."""
    ready_words: int

    @property
    def drawn_words(self) -> int:
        """What the other parties draw of it, the masks among them."""
        return self.mask_words + self.corrected_words

    @property
    def words(self) -> int:
        """What it takes in a party's pool."""
        return self.drawn_words + self.ready_words

    def frames(self, count: int) -> list[slice]:
        """Return the corrected words of `count` packs' pieces that travel together."""
        each = FRAME_WORDS if count == 1 else self.corrected_words
        starts = range(0, self.corrected_words, each)
        return [slice(at, min(at + each, self.corrected_words)) for at in starts]


@dataclass(frozen=True)
class PackLayout:
    """The words of one pack."""

    masks: Mapping[int, int]
    """Per index of an op with masks (A; A and B of a product; r of a lookup): their first word.

    Ops that share a mask have the same.
    """
    fields: Mapping[int, int]
    """Per index of an op with a tuple: its first corrected word (C of a linear op)."""
    ready: Mapping[int, int]
    """Per index of an op that is prepared ahead: the first word for that (Z of a linear op)."""
    pieces: tuple[PackPiece, ...]

    @property
    def words(self) -> int:
        """Of a pack."""
        return sum(piece.words for piece in self.pieces)

    @property
    def corrected_words(self) -> int:
        """What party 0 is sent per pack."""
        return sum(piece.corrected_words for piece in self.pieces)

    @property
    def packs_per_message(self) -> int:
        """How many packs the dealer makes and sends at a time: about a megabyte's worth."""
        return 1 if len(self.pieces) > 1 else max(1, MESSAGE_BYTES // (8 * self.words))


def mask_words(program: Program, op: Op) -> int:
    """Return the words of the op's masks per query."""
    return TUPLE_OPS[op.kind].masks(program, op) if op.kind in TUPLE_OPS else 0


def tuple_words(program: Program, op: Op) -> int:
    """Return the corrected words of the op's tuple per query; its masks are not among them.

    A guarded op's shares of zero come last.
    """
    if op.kind not in TUPLE_OPS:
        return 0
    return TUPLE_OPS[op.kind].dealt(program, op) + (FLAGS if op.is_guarded else 0)


def ready_words(program: Program, op: Op) -> int:
    """Return the words per query that a party works out ahead for the op."""
    return TUPLE_OPS[op.kind].ready(program, op) if op.kind in TUPLE_OPS else 0


def lay_out(program: Program, piece_bytes: int = PIECE_BYTES) -> PackLayout:
    """Return the layout of `program`'s packs."""
    sizes = [
        (mask_words(program, op), tuple_words(program, op), ready_words(program, op))
        for op in program.ops
    ]
    cuts, held = [0], 0
    for index, parts in enumerate(sizes):
        more = sum(parts)
        is_alone = program.ops[index].output not in program.leaders
        if held and more and is_alone and held + more > piece_bytes // 8:
            cuts.append(index)
            held = 0
        held += more
    masks: dict[int, int] = {}
    fields: dict[int, int] = {}
    ready: dict[int, int] = {}
    pieces: list[PackPiece] = []
    word = 0
    for first, last in zip(cuts, [*cuts[1:], len(sizes)], strict=True):
        start, taken = word, []
        for part, places in enumerate((masks, fields, ready)):
            begin = word
            for index in range(first, last):
                if sizes[index][part]:
                    places[index] = word
                    word += sizes[index][part]
            if places is not ready:
                # Even a piece of nothing has a word of each, so that no buffer is ever empty.
                word = max(word, begin + 1)
            taken.append(word - begin)
        for index in range(first, last):
            if program.ops[index].output in program.leaders:
                masks[index] = masks[index - 1]  # which is its leader's
        pieces.append(PackPiece(first, last, start, *taken))
    if word > MAX_PACK_WORDS:
        raise ModelError(f"one query would need {8 * word / 1e9:.0f} GB of dealt randomness")
    return PackLayout(masks, fields, ready, tuple(pieces))
