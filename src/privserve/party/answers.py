"""What a compute party does to its share of an answer before the client gets it.

deal        nothing: the coins are each party's own, so the dealer knows none of them.
precompute  per row and output an addend: coins below 2^rounded_bits, plus a multiple of that, which
            is the same for all elements that the client's softmax normalises together.
open        nothing.
finish      add it to the share, and clear the low `rounded_bits` bits: the share is rounded up or
            down by chance, and a softmax's input moved by a constant.

One honest party is enough for both. docs/protocol.md, "What an answer tells", has the proofs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privserve.activations import normalised_axis
from privserve.description import OutputDescription
from privserve.fixedpoint import RingArray
from privserve.prg import Prg

AHEAD_WORDS = 1 << 13
"""About this many words are drawn ahead per output, or one row's."""


def addends(output: OutputDescription, rows: int, prg: Prg) -> RingArray:
    """Draw what shares are moved by before their low bits are cleared, int64[rows, *shape]."""
    bits, shape = output["rounded_bits"], (rows, *output["shape"])
    axis = normalised_axis(output["activation"], len(shape))
    drawn = prg.int64(shape) & _below(bits) if bits else np.zeros(shape, np.int64)
    if axis is not None:  # never the batch axis
        drawn += prg.int64((*shape[:axis], 1, *shape[axis + 1 :])) << bits
    return drawn


class AnswerCoins:
    """A party's coins for its answers of one session: drawn ahead, and each used once."""

    def __init__(self, outputs: Sequence[OutputDescription], prg: Prg) -> None:
        """prg: this party's own, which nobody else knows."""
        self._outputs = outputs
        self._prg = prg
        self._ahead = [np.zeros((0, *output["shape"]), np.int64) for output in outputs]
        self._kept = [~_below(output["rounded_bits"]) for output in outputs]
        """The bits that are told, per output."""
        self.draw_ahead()

    def draw_ahead(self) -> None:
        """Draw for the next batches, so that their clients need not wait for it."""
        for index, output in enumerate(self._outputs):
            most = max(1, AHEAD_WORDS // math.prod(output["shape"]))
            if 2 * len(self._ahead[index]) < most:
                self._ahead[index] = addends(output, most, self._prg)

    def told(self, shares: Sequence[RingArray]) -> list[RingArray]:
        """Return the shares of a batch as its clients may see them.

        shares: per output int64[B, *shape], and what guards there are, which stay as they are.
        """
        count = len(self._outputs)
        answers = [self._told(index, shares[index]) for index in range(count)]
        return [*answers, *shares[count:]]

    def _told(self, index: int, share: RingArray) -> RingArray:
        answer = share + self._taken(index, len(share))
        answer &= self._kept[index]
        return answer

    def _taken(self, index: int, rows: int) -> RingArray:
        """Addends that nothing else gets; a batch larger than what is ahead has them drawn now."""
        ahead = self._ahead[index]
        if len(ahead) < rows:
            return addends(self._outputs[index], rows, self._prg)
        self._ahead[index] = ahead[rows:]
        return ahead[:rows]


def _below(bits: int) -> np.int64:
    return np.int64((1 << bits) - 1)
