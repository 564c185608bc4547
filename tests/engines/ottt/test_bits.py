from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import reference
from privserve.prg import Prg


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64))
def test_packing_matches_the_reference_and_unpacks_to_the_same_values(count, bits):
    values = Prg().int64(count)
    out = np.zeros(packing.packed_words(count, bits), np.int64)
    packing.pack(values, count, bits, out)
    expected = reference.pack(values.tolist(), bits)
    assert [w & (2**64 - 1) for w in out.tolist()] == expected
    total = np.zeros((1, count), np.int64)
    packing.unpack_add(out[None], count, bits, total)
    assert np.array_equal(total[0], values & packing.mask(bits))
    packing.unpack_xor(out[None], count, bits, total)
    assert not total.any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64))
def test_what_is_dealt_is_packed_as_the_reference_says(count, bits):
    values = Prg().int64(count)
    out = np.zeros(packing.dealt_words(count, bits), np.int64)
    packing.pack_dealt(values, count, bits, out)
    expected = reference.pack(values.tolist(), bits, 16)
    assert [w & (2**64 - 1) for w in out.tolist()] == expected
    back = Prg().int64(count)
    packing.unpack_dealt(out, count, bits, back)
    assert np.array_equal(back, values & packing.mask(bits))
