from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privserve.engines.ottt import reference
from privserve.engines.ottt.ops import blocked, linear
from privserve.engines.ottt.ops.arrangement import arrange, arrangement, index_map, window_of
from privserve.geometry import Geometry
from privserve.prg import Prg

GEOMETRIES = {
    "valid": Geometry((3, 9, 8), 10, (3, 3)),
    "same padding": Geometry((4, 7, 7), 5, (3, 3), pads=(1, 1, 1, 1)),
    "strided, lopsided padding": Geometry((2, 8, 9), 8, (3, 2), (2, 2), (0, 1, 1, 0)),
    "dilated": Geometry((3, 11, 11), 6, (3, 3), dilations=(2, 3)),
    "grouped": Geometry((6, 6, 6), 12, (3, 3), groups=2),
    "depthwise": Geometry((6, 6, 6), 6, (3, 3), pads=(1, 1, 1, 1), groups=6),
    "depthwise with a multiplier": Geometry((3, 6, 6), 15, (3, 3), groups=3),
    "depthwise, strided, dilated": Geometry((2, 11, 9), 4, (3, 2), (2, 3), (2, 1, 0, 1), (2, 2), 2),
    "few outputs": Geometry((5, 9, 9), 3, (3, 3), pads=(1, 1, 1, 1)),
    "many positions": Geometry((3, 18, 19), 5, (3, 3), pads=(0, 1, 1, 0)),
    "many positions, grouped, strided": Geometry((4, 33, 31), 8, (2, 2), (2, 2), groups=2),
    "many taps": Geometry((70, 9, 9), 6, pads=(0, 0, 1, 0)),
    "many taps, few positions": Geometry((17, 6, 5), 9, (3, 3), pads=(1, 1, 1, 1)),
    "dense": Geometry((37, 1, 1), 11),
}
NOTHING = np.zeros(0, np.int64)
NO_MAP = np.zeros((0, 0), np.int32)


def check_both_paths(geometry: Geometry) -> None:
    """By index map and by window, the result is the reference's."""
    prg = Prg()
    x, weight = prg.int64(geometry.shape), prg.int64(geometry.weight_shape)
    start = prg.int64(geometry.output_shape)
    expected = start + reference.linear(
        x,
        weight,
        {
            "strides": list(geometry.strides),
            "dilations": list(geometry.dilations),
            "pads": list(geometry.pads),
            "groups": [geometry.groups],
        },
    )
    for index, window in ((index_map(geometry), NOTHING), (NO_MAP, window_of(geometry))):
        out = start.ravel().copy()
        linear.convolve_add(
            x.ravel(),
            index,
            window,
            arrange(geometry, weight),
            geometry.outputs // geometry.groups,
            x.size // geometry.groups,
            out,
        )
        assert np.array_equal(out.reshape(geometry.output_shape), expected)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_convolution_is_what_its_definition_says(name):
    geometry = GEOMETRIES[name]
    check_both_paths(geometry)
    assert Geometry.from_json(geometry.to_json()) == geometry


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    groups=st.integers(1, 3),
    channels=st.integers(1, 5),
    each=st.integers(1, 10),
    spatial=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=sizes,
    strides=sizes,
    dilations=sizes,
    pads=st.tuples(*[st.integers(0, 3)] * 4),
)
@settings(max_examples=150, deadline=None)
def test_any_convolution_is_right(
    groups, channels, each, spatial, kernel, strides, dilations, pads
):
    geometry = Geometry(
        (groups * channels, *spatial), groups * each, kernel, strides, pads, dilations, groups
    )
    assume(min(geometry.output_shape) > 0)
    check_both_paths(geometry)


def test_blocks_of_positions_and_taps_fit_together():
    """More positions than one block has, in blocks that do not end where rows do."""
    geometry = Geometry((12, 29, 23), 7, (3, 3), pads=(1, 1, 1, 1))
    taps = geometry.products // int(np.prod(geometry.output_shape))
    assert 29 * 23 % blocked.POSITIONS
    assert taps > blocked.TAPS
    check_both_paths(geometry)


def test_large_layers_have_no_index_map():
    large = Geometry((64, 56, 56), 64, (3, 3), pads=(1, 1, 1, 1))
    assert arrangement(large).index.size == 0
    assert arrangement(large).window.size == blocked.NUMBERS
    small = Geometry((1, 28, 28), 10, (4, 4), (2, 2))
    assert arrangement(small).index.size
    assert arrangement(small).window.size == 0
