"""The product of two shared values in one exchange (Beaver, CRYPTO 1991).

With x - A and y - B open and C = A B dealt, x y = (x - A)(y - B) + (x - A) B + A (y - B) + C. The
masks A and B are drawn by every party; party 0 is sent its share of C. y may be smaller
than x: element e of the product uses element (e // inner) % len(y) of y, which covers a
factor per channel, per row or per sample without opening it more than once.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import kernel
from privserve.fixedpoint import RingArray


@kernel(
    "void(int64[:,::1], int64, int64, int64, int64[:,::1], int64, int64, int64, int64[:,::1])",
)
def finish_product(
    pool: RingArray,
    first: int,
    masks: int,
    c: int,
    opened: RingArray,
    factors: int,
    inner: int,
    lead: int,
    out: RingArray,
) -> None:
    """out = this party's share of x y from the opened (x - A, y - B), int64[B, len(x) + len(y)].

    masks: the word of a pack where A, then B begin; c: where C begins; factors: len(y);
    lead: 1 at party 0.
    """
    count = out.shape[1]
    for sample in range(out.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        xhat = opened[sample, :count]
        yhat = opened[sample, count : count + factors]
        a = row[masks : masks + count]
        b = row[masks + count : masks + count + factors]
        z = row[c : c + count]
        result = out[sample]
        e = 0
        while e < count:
            for f in range(factors):
                one, other = yhat[f], b[f] + lead * yhat[f]
                for k in range(e, e + inner):
                    result[k] = z[k] + a[k] * one + xhat[k] * other
                e += inner


@kernel(
    "void(int64[:,::1], int64[:,:,::1], int64, int64, int64, int64, int64, int64, int64[:,::1])"
)
def deal_product(
    first_stream: RingArray,
    shares: RingArray,
    masks: int,
    base: int,
    target: int,
    count: int,
    factors: int,
    inner: int,
    out: RingArray,
) -> None:
    """Party 0's share of C = A B, for a batch of packs; out[:, target:] is written.

    first_stream: int64[B, mask words] of party 0; shares: int64[n - 1, B, words] of the
    others, with A, B from word `masks` and C at `base`.
    """
    for sample in range(out.shape[0]):
        e = 0
        while e < count:
            for f in range(factors):
                b = first_stream[sample, masks + count + f]
                for i in range(shares.shape[0]):
                    b += shares[i, sample, masks + count + f]
                for k in range(e, e + inner):
                    a = first_stream[sample, masks + k]
                    c = np.int64(0)
                    for i in range(shares.shape[0]):
                        a += shares[i, sample, masks + k]
                        c -= shares[i, sample, base + k]
                    out[sample, target + k] = c + a * b
                e += inner
