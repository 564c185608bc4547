"""The model owner's side: a model becomes a description, parameters and a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from privserve.compiler.accuracy import compile_accurately
from privserve.compiler.compile import compile_model
from privserve.compiler.ops import LOWERINGS
from privserve.engines import Prepared
from privserve.engines.ottt import costs
from privserve.program import PROFILES
from privserve.validation import read_program

if TYPE_CHECKING:
    import onnx

NAME = "ottt"
OPS = frozenset(LOWERINGS)


def prepare(
    model: onnx.ModelProto,
    *,
    input_range: tuple[float, float] | None = None,
    fraction_bits: int | None = None,
    calibration: Any = None,
    range_check: bool = True,
    strict_inputs: bool = False,
    profile: str = "lan",
    **_: Any,
) -> Prepared:
    """Compile `model`; raises ModelError naming the op, node or layer that does not fit.

    input_range: what every input element lies in, (-8, 8) by default; fraction_bits: as many
    as the outputs call for when None; calibration: sample inputs, used only where sound
    bounds do not fit; range_check: whether guessed ranges are guarded; strict_inputs: whether
    inputs are lifted first, so that bounds hold whatever a client sends; profile: what lies between
    the parties, a name of `program.PROFILES`, which says how many bytes an exchange is worth.
    """
    result = compile_accurately(
        model,
        input_range=input_range,
        fraction_bits=fraction_bits,
        calibration=calibration,
        range_check=range_check,
        strict_inputs=strict_inputs,
        exchange_bytes=PROFILES[profile],
    )
    program, parameters = result.compiled[:2]
    description = {"engine": NAME, **program.to_json()}
    report = result.lines()
    if program.lift is not None:
        report.append(costs.strictness(program, program.lift))
    return Prepared(NAME, description, parameters, tuple(report), result.compiled.tensors)


def check(model: onnx.ModelProto) -> None:
    """See `engines.EngineModule`."""
    samples = [np.ones((1, 1))] * len(model.graph.input)  # fewer than by default: much faster
    compile_model(model, input_range=(-1.0, 1.0), calibration=samples)


def summary(description: Mapping[str, Any]) -> str:
    """See `engines.EngineModule`: the program as a table, with every op's costs."""
    return costs.summary(read_program(description))
