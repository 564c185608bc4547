"""Bilinear ops on ring elements: convolutions (strided, dilated, grouped) and dense layers.

A dense layer is a convolution whose kernel covers its input. Each op becomes an index map
(which input element every tap of every output position reads, -1 for padding) and a kernel
with the output channels innermost, where int64 products run at vector speed (or the
positions, where there are many). Large layers have no index map, which would be larger than
their weights: `blocked` has their kernels. Used by the parties on (xhat, W_i) and (A_i, What),
and by the dealer on (A, B).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privserve.engines.ottt import blocked
from privserve.engines.ottt.bits import pack
from privserve.engines.ottt.jit import kernel
from privserve.fixedpoint import RingArray


@kernel("void(int64[::1], int32[:,::1], int64[:,:,::1], int64, int64, int64[::1])")
def _add_by_position(
    x: RingArray,
    index: NDArray[np.int32],
    weight: RingArray,
    each: int,
    group_size: int,
    out: RingArray,
) -> None:
    """`_add_small` with positions innermost: what four taps read is gathered once."""
    groups, taps, _ = weight.shape
    positions = index.shape[0]
    read = np.zeros((4, 256), np.int64)
    r0, r1, r2, r3 = read[0], read[1], read[2], read[3]
    for g in range(groups):
        base = g * group_size
        # Blocks of positions, so that the outputs stay in the cache from tap to tap.
        for start in range(0, positions, 256):
            width = min(256, positions - start)
            for tap in range(0, taps, 4):
                many = min(4, taps - tap)
                for k in range(many):
                    row = read[k]
                    for p in range(width):
                        j = index[start + p, tap + k]
                        row[p] = x[base + j] if j >= 0 else np.int64(0)
                for o in range(each):
                    at = (g * each + o) * positions + start
                    y = out[at : at + width]
                    if many == 4:
                        w0 = weight[g, tap, o]
                        w1 = weight[g, tap + 1, o]
                        w2 = weight[g, tap + 2, o]
                        w3 = weight[g, tap + 3, o]
                        for p in range(width):
                            y[p] += w0 * r0[p] + w1 * r1[p] + w2 * r2[p] + w3 * r3[p]
                    else:
                        for k in range(many):
                            row = read[k]
                            factor = weight[g, tap + k, o]
                            for p in range(width):
                                y[p] += factor * row[p]


@kernel("void(int64[::1], int32[:,::1], int64[:,:,::1], int64, int64, int64[::1])")
def _add_small(
    x: RingArray,
    index: NDArray[np.int32],
    weight: RingArray,
    each: int,
    group_size: int,
    out: RingArray,
) -> None:
    """`convolve_add` by the index map."""
    groups, taps, padded = weight.shape
    positions = index.shape[0]
    if each < 4:
        for g in range(groups):
            for o in range(each):
                start = (g * each + o) * positions
                for tap in range(taps):
                    factor = weight[g, tap, o]
                    for p in range(positions):
                        j = index[p, tap]
                        if j >= 0:
                            out[start + p] += x[g * group_size + j] * factor
        return
    if positions >= 64:
        _add_by_position(x, index, weight, each, group_size, out)
        return
    total = np.empty(padded, np.int64)
    for g in range(groups):
        base = g * group_size
        for p in range(positions):
            for o in range(padded):
                total[o] = 0
            tap = 0
            while tap + 4 <= taps:
                j0 = index[p, tap]
                j1 = index[p, tap + 1]
                j2 = index[p, tap + 2]
                j3 = index[p, tap + 3]
                x0 = x[base + j0] if j0 >= 0 else np.int64(0)
                x1 = x[base + j1] if j1 >= 0 else np.int64(0)
                x2 = x[base + j2] if j2 >= 0 else np.int64(0)
                x3 = x[base + j3] if j3 >= 0 else np.int64(0)
                w0 = weight[g, tap]
                w1 = weight[g, tap + 1]
                w2 = weight[g, tap + 2]
                w3 = weight[g, tap + 3]
                for o in range(padded):
                    total[o] += x0 * w0[o] + x1 * w1[o] + x2 * w2[o] + x3 * w3[o]
                tap += 4
            while tap < taps:
                j = index[p, tap]
                if j >= 0:
                    factor = x[base + j]
                    row = weight[g, tap]
                    for o in range(padded):
                        total[o] += factor * row[o]
                tap += 1
            start = g * each * positions + p
            for o in range(each):
                out[start + o * positions] += total[o]


@kernel("void(int64[::1], int32[:,::1], int64[::1], int64[:,:,::1], int64, int64, int64[::1])")
def convolve_add(
    x: RingArray,
    index: NDArray[np.int32],
    window: RingArray,
    weight: RingArray,
    each: int,
    group_size: int,
    out: RingArray,
) -> None:
    """out[O * positions] += weight * x for one sample; x: int64[C * H * W].

    index, window: see Geometry.reading; weight: as Geometry.arrange gives it; each: outputs
    per group; group_size: input elements per group.
    """
    if window.shape[0]:
        blocked.convolve_add(x, window, weight, each, group_size, out)
    else:
        _add_small(x, index, weight, each, group_size, out)


@kernel(
    "void(int64[:,::1], int64, int64, int64[:,::1], int32[:,::1], int64[::1],"
    " int64[:,:,::1], int64, int64, int64[::1], int64[:,::1])"
)
def evaluate(
    pool: RingArray,
    first: int,
    z: int,
    xhat: RingArray,
    index: NDArray[np.int32],
    window: RingArray,
    weight: RingArray,
    each: int,
    group_size: int,
    bias: RingArray,
    out: RingArray,
) -> None:
    """out = L(xhat, W_i) + Z_i + bias_i for a batch; Z_i lies in the packs from word `z`."""
    for sample in range(xhat.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        y = out[sample]
        ready = row[z : z + y.shape[0]]
        for o in range(y.shape[0]):
            y[o] = ready[o] + bias[o]
        convolve_add(xhat[sample], index, window, weight, each, group_size, y)


@kernel(
    "void(int64[:,::1], int64, int64, int64, int64, int64, int64, int32[:,::1],"
    " int64[::1], int64[:,:,::1], int64, int64)"
)
def precompute(
    pool: RingArray,
    first: int,
    count: int,
    a: int,
    inputs: int,
    z: int,
    outputs: int,
    index: NDArray[np.int32],
    window: RingArray,
    weight: RingArray,
    each: int,
    group_size: int,
) -> None:
    """Z_i = L(A_i, What) + C_i in place of C_i, for `count` packs from slot `first`."""
    for k in range(count):
        row = pool[(first + k) % pool.shape[0]]
        convolve_add(
            row[a : a + inputs], index, window, weight, each, group_size, row[z : z + outputs]
        )


@kernel(
    "void(int64[:,::1], int64, int64[:,:,::1], int64, int64, int64, int64, int32[:,::1],"
    " int64[::1], int64[:,:,::1], int64, int64, int64[:,::1])"
)
def deal(
    first_stream: RingArray,
    a: int,
    shares: RingArray,
    inputs: int,
    c: int,
    target: int,
    outputs: int,
    index: NDArray[np.int32],
    window: RingArray,
    weight: RingArray,
    each: int,
    group_size: int,
    out: RingArray,
) -> None:
    """Party 0's C_0 = L(A, B) - sum of the other C_i, for a batch of packs.

    first_stream: int64[B, words of A], party 0's masks; shares: int64[n - 1, B, words], the
    other parties' streams, with A_i at word `a` and C_i at `c`; out[:, target:] is written.
    """
    total = np.empty(inputs, np.int64)
    for sample in range(out.shape[0]):
        own = first_stream[sample, a : a + inputs]
        for e in range(inputs):
            total[e] = own[e]
        for i in range(shares.shape[0]):
            theirs = shares[i, sample, a : a + inputs]
            for e in range(inputs):
                total[e] += theirs[e]
        y = out[sample, target : target + outputs]
        for o in range(outputs):
            y[o] = 0
        for i in range(shares.shape[0]):
            theirs = shares[i, sample, c : c + outputs]
            for o in range(outputs):
                y[o] -= theirs[o]
        convolve_add(total, index, window, weight, each, group_size, y)


@kernel("void(int64[:,::1], int64, int64, int64[:,::1], int64, int64[:,::1], int64[:,::1])")
def mask_input(
    pool: RingArray,
    first: int,
    a: int,
    x: RingArray,
    bits: int,
    masked: RingArray,
    packed: RingArray,
) -> None:
    """masked = x - A_i for a batch (int64[B, count]), and its low `bits` bits packed."""
    count = x.shape[1]
    for sample in range(x.shape[0]):
        row = pool[(first + sample) % pool.shape[0]]
        source = x[sample]
        out = masked[sample]
        mask = row[a : a + count]
        for e in range(count):
            out[e] = source[e] - mask[e]
        pack(out, count, bits, packed[sample])
