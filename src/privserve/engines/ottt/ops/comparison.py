"""The comparison that a ReLU needs, in one exchange: its encoding, and its one-time tables.

The parties know opened = t + r mod 2^K; the dealer knows r. Wanted, opened to everyone and
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
one, D = R1 L R2 is uniform among the matrices of this form with the determinant of L: it
says nothing else (Ishai and Kushilevitz, FOCS 2000; Applebaum, Ishai, Kushilevitz, FOCS
2004). With a uniform mask bit in the determinant D is plainly uniform.

Every bit of D is a sum of functions of one chunk each, so D can be opened from one-time
truth tables (Ishai et al., TCC 2013): for chunk k and each of its 2^w_k values the dealer
XOR-shares the bits that the chunk adds to D, and a party reads its share at the public
x_k. For rows i <= k, with R1[k,k] = 1 and R2[c] = 0,

    column k < c:  D[i,k]  = R1[i,k] eq_k + R1[i,k+1]
    column c:      D[i,c] += R1[i,k] (lt_k + R2[k] eq_k), plus constants put in chunk c.

A *plane* is one such bit for all 2^w values of x: bit x of the plane belongs to value x. The
planes of a chunk are [D[1..k,k], D[1..k,c]], for the last chunk [D[1..c,c]], and 64 / 2^w of
them share a word. D travels column by column: column j takes j bits from j(j-1)/2.

In the kernels D is `matrix`, int64[B, count], its opened bits in one word per element.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from privserve.engines.ottt.bits import pack
from privserve.engines.ottt.jit import Planes, Rows, Words, inlined, kernel
from privserve.fixedpoint import RingArray
from privserve.program import MAX_COMPARISON_BITS, MIN_COMPARISON_BITS

WIDTHS = (2, 3, 4, 5, 6)
MAX_CHUNKS = 8

_ONLINE_WEIGHT = 12.0
"""One byte sent online weighs as much as this many dealt ones: it is on the critical path."""


@dataclass(frozen=True)
class ComparisonPlan:
    """How the K - 1 low bits of a K-bit comparison are cut, and where its planes lie."""

    comparison_bits: int
    """K, the bits of the masked value."""
    widths: tuple[int, ...]
    """w_1..w_c, the most significant chunk first; they sum to K - 1."""

    @property
    def chunks(self) -> int:
        """c, the number of chunks."""
        return len(self.widths)

    @property
    def opened_bits(self) -> int:
        """The bits of D above its subdiagonal: c (c + 1) / 2."""
        return self.chunks * (self.chunks + 1) // 2

    @property
    def words(self) -> int:
        """64-bit words of tables per element."""
        return sum(_words(k, w, self.chunks) for k, w in enumerate(self.widths, 1))

    def spec(self) -> RingArray:
        """Return int64[words, 4], per word: chunk's bit position, width, number k, first plane."""
        rows = []
        position = self.comparison_bits - 1
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
def plan_comparison(comparison_bits: int) -> ComparisonPlan:
    """Return the cheapest plan for a comparison of this many bits."""
    least, most = MIN_COMPARISON_BITS, MAX_COMPARISON_BITS
    if not least <= comparison_bits <= most:
        raise ValueError(f"a comparison has {least} to {most} bits, not {comparison_bits}")
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
        if comparison_bits - 1 in table:
            words, widths = table[comparison_bits - 1]
            cost = 8 * words + _ONLINE_WEIGHT * chunks * (chunks + 1) / 16
            if best is None or (cost, widths) < best:
                best = (cost, widths)
    assert best is not None  # every length that is allowed has a plan
    return ComparisonPlan(comparison_bits, best[1])


def is_wide(output_bits: int, comparison_bits: int) -> bool:
    """Tell whether w and w + m of a comparison's tuple take words of their own.

    Shares mod 2^M of b or r and mod 2^(M - K) of w lie in one word where they fit; see `relu`.
    """
    return 2 * output_bits - comparison_bits > 64


