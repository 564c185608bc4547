"""Where each op's tuple lies in a pack: word offsets that all parties and the dealer share.

A pack is a run of 64-bit words: first the masks of all linear ops, products and lookups,
which every party draws from its own stream, then the fields that party 0 is sent by the
dealer and that the other parties draw from their streams too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from privserve.engines.ottt import nonlinear
from privserve.engines.ottt.comparison import plan_comparison
from privserve.engines.ottt.lookup import table_words
from privserve.program import Op, Program

MESSAGE_BYTES = 5 << 18


@dataclass(frozen=True)
class PackLayout:
    """The words of one pack."""

    masks: Mapping[int, int]
    """Per index of an op with masks (A; A and B of a product; r of a lookup): their first word."""
    fields: Mapping[int, int]
    """Per index of an op with a tuple: its first corrected word (C of a linear op)."""
    mask_words: int
    words: int

    @property
    def corrected_words(self) -> int:
        """What party 0 is sent per pack."""
        return self.words - self.mask_words

    @property
    def packs_per_message(self) -> int:
        """How many packs the dealer makes and sends at a time: about a megabyte's worth."""
        return max(1, MESSAGE_BYTES // (8 * self.words))


def tuple_words(program: Program, op: Op) -> int:
    """Corrected words of the op's tuple per query; its masks are not among them."""
    value = program.values[op.output]
    if op.kind == "linear":
        return value.size
    if op.kind == "relu":
        plan = plan_comparison(op.attributes["comparison_bits"])
        return value.size * nonlinear.relu_words(plan, value.bits)
    if op.kind == "truncate":
        k = op.attributes["comparison_bits"]
        return value.size * nonlinear.truncate_words(value.bits, k)
    if op.kind == "multiply":
        return value.size
    if op.kind == "lookup":
        return value.size * table_words(op.attributes)
    return 0


def lay_out(program: Program) -> PackLayout:
    """The layout of `program`'s packs."""
    masks: dict[int, int] = {}
    word = 0
    for index, op in enumerate(program.ops):
        if op.kind in ("linear", "multiply", "lookup"):
            masks[index] = word
            word += sum(program.values[i].size for i in op.inputs)
    # Even a pack of nothing has a word of each part, so that no buffer is ever empty.
    mask_words = word = max(word, 1)
    fields: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        if words := tuple_words(program, op):
            fields[index] = word
            word += words
    return PackLayout(masks, fields, mask_words, max(word, mask_words + 1))
