"""The fast engine: one-time truth tables from a dealer; see docs/protocol.md."""

from __future__ import annotations

from typing import Any

import onnx

from privserve.engines import Prepared
from privserve.engines.ottt.dealer import LANE, deal
from privserve.engines.ottt.party import ONLINE, Compute

NAME = "ottt"
LANES: tuple[str, ...] = (ONLINE, LANE)


def prepare(
    model: onnx.ModelProto,
    *,
    input_range: tuple[float, float] | None = None,
    fraction_bits: int | None = None,
    calibration: Any = None,
    range_check: bool = True,
    **_: Any,
) -> Prepared:
    """Compile `model`; raises ModelError naming the op, node or layer that does not fit.

    input_range: what every input element lies in, (-8, 8) by default; fraction_bits: as many
    as the outputs call for when None; calibration: sample inputs, used only where sound
    bounds do not fit; range_check: whether guessed ranges are guarded.
    """
    # Here, because the compiler itself needs this package, and because parties do not need
    # the compiler.
    from privserve.accuracy import compile_accurately

    result = compile_accurately(
        model,
        input_range=input_range,
        fraction_bits=fraction_bits,
        calibration=calibration,
        range_check=range_check,
    )
    program, parameters = result.compiled[:2]
    description = {"engine": NAME, **program.to_json()}
    return Prepared(NAME, description, parameters, tuple(result.lines()))


__all__ = ["LANES", "Compute", "deal", "prepare"]
