"""The fast engine: one-time truth tables from a dealer; see docs/protocol.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx

from privserve.engines import Prepared
from privserve.engines.ottt.costs import cost_of_op
from privserve.engines.ottt.dealer import LANE, deal
from privserve.engines.ottt.layout import FRAME_WORDS, PIECE_BYTES, lay_out
from privserve.engines.ottt.linear import Geometry
from privserve.engines.ottt.memory import estimate
from privserve.engines.ottt.party import ONLINE, SETUP_BYTES, Compute, pool_slots
from privserve.program import Program

NAME = "ottt"
LANES: tuple[str, ...] = (ONLINE, LANE)


def frame_limits(description: Mapping[str, Any], **options: Any) -> Mapping[str, int]:
    """See `engines.EngineModule`: the openings of a full batch or of weights, and dealt packs."""
    program = Program.from_json(description)
    layout = lay_out(program, options.get("piece_bytes", PIECE_BYTES))
    rows = pool_slots(layout, **options)
    openings = max((cost_of_op(program, op).bytes_online for op in program.ops), default=0)
    weights = [
        8 * math.prod(Geometry.from_json(op.attributes["geometry"]).weight_shape)
        for op in program.ops
        if op.kind == "linear"
    ]
    dealt = max(8 * layout.packs_per_message * layout.corrected_words, 8 * FRAME_WORDS)
    return {
        ONLINE: 8 + max(rows * openings, SETUP_BYTES + max(weights, default=0)),
        LANE: dealt,
    }


def memory(description: Mapping[str, Any], parties: int, **options: Any) -> tuple[int, int]:
    """See `engines.EngineModule`."""
    return estimate(Program.from_json(description), parties, **options)


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


__all__ = ["LANES", "Compute", "deal", "frame_limits", "memory", "prepare"]
