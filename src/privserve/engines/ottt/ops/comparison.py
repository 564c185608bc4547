"""The comparison that a ReLU needs, in one exchange: its encoding and its table layout.

The parties know that = t + r mod 2^K; the dealer knows r. Wanted, opened to everyone and
masked by a dealer's bit: borrow = [low < r_low], low and r_low the K - 1 low bits.

Cut both into c chunks, the most significant first: x_1..x_c and r_1..r_c, of widths
w_1..w_c. With eq_k = [x_k = r_k] and lt_k = [x_k < r_k],

    borrow = lt_1 + eq_1 (lt_2 + eq_2 (lt_3 + ...))           over GF(2)

is the number (mod 2) of paths from node 1 to node c + 1 in the graph with edges
k -> k+1 labelled eq_k (k < c) and k -> c+1 labelled lt_k. Such a count is the determinant of
the c x c matrix L over GF(2) with L[k,k] = eq_k, L[k,c] = lt_k (at [c,c]: lt_c), ones just
below the diagonal and zeros elsewhere. A further edge 1 -> c+1 labelled with a mask bit
adds that bit to the determinant.

For R1 uniform upper unitriangular and R2 the identity with a uniform last column above its
one, M = R1 L R2 is uniform among the matrices of this form with the determinant of L: it
says nothing else (Ishai and Kushilevitz, FOCS 2000; Applebaum, Ishai, Kushilevitz, FOCS
2004). With a uniform mask bit in the determinant M is plainly uniform.

Every bit of M is a sum of functions of one chunk each, so M can be opened from one-time
truth tables (Ishai et al., TCC 2013): for chunk k and each of its 2^w_k values the dealer
XOR-shares the bits that the chunk adds to M, and a party reads its share at the public
x_k. For rows i <= k, with R1[k,k] = 1 and R2[c] = 0,

    column k < c:  M[i,k]  = R1[i,k] eq_k + R1[i,k+1]
    column c:      M[i,c] += R1[i,k] (lt_k + R2[k] eq_k), plus constants put in chunk c.

A *plane* is one such bit for all 2^w values of x: bit x of the plane belongs to value x. The
planes of a chunk are [M[1..k,k], M[1..k,c]], for the last chunk [M[1..c,c]], and 64 / 2^w of
them share a word. M travels column by column: column j takes j bits from j(j-1)/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from privserve.fixedpoint import RingArray
from privserve.program import MAX_COMPARISON_BITS, MIN_COMPARISON_BITS

WIDTHS = (2, 3, 4, 5, 6)
MAX_CHUNKS = 8

# One byte sent online weighs as much as this many dealt ones: it is on the critical path.
_ONLINE_WEIGHT = 12.0


@dataclass(frozen=True)
class ComparisonPlan:
    """How the K - 1 low bits of a K-bit comparison are cut, and where its planes lie."""

    bits: int
    """K, the bits of the masked value."""
    widths: tuple[int, ...]
    """w_1..w_c, the most significant chunk first; they sum to K - 1."""

    @property
    def chunks(self) -> int:
        """c, the number of chunks."""
        return len(self.widths)

    @property
    def opened_bits(self) -> int:
        """The bits of M above its subdiagonal: c (c + 1) / 2."""
        return self.chunks * (self.chunks + 1) // 2

    @property
    def words(self) -> int:
        """64-bit words of tables per element."""
        return sum(_words(k, w, self.chunks) for k, w in enumerate(self.widths, 1))

    def spec(self) -> RingArray:
        """int64[words, 4], per word: chunk's bit position, width, number k, first plane."""
        rows = []
        position = self.bits - 1
        for k, width in enumerate(self.widths, 1):
            position -= width
            lanes = 64 >> width
            rows += [
                (position, width, k, word * lanes) for word in range(_words(k, width, self.chunks))
            ]
        return np.array(rows, dtype=np.int64)


def _words(k: int, width: int, chunks: int) -> int:
    planes = chunks if k == chunks else 2 * k
    return -(-planes * (1 << width) // 64)


@cache
def plan_comparison(bits: int) -> ComparisonPlan:
    """The cheapest plan for a comparison of `bits` bits."""
    least, most = MIN_COMPARISON_BITS, MAX_COMPARISON_BITS
    if not least <= bits <= most:
        raise ValueError(f"a comparison has {least} to {most} bits, not {bits}")
    best: tuple[float, tuple[int, ...]] | None = None
    for chunks in range(1, MAX_CHUNKS + 1):
        # Fewest words for each number of bits covered by chunks 1..k.
        table: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
        for k in range(1, chunks + 1):
            longer: dict[int, tuple[int, tuple[int, ...]]] = {}
            for covered, (words, widths) in table.items():
                for width in WIDTHS:
                    entry = (words + _words(k, width, chunks), (*widths, width))
                    total = covered + width
                    if total not in longer or entry < longer[total]:
                        longer[total] = entry
            table = longer
        if bits - 1 in table:
            words, widths = table[bits - 1]
            cost = 8 * words + _ONLINE_WEIGHT * chunks * (chunks + 1) / 16
            if best is None or (cost, widths) < best:
                best = (cost, widths)
    assert best is not None  # every length that is allowed has a plan
    return ComparisonPlan(bits, best[1])
