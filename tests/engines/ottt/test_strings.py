"""Strings of a tuple: parts are written and read where the reference says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.engines.ottt import reference
from privserve.engines.ottt.strings import (
    begin,
    end,
    put,
    put_shares,
    string_words,
    take,
    take_two,
    unpack_ahead,
)
from privserve.prg import Prg

sizes = st.lists(st.integers(0, 64), min_size=1, max_size=8)


def laid(parts: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """The words of the strings of these parts, int64[elements] each."""
    strings = [
        reference.join_parts([(int(p[e]), size) for p, size in zip(parts, sizes, strict=True)])
        for e in range(len(parts[0]))
    ]
    words = reference.lay_strings(strings, sum(sizes))
    return np.array(words, np.uint64).view(np.int64)


def is_same(values: np.ndarray, meant: np.ndarray, size: int) -> bool:
    return all((int(v) - int(m)) % 2**size == 0 for v, m in zip(values, meant, strict=True))


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(1, 40))
def test_parts_are_put_and_taken_where_the_reference_has_them(sizes, count):
    bits = sum(sizes)
    full = bits // 64 * count
    parts = [Prg().int64(count) for _ in sizes]
    words, rest = np.zeros(full, np.int64), np.zeros(count, np.int64)
    out = np.zeros(string_words(count, bits), np.int64)
    at = 0
    for part, size in zip(parts, sizes, strict=True):
        put(words, rest, at, size, part)
        at += size
    out[:full] = words
    end(rest, bits, out[full:])
    assert np.array_equal(out, laid(parts, sizes))
    pool = np.concatenate([out, Prg().int64(count)])[None]
    unpack_ahead(pool, 0, 1, 0, out.size, count, bits)
    ready = pool[0, out.size :]
    at, got, other = 0, np.zeros(count, np.int64), np.zeros(count, np.int64)
    pairs = [*zip(sizes, parts, strict=True), (0, parts[0])]
    for (size, part), (further, behind) in pairwise(pairs):
        take(pool[0, :full], ready, at, size, got)
        assert is_same(got, part, size)
        take_two(pool[0, :full], ready, at, size, got, further, other)
        assert is_same(got, part, size)
        assert is_same(other, behind, further)
        at += size


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=4), sizes, st.integers(1, 3), st.data())
def test_party_0s_strings_are_the_values_minus_the_other_parties_shares(added, xored, others, data):
    """Sums modulo a part's size in front, XORs behind."""
    count = data.draw(st.integers(1, 20))
    sizes = [*added, *xored]
    bits, shared = sum(sizes), sum(added)
    full, words = bits // 64 * count, string_words(count, bits)
    parts = [[Prg().int64(count) for _ in sizes] for _ in range(others)]
    streams = np.array([[np.append(Prg().int64(3), laid(p, sizes))] for p in parts])
    values = [Prg().int64(count) for _ in sizes]
    out, rest = Prg().int64(words), Prg().int64(count)
    rests, part = np.zeros((others, count), np.int64), np.zeros(count, np.int64)
    begin(streams, 0, 3, bits, shared, rests, out[:full], rest)
    at = number = 0
    while number < len(added):
        two = number + 1 < len(added) and data.draw(st.booleans())
        further = added[number + 1] if two else 0
        behind = values[number + 1].copy() if two else part
        place = (streams, 0, 3, bits, rests, at, added[number], values[number].copy())
        put_shares(*place, further, behind, part, out[:full], rest)
        at += added[number] + further
        number += 1 + two
    for value, size in zip(values[len(added) :], xored, strict=True):
        put(out[:full], rest, at, size, value)
        at += size
    end(rest, bits, out[full:])
    meant = [
        value - sum(p[i] for p in parts)
        if i < len(added)
        else np.bitwise_xor.reduce([value, *(p[i] for p in parts)])
        for i, value in enumerate(values)
    ]
    assert np.array_equal(out, laid(meant, sizes))
