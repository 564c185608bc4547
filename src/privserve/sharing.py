"""n-out-of-n secret sharing: additive in Z_2^64.

All n shares are needed to learn anything: any n - 1 of them are uniform and independent
of the secret (one-time pad). Shares come from an AES-CTR stream that nobody else can draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from privserve.fixedpoint import RingArray
from privserve.prg import Prg

MAX_COMPUTE_PARTIES = 32
"""A truncation is off by half a unit per party; the compiler's ranges have room for this many."""


def split(secret: RingArray, parties: int, prg: Prg | None = None) -> list[RingArray]:
    """Additive shares of `secret` (int64, any shape) for `parties` >= 2 parties.

    The shares have the secret's shape and sum to it mod 2^64. prg: a stream that nobody else can
    draw, and no other thread draws from meanwhile; a fresh one when None.
    """
    if parties < 2:
        raise ValueError(f"a secret is shared among at least 2 parties, not {parties}")
    secret = np.asarray(secret, dtype=np.int64, order="C")
    prg = prg or Prg()
    shares = [prg.int64(secret.shape) for _ in range(parties - 1)]
    last = secret.copy()
    for share in shares:
        np.subtract(last, share, out=last)
    return [*shares, last]


def join(shares: Sequence[RingArray]) -> RingArray:
    """The secret (int64) that additive `shares` of equal shape sum to, mod 2^64."""
    secret = np.array(shares[0], dtype=np.int64, copy=True)
    for share in shares[1:]:
        np.add(secret, share, out=secret)
    return secret
