"""Every layer and option, on shares, gives what Keras gave; and the column "runs on" is right."""

from __future__ import annotations

import numpy as np
import pytest
from golden import as_list
from ottt_session import Session
from test_layers import Live, all_cases, cases, numbered

import converters
from privserve.activations import apply_activation
from privserve.compiler import plan as splines
from privserve.compiler.compile import compile_model
from privserve.engines.crypten.graph import lower
from privserve.errors import ModelError
from privserve.program import Program
from privserve.support import Support

UNIT = 2.0**-14
# The input rounds to half a unit, each truncation to one; a few follow each other in a layer.
ROUNDING = 5 * UNIT


def tolerance(program: Program) -> float:
    """How far an answer may be off: by rounding, and by splines where functions have them."""
    has_splines = any(op.kind == "lookup" for op in program.ops)
    return ROUNDING + 1.5 * splines.TOLERANCE * has_splines


@pytest.mark.parametrize(("writer", "label"), all_cases())
def test_a_layer_gives_on_shares_what_keras_gave(writer: str, label: str) -> None:
    arrays = cases(writer)[label]["arrays"]
    converted = converters.convert(Live(cases(writer)[label], arrays))
    inputs, outputs = numbered(arrays, "x"), numbered(arrays, "y")
    bounds = (min(x.min() for x in inputs) - UNIT, max(x.max() for x in inputs) + UNIT)
    with Session(converted.onnx, 2, {"pool_queries": 4}, input_range=bounds) as session:
        answers = as_list(session.query(*inputs))
    atol = tolerance(session.program)
    for port, got, expected in zip(session.program.outputs, answers, outputs, strict=True):
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(
            apply_activation(got, port.activation), expected, rtol=0, atol=atol * scale
        )


@pytest.mark.parametrize(("writer", "label"), all_cases())
def test_a_model_runs_where_each_of_its_layers_does(writer: str, label: str) -> None:
    case = cases(writer)[label]
    converted = converters.convert(Live(case, case["arrays"]))
    support = Support(converted.onnx)
    rows = [support.engines(set(row.nodes)) for row in converted.layers]
    for engine, attempt in (("ottt", compile_model), ("crypten", lower)):
        says = all(row is None or engine in row for row in rows)
        try:
            attempt(converted.onnx)
            does = True
        except ModelError as error:
            if "computes nothing" in str(error):
                continue  # it runs nowhere, though there is no layer to blame
            does = False
        assert says == does, (engine, rows)
