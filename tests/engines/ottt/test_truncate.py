from __future__ import annotations

import numpy as np
import ottt_steps as steps
import pytest

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import reference
from privserve.engines.ottt.ops.comparison import is_wide
from privserve.engines.ottt.ops.truncate import finish_truncate, truncate_words
from privserve.prg import Prg
from privserve.sharing import split


@pytest.mark.parametrize("parties", [2, 3, 4])
@pytest.mark.parametrize(
    ("comparison_bits", "shift", "bits"), [(25, 14, 39), (25, 14, 64), (43, 14, 57), (12, 0, 40)]
)
def test_truncation_is_within_a_unit_per_party_at_every_border(
    parties, comparison_bits, shift, bits
):
    values = steps.borders(comparison_bits - 1, shift)
    outs = steps.truncate(split(values, parties), shift, comparison_bits, bits)
    assert np.abs(steps.signed(outs, bits) - (values >> shift)).max() <= parties


@pytest.mark.parametrize(("k", "bits"), [(25, 39), (26, 64), (12, 30), (43, 57)])
@pytest.mark.parametrize("lead", [0, 1])
def test_the_last_step_of_a_truncation_matches_the_reference_on_arbitrary_tuples(k, bits, lead):
    count, prg = 150, Prg()
    words = truncate_words(bits, k)
    pool = prg.int64((1, words * count))
    opened = prg.int64((1, count)) & packing.mask(k)
    out = np.empty((1, count), np.int64)
    finish_truncate(pool, 0, 0, opened, bits, k, int(is_wide(bits, k)), lead, out)
    for e in range(count):
        first = int(pool[0, e]) & (2**64 - 1)
        high = first >> bits if words == 1 else int(pool[0, count + e])
        share = {"r": first % 2**k, "w": first >> k, "w_m": high}
        expected = reference.finish_truncate(int(opened[0, e]), bits, k, lead, share)
        assert int(out[0, e]) % 2**bits == expected
