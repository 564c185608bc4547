"""What a client makes of the shares that it gets: differences in the ring, then the activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privserve import sharing
from privserve.activations import apply_activation, joined
from privserve.errors import ClusterError

ANY_WORD = st.integers(-(2**63), 2**63 - 1)
BOUND = 2**62 - 1
"""What the compiler lets an output's elements reach."""


@given(st.data())
def test_a_constant_of_any_size_changes_no_answer_of_a_softmax(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    activation = {"op": data.draw(st.sampled_from(["Softmax", "LogSoftmax"])), "axis": axis}
    bits = data.draw(st.sampled_from([0, 14, 32, 60]))
    elements = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(-BOUND, BOUND)))
    once = list(shape)
    once[axis] = 1
    constant = data.draw(hnp.arrays(np.int64, once, elements=ANY_WORD))
    # The definition, in Python's integers: no difference leaves [-2^63, 2^63).
    whole = elements.astype(object)
    differences = whole - whole.take([0], axis=axis)
    meant = apply_activation((differences / 2**bits).astype(np.float64), activation)
    for hidden in (elements, elements + constant):
        got = joined(sharing.split(hidden, 3), activation, bits)
        np.testing.assert_allclose(got, meant, rtol=1e-12, atol=1e-12)
        logs = joined(sharing.split(hidden, 2), activation, bits, logits=True)
        np.testing.assert_allclose(
            logs,
            apply_activation((differences / 2**bits).astype(np.float64), {**activation, "op": LOG}),
            rtol=1e-12,
            atol=1e-12,
        )


LOG = "LogSoftmax"


@pytest.mark.parametrize("activation", [None, {"op": "Sigmoid"}, {"op": "Sqrt"}])
def test_of_anything_else_logits_are_what_was_joined(activation: Any) -> None:
    elements = np.array([[3 << 14, -(5 << 14)]])
    got = joined(sharing.split(elements, 2), activation, 14, logits=True)
    assert got.tolist() == [[3.0, -5.0]]
    answer = joined(sharing.split(elements, 2), activation, 14)
    np.testing.assert_array_equal(answer, apply_activation(got, activation))


def test_an_unknown_activation_is_refused_by_name() -> None:
    with pytest.raises(ClusterError, match="unknown activation Hardmax"):
        joined(sharing.split(np.zeros((1, 2), np.int64), 2), {"op": "Hardmax"}, 14)
