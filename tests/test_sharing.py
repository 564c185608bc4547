from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privserve.sharing import join, join_bits, split, split_bits

RING = hnp.arrays(
    np.int64,
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=5),
    elements=st.integers(-(2**63), 2**63 - 1),
)
SPLITS = pytest.mark.parametrize(("divide", "unite"), [(split, join), (split_bits, join_bits)])


@SPLITS
@given(secret=RING, parties=st.integers(2, 6))
def test_all_shares_together_give_the_secret(divide, unite, secret, parties) -> None:
    shares = divide(secret, parties)
    assert len(shares) == parties
    assert all(share.shape == secret.shape and share.dtype == np.int64 for share in shares)
    np.testing.assert_array_equal(unite(shares), secret)


@SPLITS
def test_all_shares_but_one_do_not_give_the_secret(divide, unite) -> None:
    secret = np.arange(1000)
    shares = divide(secret, 3)
    for missing in range(3):
        partial = unite([share for i, share in enumerate(shares) if i != missing])
        assert not (partial == secret).any()


@SPLITS
def test_two_sharings_of_one_secret_have_nothing_in_common(divide, unite) -> None:
    secret = np.zeros(1000, np.int64)
    for first, second in zip(divide(secret, 3), divide(secret, 3), strict=True):
        assert not (first == second).any()


@SPLITS
def test_splitting_and_joining_leave_their_arguments_alone(divide, unite) -> None:
    secret = np.arange(10)
    shares = divide(secret, 2)
    copies = [share.copy() for share in shares]
    unite(shares)
    np.testing.assert_array_equal(secret, np.arange(10))
    np.testing.assert_array_equal(shares, copies)


@SPLITS
def test_a_secret_is_not_shared_with_one_party(divide, unite) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        divide(np.zeros(1, np.int64), 1)


def test_a_transposed_secret_is_shared_in_its_own_order() -> None:
    secret = np.arange(12).reshape(3, 4).T
    np.testing.assert_array_equal(join(split(secret, 2)), secret)
