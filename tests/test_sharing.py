from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privserve.sharing import join, split

RING = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=5),
    elements=st.integers(-(2**63), 2**63 - 1),
)


@given(secret=RING, parties=st.integers(2, 6))
def test_all_shares_together_give_the_secret(secret, parties) -> None:
    shares = split(secret, parties)
    assert len(shares) == parties
    assert all(share.shape == secret.shape and share.dtype == np.int64 for share in shares)
    np.testing.assert_array_equal(join(shares), secret)


def test_all_shares_but_one_do_not_give_the_secret() -> None:
    secret = np.arange(1000)
    shares = split(secret, 3)
    for missing in range(3):
        partial = join([share for i, share in enumerate(shares) if i != missing])
        assert not (partial == secret).any()


def test_two_sharings_of_one_secret_have_nothing_in_common() -> None:
    secret = np.zeros(1000, np.int64)
    for first, second in zip(split(secret, 3), split(secret, 3), strict=True):
        assert not (first == second).any()


def test_splitting_and_joining_leave_their_arguments_alone() -> None:
    secret = np.arange(10)
    shares = split(secret, 2)
    copies = [share.copy() for share in shares]
    join(shares)
    np.testing.assert_array_equal(secret, np.arange(10))
    np.testing.assert_array_equal(shares, copies)


def test_a_secret_is_not_shared_with_one_party() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        split(np.zeros(1, np.int64), 1)


def test_a_transposed_secret_is_shared_in_its_own_order() -> None:
    secret = np.arange(12).reshape(3, 4).T
    np.testing.assert_array_equal(join(split(secret, 2)), secret)
