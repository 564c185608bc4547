"""What a compute party does to its share of an answer before the client gets it.

deal        nothing: the coins are each party's own, so the dealer knows none of them.
precompute  nothing.
open        nothing.
finish      round the share to a multiple of 2^rounded_bits, up or down by chance; where the client
            applies a softmax, add one constant to all elements that it normalises together.

One honest party is enough for both. docs/protocol.md, "What an answer tells", has the proofs.
"""

from __future__ import annotations

from collections.abc import Sequence

from privserve import sharing
from privserve.activations import normalised_axis
from privserve.description import OutputDescription
from privserve.fixedpoint import RingArray
from privserve.prg import Prg


def told(
    shares: Sequence[RingArray], outputs: Sequence[OutputDescription], prg: Prg
) -> list[RingArray]:
    """Return the shares of a batch as its clients may see them.

    shares: per output int64[B, *shape], and what guards there are, which stay as they are;
    prg: this party's own, which nobody else knows.
    """
    answers = [
        _told(share, output, prg)
        for share, output in zip(shares, outputs, strict=False)  # the guards come last
    ]
    return [*answers, *shares[len(outputs) :]]


def _told(share: RingArray, output: OutputDescription, prg: Prg) -> RingArray:
    bits = output["rounded_bits"]
    answer = sharing.rounded(share, bits, prg)
    axis = normalised_axis(output["activation"], share.ndim)
    if axis is None:
        return answer
    constant = prg.int64((*share.shape[:axis], 1, *share.shape[axis + 1 :]))
    return answer + (constant << bits)