# The lowest bit of every lane of 2^2, 2^3, 2^4, 2^5 bits.
LANES2 = 0x1111111111111111
LANES3 = 0x0101010101010101
LANES4 = 0x0001000100010001
LANES5 = 0x0000000100000001


@inlined
def _gather(word: int, width: int) -> int:
    """The lowest bit of each lane of 2^width bits of `word`, side by side."""
    if width == 2:
        t = word & LANES2
        t = (t | (t >> 3)) & 0x0303030303030303
        t = (t | (t >> 6)) & 0x000F000F000F000F
        t = (t | (t >> 12)) & 0x000000FF000000FF
        return (t | (t >> 24)) & 0xFFFF
    if width == 3:
        t = word & LANES3
        t |= t >> 7
        t |= t >> 14
        return (t | (t >> 28)) & 0xFF
    if width == 4:
        t = word & LANES4
        t |= t >> 15
        return (t | (t >> 30)) & 0xF
    if width == 5:
        t = word & LANES5
        return (t | (t >> 31)) & 3
    return word & 1


@inlined
def _read_tables(
    table: Words, x: Words, position: int, width: int, k: int, chunks: int, plane: int, out: Words
) -> None:
    """out ^= what one table word of chunk k adds to D; `width` is a constant at each call."""
    column = k * (k - 1) // 2
    last = chunks * (chunks - 1) // 2
    has_column = 1 if k < chunks else 0
    rows = has_column * ((1 << k) - 1)
    past = has_column * k
    values = (np.int64(1) << width) - np.int64(1)
    for e in range(x.shape[0]):
        t = _gather(table[e] >> ((x[e] >> position) & values), width) << plane
        out[e] ^= ((t & rows) << column) ^ ((t >> past) << last)


@inlined
def _spread(planes: int, width: int) -> int:
    """A word whose lane j of 2^width bits is filled with bit j of `planes`."""
    if width == 2:
        x = planes & 0xFFFF
        x = (x | (x << 24)) & 0x000000FF000000FF
        x = (x | (x << 12)) & 0x000F000F000F000F
        x = (x | (x << 6)) & 0x0303030303030303
        x = (x | (x << 3)) & LANES2
        return (x << 4) - x
    if width == 3:
        x = planes & 0xFF
        x = (x | (x << 28)) & 0x0000000F0000000F
        x = (x | (x << 14)) & 0x0003000300030003
        x = (x | (x << 7)) & LANES3
        return (x << 8) - x
    if width == 4:
        x = planes & 0xF
        x = (x | (x << 30)) & 0x0000000300000003
        x = (x | (x << 15)) & LANES4
        return (x << 16) - x
    if width == 5:
        x = planes & 3
        x = (x | (x << 31)) & LANES5
        return (x << 32) - x
    return -(planes & 1)


@inlined
def _lanes(width: int) -> int:
    """The word with the lowest bit of each lane of 2^width bits set."""
    if width == 2:
        return LANES2
    if width == 3:
        return LANES3
    if width == 4:
        return LANES4
    if width == 5:
        return LANES5
    return 1


@inlined
def _make_tables(
    r: Words,
    free: Words,
    constants: Words,
    position: int,
    width: int,
    k: int,
    chunks: int,
    plane: int,
    table: Words,
) -> None:
    """table = one table word of chunk k in the clear; `width` is a constant at each call."""
    free1 = chunks * (chunks - 1) // 2
    values = (np.int64(1) << width) - np.int64(1)
    diagonal = np.int64(1) << (k - 1)
    rows = diagonal - np.int64(1)
    shift = (k - 1) * (k - 2) // 2
    lanes = _lanes(width)
    if k < chunks:
        rows_next = (np.int64(1) << k) - np.int64(1)
        shift_next = k * (k - 1) // 2
        r2 = free1 + k - 1
        for e in range(r.shape[0]):
            column = ((free[e] >> shift) & rows) | diagonal
            use_eq = _spread((column * (1 + (((free[e] >> r2) & 1) << k))) >> plane, width)
            use_lt = _spread((column << k) >> plane, width)
            flip = _spread(((free[e] >> shift_next) & rows_next) >> plane, width)
            equal = lanes << ((r[e] >> position) & values)
            table[e] = (equal & use_eq) ^ ((equal - lanes) & use_lt) ^ flip
    else:
        for e in range(r.shape[0]):
            column = ((free[e] >> shift) & rows) | diagonal
            use_lt = _spread(column >> plane, width)
            less = (lanes << ((r[e] >> position) & values)) - lanes
            table[e] = (less & use_lt) ^ _spread(constants[e] >> plane, width)


