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
    column c:      D[i,c] += R1[i,k] (lt_k + R2[k] eq_k), plus R1[i,k] R2[k-1] and in D[1,c] the bit

Let D(0) be D where all x_k are zero. It is a bijective function of R1, R2 and the mask bit
(R1 and R2 permute the matrices of a determinant freely, the mask bit chooses between the two
classes). So every party *draws* its XOR share of D(0), and the dealer works out which R1, R2 and
mask bit belong to what they drew; these are uniform then, as they have to be. Tables hold
what an x_k adds when it is not zero, T_k(x) = (chunk k's bits at x) - (those at 0), and nothing for
x = 0:

    r_k = 0:   T_k(x) = [R1[.,k] | R2[k] R1[.,k]]
    r_k > 0:   T_k(x) = 0 for x < r_k,    [R1[.,k] | (1 - R2[k]) R1[.,k]] for x = r_k,
                        [0 | R1[.,k]] for x > r_k

with 2 k *planes* (rows 1..k of column k, then of column c); the last chunk has the c planes of
column c only, 0 below r_c and R1[.,c] from r_c on. A *table* holds the planes of as many rows as
fit into a word: the entry of x = 1 in the lowest bits, then that of 2, and so on. D travels column
by column: column j takes j bits from j(j-1)/2.

In the kernels D is `matrix`, int64[B, count], its opened bits in one word per element; R1 and the
shares of D(0) lie in words alike, R2[k] is bit k - 1 of a word. Tables are parts of strings (see
`strings`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from privserve.engines.ottt.bits import pack
from privserve.engines.ottt.jit import Rows, Words, kernel
from privserve.engines.ottt.strings import put, take
from privserve.fixedpoint import RingArray
from privserve.program import MAX_COMPARISON_BITS, MIN_COMPARISON_BITS

WIDTHS = (1, 2, 3, 4, 5)
MAX_CHUNKS = 9

_ONLINE_WEIGHT = 6
"""One bit sent online weighs as much as this many dealt ones: it is on the critical path."""


@dataclass(frozen=True)
class ComparisonPlan:
    """How the K - 1 low bits of a K-bit comparison are cut."""

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
    def table_bits(self) -> int:
        """The bits of all tables, per element."""
        return sum(_table_bits(k, w, self.chunks) for k, w in enumerate(self.widths, 1))

    @property
    def mask_words(self) -> int:
        """Words per element that every party draws: for r, and above it or in the second for D(0).

        See `mask_place`.
        """
        return 1 if self.comparison_bits + self.opened_bits <= 64 else 2

    def cuts(self) -> RingArray:
        """Return int64[c, 2], per chunk: its bit position and width."""
        position, rows = self.comparison_bits - 1, []
        for width in self.widths:
            position -= width
            rows.append((position, width))
        return np.array(rows, dtype=np.int64)

    def spec(self, at: int) -> RingArray:
        """Return int64[tables, 6], the tables that begin at bit `at` of a string.

        Per table: its first bit, its chunk's bit position, width and number k, its first row of D
        (from 0) and the number of its rows.
        """
        waiting = []
        for k, (position, width) in enumerate(self.cuts().tolist(), 1):
            planes, entries = _planes_of_row(k, self.chunks), (1 << width) - 1
            most = 64 // (planes * entries)
            for row in range(0, k, most):
                many = min(most, k - row)
                waiting.append((planes * many * entries, position, width, k, row, many))
        # A table that lies in one word is read faster: the largest that does comes next.
        waiting.sort(reverse=True)
        tables = []
        while waiting:
            left = 64 - at % 64
            number = next((i for i, table in enumerate(waiting) if table[0] <= left), 0)
            bits, *table = waiting.pop(number)
            tables.append((at, *table))
            at += bits
        return np.array(tables, dtype=np.int64)


def _planes_of_row(k: int, chunks: int) -> int:
    return 1 if k == chunks else 2


def _table_bits(k: int, width: int, chunks: int) -> int:
    return k * _planes_of_row(k, chunks) * ((1 << width) - 1)


@cache
def plan_comparison(comparison_bits: int) -> ComparisonPlan:
    """Return the cheapest plan for a comparison of this many bits."""
    least, most = MIN_COMPARISON_BITS, MAX_COMPARISON_BITS
    if not least <= comparison_bits <= most:
        raise ValueError(f"a comparison has {least} to {most} bits, not {comparison_bits}")
    best: tuple[int, tuple[int, ...]] | None = None
    for chunks in range(1, MAX_CHUNKS + 1):
        # Fewest bits of tables for each number of bits covered by chunks 1..k.
        covered: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
        for k in range(1, chunks + 1):
            longer: dict[int, tuple[int, tuple[int, ...]]] = {}
            for total, (bits, widths) in covered.items():
                for width in WIDTHS:
                    entry = (bits + _table_bits(k, width, chunks), (*widths, width))
                    if total + width not in longer or entry < longer[total + width]:
                        longer[total + width] = entry
            covered = longer
        if comparison_bits - 1 in covered:
            bits, widths = covered[comparison_bits - 1]
            cost = bits + _ONLINE_WEIGHT * chunks * (chunks + 1) // 2
            if best is None or (cost, widths) < best:
                best = (cost, widths)
    assert best is not None  # every length that is allowed has a plan
    return ComparisonPlan(comparison_bits, best[1])


@kernel
def look_up(
    pool: Rows,
    first: int,
    masks: int,
    mask_words: int,
    fields: int,
    full: int,
    ready: int,
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
    ComparisonPlan.spec; masks, fields, ready: the words of a pack where the op's masks, its
    strings of `full` full words and their rest begin.
    """
    slots = pool.shape[0]
    batch, count = opened.shape
    keep = (np.int64(1) << comparison_bits) - np.int64(1)
    last = chunks * (chunks - 1) // 2
    table = np.empty(count, np.int64)
    for sample in range(batch):
        row = pool[(first + sample) % slots]
        words = row[fields : fields + full * count]
        rest = row[ready : ready + count]
        x = opened[sample]
        out = matrix[sample]
        for e in range(count):
            x[e] &= keep
        start, shift = row[masks : masks + count], comparison_bits
        if mask_words == 2:
            start, shift = row[masks + count : masks + 2 * count], 0
        for e in range(count):
            out[e] = start[e] >> shift
        for number in range(spec.shape[0]):
            at, position, width, k, above, rows = spec[number]
            values = (np.int64(1) << width) - np.int64(1)
            planes = (2 * rows if k < chunks else rows) & 63
            entry = (np.int64(1) << planes) - np.int64(1)
            low_rows = (np.int64(1) << rows) - np.int64(1) if k < chunks else np.int64(0)
            past = planes - rows
            here, there = k * (k - 1) // 2 + above, last + above
            q, shift, source = at >> 6, at & 63, table
            if shift + planes * values <= 64:
                source = words[q * count : (q + 1) * count] if q < full else rest
            else:
                take(words, rest, at, planes * values, table)
                shift = 0
            for e in range(count):
                v = (x[e] >> position) & values
                used = (v + values) >> width  # 0 where v is 0, else 1
                t = (source[e] >> (shift + ((v - used) & 63) * planes)) & entry & -used
                out[e] ^= ((t & low_rows) << here) ^ ((t >> past) << there)
        pack(out, count, opened_bits, packed[sample])


@kernel
def open_sign(x: Words, matrix: Words, chunks: int, top: int, paths: Words) -> None:
    """Set matrix to dhat = det D ^ mhat per element; x: what was opened, mhat its bit `top`.

    paths: int64[count], written to.
    """
    count = x.shape[0]
    # det D: bit j of `paths` is the parity of the paths from node 1 to node j + 1.
    for e in range(count):
        paths[e] = 1 | ((matrix[e] & 1) << 1)
    for j in range(2, chunks + 1):
        column = j * (j - 1) // 2
        if j <= 2:
            for e in range(count):
                p = (matrix[e] >> column) & paths[e]
                paths[e] |= ((p ^ (p >> 1)) & 1) << j
        elif j <= 4:
            for e in range(count):
                p = (matrix[e] >> column) & paths[e]
                p ^= p >> 2
                paths[e] |= ((p ^ (p >> 1)) & 1) << j
        else:
            for e in range(count):
                p = (matrix[e] >> column) & paths[e]
                p ^= p >> 8
                p ^= p >> 4
                p ^= p >> 2
                paths[e] |= ((p ^ (p >> 1)) & 1) << j
    for e in range(count):
        matrix[e] = ((paths[e] >> chunks) ^ (x[e] >> top)) & 1


@kernel
def work_out(
    r: Words,
    start: Words,
    cuts: Rows,
    columns: Words,
    factors: Words,
    corner: Words,
    differ: Words,
) -> None:
    """Set R1 (columns), R2 (factors) and the bit in the top right corner that make D(0) = start.

    r, start and the rest: int64[count]; start and differ are written to; cuts: see
    ComparisonPlan.cuts.
    """
    count, chunks = r.shape[0], cuts.shape[0]
    last = chunks * (chunks - 1) // 2
    position, width = cuts[chunks - 1]
    values = (np.int64(1) << width) - np.int64(1)
    for e in range(count):
        columns[e] = 1
        differ[e] = ((((r[e] >> position) & values) + values) >> width) << (chunks - 1)
    # Column k < c of D(0) is eq_k times column k of R1, plus column k + 1 of R1.
    for k in range(1, chunks):
        position, width = cuts[k - 1]
        values = (np.int64(1) << width) - np.int64(1)
        here, there = k * (k - 1) // 2, k * (k + 1) // 2
        rows = (np.int64(1) << k) - np.int64(1)
        for e in range(count):
            used = (((r[e] >> position) & values) + values) >> width
            differ[e] |= used << (k - 1)
            column = (columns[e] >> here) & (used - 1)
            following = (((start[e] >> here) ^ column) & rows) | (rows + 1)
            columns[e] |= following << there
    # Column c is R1 q: solved for q, whose bits are left in `start`.
    for e in range(count):
        start[e] >>= last
    for k in range(chunks, 1, -1):
        here = k * (k - 1) // 2
        rows = (np.int64(1) << (k - 1)) - np.int64(1)
        for e in range(count):
            start[e] ^= (columns[e] >> here) & rows & -((start[e] >> (k - 1)) & 1)
    # q_k = lt_k + R2[k] eq_k + R2[k-1], and q_1 has the corner's bit in place of R2[0]. So bit
    # k - 1 of what is found depends on bit k where r_k = 0: chains, followed by doubling.
    every = (np.int64(1) << chunks) - np.int64(1)
    for e in range(count):
        found, chained = (start[e] ^ differ[e]) & every, ~differ[e] & every
        found ^= chained & (found >> 1)
        chained &= chained >> 1
        found ^= chained & (found >> 2)
        chained &= chained >> 2
        found ^= chained & (found >> 4)
        chained &= chained >> 4
        found ^= chained & (found >> 8)
        corner[e] = found & 1
        factors[e] = found >> 1


@kernel
def deal_tables(
    r: Words,
    columns: Words,
    factors: Words,
    spec: Rows,
    chunks: int,
    table: Words,
    words: Words,
    rest: Words,
) -> None:
    """XOR one query's tables into the strings of `words` and `rest`.

    r, columns, factors: as of `work_out`; table: int64[count], written to.
    """
    count = r.shape[0]
    full = words.shape[0] // count
    for number in range(spec.shape[0]):
        at, position, width, k, above, rows = spec[number]
        values = (np.int64(1) << width) - np.int64(1)
        here = k * (k - 1) // 2 + above
        low_rows = (np.int64(1) << rows) - np.int64(1)
        planes = (2 * rows if k < chunks else rows) & 63  # which says that it is short
        keep = (np.int64(1) << (planes * values)) - np.int64(1)
        ones = np.int64(0)  # the lowest bit of every entry
        for x in range(values):
            ones |= np.int64(1) << (x * planes)
        q, shift, target = at >> 6, at & 63, table
        is_split = shift + planes * values > 64
        if is_split:
            shift = 0
            table[:] = 0
        else:
            target = words[q * count : (q + 1) * count] if q < full else rest
        if k < chunks:
            for e in range(count):
                v = (r[e] >> position) & values
                used = (v + values) >> width
                at_r = ((v - used) & 63) * planes
                column = (columns[e] >> here) & low_rows
                factor = -((factors[e] >> (k - 1)) & 1)
                all_of_k = column * ones
                all_of_c = all_of_k << rows
                if_used = (column << at_r) ^ (all_of_c << at_r << (planes & factor))
                if_zero = all_of_k ^ (all_of_c & factor)
                target[e] ^= ((if_zero ^ ((if_zero ^ if_used) & -used)) & keep) << shift
        else:
            for e in range(count):
                v = (r[e] >> position) & values
                used = (v + values) >> width
                column = (columns[e] >> here) & low_rows
                behind = (column * ones) << (((v - used) & 63) * planes)
                target[e] ^= (behind & -used & keep) << shift
        if is_split:
            put(words, rest, at, planes * values, table)
