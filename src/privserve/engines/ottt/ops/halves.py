"""Both halves of one comparison: max(u, 0) and min(u, 0) of a shared y, u = y >> s.

What is dealt and opened is a ReLU's (see `relu`). d = [u >= 0] gives d u there. d = 0 implies
that t = u + 2^(K-1) has a zero top bit, so that t + r wraps exactly if mhat = 0 and m = 1, and
u = opened - 2^(K-1) - rho_(1 - mhat). With 1 - d = b or 1 - b as dhat is 1 or 0,

    min(u, 0) = (1 - d) u = (1 - d) (opened - 2^(K-1) - rho_(1 - mhat)),

whose coefficients are public: the tuple has shares of b, rho_0, rho_1, b rho_0 and b rho_1. So u
itself, their sum, comes without a truncation.

1. *Deal*, 2. *Precompute*, 3. *Open* as a ReLU does.
4. *Finish*. d u as a ReLU does, and behind it (1 - d) u.
"""

from __future__ import annotations

import numpy as np

from privserve.engines.ottt.jit import Rows, kernel
from privserve.engines.ottt.ops.comparison import open_sign
from privserve.engines.ottt.ops.opening import Site, Step, TupleOp
from privserve.engines.ottt.ops.relu import RELU, bind_comparison, both_ends
from privserve.engines.ottt.strings import take


@kernel
def finish_halves(
    pool: Rows,
    first: int,
    masks: int,
    fields: int,
    full: int,
    ready: int,
    opened: Rows,
    matrix: Rows,
    chunks: int,
    output_bits: int,
    comparison_bits: int,
    lead: int,
    out: Rows,
) -> None:
    """Set out, int64[B, 2 * count], to shares of max(u, 0) and of min(u, 0).

    The arguments are those of `finish_relu`; dhat is left in `matrix`.
    """
    batch, count = opened.shape
    top, high = comparison_bits - 1, output_bits - comparison_bits
    half, pair = np.int64(1) << top, output_bits + high
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    room = np.empty((6, count), np.int64)
    paths, b, w, b_rho1, w_m, b_m = room[0], room[1], room[2], room[3], room[4], room[5]
    for sample in range(batch):
        row = pool[(first + sample) % pool.shape[0]]
        r = row[masks : masks + count]
        words, rest = row[fields : fields + full * count], row[ready : ready + count]
        take(words, rest, 0, output_bits, b)
        take(words, rest, output_bits, high, w)
        take(words, rest, pair, output_bits, b_rho1)
        take(words, rest, pair + output_bits, high, w_m)
        take(words, rest, 2 * pair, high, b_m)
        x, dhat = opened[sample], matrix[sample]
        positive, negative = out[sample, :count], out[sample, count:]
        open_sign(x, dhat, chunks, top, paths)
        for e in range(count):
            zero, more = both_ends(x[e], r[e], w[e], w_m[e], 0, b[e], b_rho1[e], b_m[e], top, lead)
            positive[e] = zero + (more & -dhat[e])
            if_one = -(x[e] >> top)  # all ones where mhat is 1
            public = x[e] - half
            wrap = w_m[e] ^ ((w[e] ^ w_m[e]) & if_one)
            rho = (r[e] & keep) - (wrap << comparison_bits)
            b_u = b[e] * public - b_rho1[e] - ((b_m[e] & if_one) << comparison_bits)
            rest_of_u = (public & -lead) - rho - b_u
            negative[e] = rest_of_u ^ ((rest_of_u ^ b_u) & -dhat[e])


def _bind(site: Site) -> Step:
    return bind_comparison(site, finish_halves)


HALVES = TupleOp(
    _bind,
    RELU.openings,
    masks=RELU.masks,
    dealt=RELU.dealt,
    ready=RELU.ready,
    deal=RELU.deal,
    ahead=RELU.ahead,
)
