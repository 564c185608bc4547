from __future__ import annotations

import numpy as np
import pytest

from privserve.engines.ottt import linear, reference
from privserve.engines.ottt.linear import Geometry
from privserve.prg import Prg

GEOMETRIES = {
    "valid": Geometry((3, 9, 8), 10, (3, 3)),
    "same padding": Geometry((4, 7, 7), 5, (3, 3), pads=(1, 1, 1, 1)),
    "strided, lopsided padding": Geometry((2, 8, 9), 8, (3, 2), (2, 2), (0, 1, 1, 0)),
    "dilated": Geometry((3, 11, 11), 6, (3, 3), dilations=(2, 3)),
    "grouped": Geometry((6, 6, 6), 12, (3, 3), groups=2),
    "depthwise": Geometry((6, 6, 6), 6, (3, 3), pads=(1, 1, 1, 1), groups=6),
    "depthwise with a multiplier": Geometry((3, 6, 6), 15, (3, 3), groups=3),
    "many positions": Geometry((3, 18, 19), 5, (3, 3), pads=(0, 1, 1, 0)),
    "many positions, grouped, strided": Geometry((4, 33, 31), 8, (2, 2), (2, 2), groups=2),
    "dense": Geometry((37, 1, 1), 11),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_convolution_is_what_its_definition_says(name):
    geometry = GEOMETRIES[name]
    prg = Prg()
    x, weight = prg.int64(geometry.shape), prg.int64(geometry.weight_shape)
    start = prg.int64(geometry.output_shape)
    out = start.ravel().copy()
    linear.convolve_add(
        x.ravel(),
        geometry.index_map(),
        geometry.arrange(weight),
        geometry.outputs // geometry.groups,
        x.size // geometry.groups,
        out,
    )
    expected = reference.linear(
        x,
        weight,
        {
            "strides": list(geometry.strides),
            "dilations": list(geometry.dilations),
            "pads": list(geometry.pads),
            "groups": [geometry.groups],
        },
    )
    assert np.array_equal(out.reshape(geometry.output_shape), start + expected)
    assert Geometry.from_json(geometry.to_json()) == geometry