@kernel
def look_up(
    pool: Rows,
    first: int,
    tables: int,
    opened: Rows,
    spec: Rows,
    chunks: int,
    opened_bits: int,
    comparison_bits: int,
    matrix: Rows,
    packed: Rows,
) -> None:
    """Set matrix to this party's share of D, read from its tables at the chunks of `opened`.

    opened: int64[B, count], reduced to its low `comparison_bits` bits in place; spec: see
    ComparisonPlan.spec; tables: the word where the tables begin.
    """
    slots = pool.shape[0]
    batch, count = opened.shape
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        x = opened[sample]
        out = matrix[sample]
        for e in range(count):
            x[e] &= keep
            out[e] = 0
        for word in range(spec.shape[0]):
            position, width, k, plane = spec[word]
            table = row[tables + word * count : tables + (word + 1) * count]
            if width == 2:
                _read_tables(table, x, position, 2, k, chunks, plane, out)
            elif width == 3:
                _read_tables(table, x, position, 3, k, chunks, plane, out)
            elif width == 4:
                _read_tables(table, x, position, 4, k, chunks, plane, out)
            elif width == 5:
                _read_tables(table, x, position, 5, k, chunks, plane, out)
            else:
                _read_tables(table, x, position, 6, k, chunks, plane, out)
        pack(out, count, opened_bits, packed[sample])


@inlined
def open_sign(x: Words, matrix: Words, chunks: int, top: int, paths: Words) -> None:
    """Set matrix to dhat = det D ^ mhat per element; x: what was opened, mhat its bit `top`.

    paths: int64[count], written to.
    """
    count = x.shape[0]
    # det D: bit j of `paths` is the parity of the paths from node 1 to node j + 1.
    for e in range(count):
        paths[e] = 1
    for j in range(1, chunks + 1):
        column = j * (j - 1) // 2
        for e in range(count):
            p = (matrix[e] >> column) & paths[e]
            p ^= p >> 4
            p ^= p >> 2
            p ^= p >> 1
            paths[e] |= (p & 1) << j
    for e in range(count):
        matrix[e] = ((paths[e] >> chunks) ^ (x[e] >> top)) & 1


@kernel
def deal_tables(
    r: Words,
    free: Words,
    constants: Words,
    spec: Rows,
    chunks: int,
    others: Planes,
    sample: int,
    fields: int,
    tables: Words,
) -> None:
    """Set tables to party 0's shares of one query's tables, those of the others taken off.

    r: int64[count]; free: the dealer's bits of R1 and R2; constants: of the last column of D;
    others: int64[n - 1, B, words], with the tables at word `fields`.
    """
    count = r.shape[0]
    for word in range(spec.shape[0]):
        position, width, k, plane = spec[word]
        table = tables[word * count : (word + 1) * count]
        if width == 2:
            _make_tables(r, free, constants, position, 2, k, chunks, plane, table)
        elif width == 3:
            _make_tables(r, free, constants, position, 3, k, chunks, plane, table)
        elif width == 4:
            _make_tables(r, free, constants, position, 4, k, chunks, plane, table)
        elif width == 5:
            _make_tables(r, free, constants, position, 5, k, chunks, plane, table)
        else:
            _make_tables(r, free, constants, position, 6, k, chunks, plane, table)
        start = fields + word * count
        for i in range(others.shape[0]):
            theirs = others[i, sample, start : start + count]
            for e in range(count):
                table[e] ^= theirs[e]
