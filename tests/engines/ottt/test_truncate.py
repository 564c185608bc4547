from __future__ import annotations

import numpy as np
import ottt_steps as steps
import pytest

from privserve.engines.ottt import bits as packing
from privserve.engines.ottt import reference
from privserve.engines.ottt.ops.truncate import finish_truncate, string_bits
from privserve.engines.ottt.strings import string_words
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
    count, prg, high = 150, Prg(), bits - k
    drawn = prg.int64((1, count + string_words(count, 2 * high)))
    pools = steps.made_ready([drawn], count, count, string_bits(bits, k))
    (pool,) = pools.packs
    opened = prg.int64((1, count)) & packing.mask(k)
    out = np.empty((1, count), np.int64)
    finish_truncate(pool, 0, 0, count, pools.ready, opened, bits, k, lead, out)
    w, w_m = steps.parts_of(pools, (high, high), count)
    for e in range(count):
        share = {"r": int(pool[0, e]) % 2**k, "w": w[0, 0, e], "w_m": w_m[0, 0, e]}
        expected = reference.finish_truncate(int(opened[0, e]), bits, k, lead, share)
        assert int(out[0, e]) % 2**bits == expected
