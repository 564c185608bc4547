"""Slow, obviously right versions of the fused kernels, one element at a time in Python ints.

Tests hold each kernel against the function of the same name here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve.engines.ottt.ops.comparison import ComparisonPlan
from privserve.fixedpoint import RingArray
from privserve.functions import evaluate
from privserve.splines import fit

Matrix = NDArray[np.int64]


def pack(values: Sequence[int], bits: int, most: int = 64) -> list[int]:
    """Return the words of `bits.pack`: each of ceil(N / 64) columns as one long integer, cut up.

    most: 16 for those of `bits.pack_dealt`.
    """
    lanes = -(-len(values) // most)
    rows = -(-len(values) // lanes)
    words = -(-rows * bits // 64)
    columns = [
        sum(
            (int(v) & (2**bits - 1)) << (row * bits)
            for row, v in enumerate(list(values)[lane::lanes])
        )
        for lane in range(lanes)
    ]
    return [columns[i % lanes] >> (64 * (i // lanes)) & (2**64 - 1) for i in range(words * lanes)]


def join_parts(parts: Sequence[tuple[int, int]]) -> int:
    """Return the string of an element from its parts, (value, bits) each, the first one lowest."""
    string = at = 0
    for value, size in parts:
        string |= value % 2**size << at
        at += size
    return string


def lay_strings(strings: Sequence[int], bits: int) -> list[int]:
    """Return the words in which all elements' strings of `bits` bits lie; see `strings`."""
    words = [s >> 64 * q & (2**64 - 1) for q in range(bits // 64) for s in strings]
    if bits % 64:
        words += pack([s >> (bits - bits % 64) for s in strings], bits % 64, 16)
    return words


def chunks_of(plan: ComparisonPlan, value: int) -> list[int]:
    """Return the chunks x_1..x_c of the K - 1 low bits of `value`, the most significant first."""
    chunks, position = [], plan.comparison_bits - 1
    for width in plan.widths:
        position -= width
        chunks.append(value >> position & (2**width - 1))
    return chunks


def comparison_matrix(
    plan: ComparisonPlan, x: int, r: int, mask_bit: int, r1: Matrix, r2: Matrix
) -> Matrix:
    """Return D = R1 L R2 over GF(2), for L of determinant [x_low < r_low] ^ mask_bit.

    r1, r2: {0,1}[c, c], upper unitriangular; r2 differs from the identity in its last
    column only.
    """
    c = plan.chunks
    matrix = np.zeros((c, c), dtype=np.int64)
    for k, (xk, rk) in enumerate(zip(chunks_of(plan, x), chunks_of(plan, r), strict=True)):
        if k < c - 1:
            matrix[k, k] = xk == rk
            matrix[k + 1, k] = 1
        matrix[k, c - 1] ^= int(xk < rk)
    matrix[0, c - 1] ^= mask_bit
    product: Matrix = r1 @ matrix @ r2 % 2
    return product


def work_out(plan: ComparisonPlan, r: int, start: Matrix) -> tuple[Matrix, Matrix, int]:
    """Return R1, R2 and the corner's bit for which D is `start` where x is 0."""
    c = plan.chunks
    chunks = chunks_of(plan, r)
    r1, r2 = np.eye(c, dtype=np.int64), np.eye(c, dtype=np.int64)
    for k in range(c - 1):
        column = (start[:, k] + (chunks[k] == 0) * r1[:, k]) % 2
        r1[: k + 1, k + 1] = column[: k + 1]
    q = start[:, c - 1].copy()
    for k in reversed(range(c)):
        q[:k] = (q[:k] + q[k] * r1[:k, k]) % 2
    above = 0
    for k in reversed(range(c)):
        below = above * (chunks[k] == 0) if k < c - 1 else 0
        above = (int(q[k]) + (chunks[k] > 0) + int(below)) % 2
        if k:
            r2[k - 1, c - 1] = above
    return r1, r2, above


def unpack_matrix(word: int, chunks: int) -> Matrix:
    """Return D's bits on and above the diagonal as a matrix; see `pack_matrix`."""
    matrix = np.zeros((chunks, chunks), dtype=np.int64)
    position = 0
    for column in range(chunks):
        for row in range(column + 1):
            matrix[row, column] = word >> position & 1
            position += 1
    return matrix


def pack_matrix(matrix: Matrix) -> int:
    """Return D's bits on and above the diagonal, column by column."""
    word = position = 0
    for column in range(matrix.shape[1]):
        for row in range(column + 1):
            word |= int(matrix[row, column]) << position
            position += 1
    return word


def determinant(word: int, chunks: int) -> int:
    """Return det over GF(2) of the matrix with these packed bits and ones below its diagonal."""
    matrix = unpack_matrix(word, chunks) + np.eye(chunks, k=-1, dtype=np.int64)
    return abs(round(float(np.linalg.det(matrix.astype(float))))) % 2


def finish_halves(
    opened: int, dhat: int, output_bits: int, plan: ComparisonPlan, lead: int, share: dict[str, int]
) -> tuple[int, int]:
    """Return shares of max(u, 0) and min(u, 0); the arguments are those of `finish_relu`."""
    half, full = 1 << (plan.comparison_bits - 1), 1 << plan.comparison_bits
    public = opened - half
    if opened >= half:  # mhat is 1: rho_0
        rho, b_rho = share["r"] - full * share["w"], share["b_rho1"] + full * share["b_m"]
    else:
        rho, b_rho = share["r"] - full * share["w_m"], share["b_rho1"]
    b_u = share["b"] * public - b_rho
    negative = b_u if dhat else lead * public - rho - b_u  # 1 - d is b where dhat is 1
    positive = finish_relu(opened, dhat, output_bits, plan, lead, share)
    return positive, negative % (1 << output_bits)


def relu_ends(
    opened: int, output_bits: int, plan: ComparisonPlan, lead: int, share: dict[str, int]
) -> tuple[int, int]:
    """Return shares of y0, which ReLU(u) is where dhat is 0, and of D, what dhat = 1 adds to it."""
    y0, y1 = (finish_relu(opened, dhat, output_bits, plan, lead, share) for dhat in (0, 1))
    return y0, (y1 - y0) % (1 << output_bits)


def relu_linear(
    e0: Sequence[int],
    e1: Sequence[int],
    dhat: Sequence[int],
    share: Mapping[str, Any],
    bits: int,
) -> list[int]:
    """Return a share of W ReLU(u) + bias mod 2^bits, from y0 - A and D - A' as they were opened.

    share: weight (W_i) and open_weight [O, N], a and a_more [N], c and bias [O], c_products [N, O].
    """
    out = []
    for o, bias in enumerate(share["bias"]):
        total = int(bias) + int(share["c"][o])
        for j, is_one in enumerate(dhat):
            weight, opened = int(share["weight"][o][j]), int(share["open_weight"][o][j])
            total += (int(e0[j]) + is_one * int(e1[j])) * weight + int(share["a"][j]) * opened
            product = int(share["a_more"][j]) * opened + int(share["c_products"][j][o])
            total += is_one * product
        out.append(total % (1 << bits))
    return out


def finish_relu(
    opened: int, dhat: int, output_bits: int, plan: ComparisonPlan, lead: int, share: dict[str, int]
) -> int:
    """Return a share of ReLU(u) mod 2^output_bits from shares named b, b_rho1, r, w, w_m, b_m."""
    half, full = 1 << (plan.comparison_bits - 1), 1 << plan.comparison_bits
    mhat = opened >> (plan.comparison_bits - 1)
    public = opened % half + (0 if mhat else half)
    rho0 = share["r"] - full * share["w"]
    rho1 = share["r"] - full * share["w_m"]
    b_rho0 = share["b_rho1"] + full * share["b_m"]
    rho, b_rho = (rho1, share["b_rho1"]) if mhat else (rho0, b_rho0)
    if dhat:  # d = 1 - b
        return (lead * public - rho - (share["b"] * public - b_rho)) % (1 << output_bits)
    return (share["b"] * public - b_rho) % (1 << output_bits)


def finish_truncate(
    opened: int, output_bits: int, comparison_bits: int, lead: int, share: dict[str, int]
) -> int:
    """Return a share of u mod 2^output_bits from shares named r, w, w_m."""
    full, half = 1 << comparison_bits, 1 << (comparison_bits - 1)
    wrap = share["w"] if opened >= half else share["w_m"]
    return (lead * (opened - half // 2) - share["r"] + full * wrap) % (1 << output_bits)


def excess(u: int, comparison_bits: int, guard: int) -> int:
    """Return q in [0, 2^guard): how many times 2^K a K-bit comparison of u is off."""
    half = 1 << (comparison_bits - 1)
    u_k = (u + half) % (1 << comparison_bits) - half
    return ((u - u_k) >> comparison_bits) % (1 << guard)


def flags(
    excesses: Sequence[int], guard: int, coefficients: Sequence[int], matrix: Matrix
) -> list[int]:
    """Return what a guarded op's words sum to mod 2^64: the matrix times sums of 2^(64-g) q."""
    sums = [
        sum(q for q, c in zip(excesses, coefficients, strict=True) if int(c) >> k & 1)
        << (64 - guard)
        for k in range(40)
    ]
    return [sum(int(m) * s for m, s in zip(row, sums, strict=True)) % 2**64 for row in matrix]


def linear(x: RingArray, weight: RingArray, geometry: dict[str, list[int]]) -> RingArray:
    """Return a grouped convolution by its definition, over the integers mod 2^64.

    x: int64[C, H, W]; weight: int64[O, C / groups, kh, kw]; geometry: strides, dilations,
    pads (top, left, bottom, right), groups ([g]). Returns int64[O, H', W'].
    """
    (sh, sw), (dh, dw) = geometry["strides"], geometry["dilations"]
    top, left, bottom, right = geometry["pads"]
    groups = geometry["groups"][0]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    outs, per_group, kh, kw = weight.shape
    height = (padded.shape[1] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[2] - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((outs, height, width), dtype=np.int64)
    for o in range(outs):
        first = o // (outs // groups) * per_group
        for i in range(height):
            for j in range(width):
                patch = padded[
                    first : first + per_group,
                    i * sh : i * sh + dh * (kh - 1) + 1 : dh,
                    j * sw : j * sw + dw * (kw - 1) + 1 : dw,
                ]
                out[o, i, j] = (patch * weight[o]).sum()
    return out


def lookup(attributes: Mapping[str, Any], opened: int, r: int) -> int:
    """Return what a lookup's shares sum to mod 2^64: the quadratic of the interval's segment."""
    bits, segment_bits = attributes["comparison_bits"], attributes["segment_bits"]
    low, unit = attributes["low"], attributes["unit"]
    width = 1 << segment_bits
    begin = ((opened // width) * width - r) % (1 << bits)
    if begin >= (1 << bits) - width:  # the interval wraps around; only its end is ever met
        begin -= 1 << bits
    start = np.array([(begin + low) * unit])
    c = fit(lambda x: evaluate(attributes["function"], x), attributes["piece"], start, width * unit)
    z = opened % width - width // 2
    scale = 2.0 ** attributes["output_bits"]
    return sum(round(float(c[k, 0]) * scale * unit**k) * z**k for k in range(3))


def product(x: Sequence[int], y: Sequence[int], inner: int) -> list[int]:
    """Return x times y by element, as signed numbers mod 2^64; y repeats as in `product`."""
    exact = [v * y[e // inner % len(y)] for e, v in enumerate(x)]
    return [(v + 2**63) % 2**64 - 2**63 for v in exact]


def square(opened: int, lead: int, share: Mapping[str, int]) -> int:
    """Return a share of x^2 mod 2^64 from x - A and shares named a and c."""
    return (lead * opened**2 + 2 * opened * share["a"] + share["c"]) % 2**64
