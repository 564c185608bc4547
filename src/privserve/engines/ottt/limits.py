"""What a session may need at most: memory at each party, bytes of a frame."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from privserve.engines.ottt.buffers import place_results, result_sizes, scratch_sizes
from privserve.engines.ottt.compute import ONLINE, SETUP_BYTES, pool_slots
from privserve.engines.ottt.costs import cost_of_op
from privserve.engines.ottt.dealer import LANE
from privserve.engines.ottt.layout import FRAME_WORDS, PIECE_BYTES, lay_out
from privserve.engines.ottt.ops import TUPLE_OPS
from privserve.engines.ottt.ops.linear import geometries
from privserve.program import Program
from privserve.validation import read_program

PROCESS_BYTES = 200 << 20
"""A party's interpreter, libraries and kernels."""


def frame_limits(description: Mapping[str, Any], **options: Any) -> Mapping[str, int]:
    """See `engines.EngineModule`: the openings of a full batch or of weights, and dealt packs."""
    program = read_program(description)
    layout = lay_out(program, options.get("piece_bytes", PIECE_BYTES))
    rows = pool_slots(layout, **options)
    openings = max((cost_of_op(program, op).bytes_online for op in program.ops), default=0)
    weights = [8 * math.prod(shape.weight_shape) for shape in geometries(program).values()]
    dealt = max(8 * layout.packs_per_message * layout.corrected_words, 8 * FRAME_WORDS)
    return {
        ONLINE: 8 + max(rows * openings, SETUP_BYTES + max(weights, default=0)),
        LANE: dealt,
    }


def fingerprint(description: Mapping[str, Any], **options: Any) -> str:
    """See `engines.EngineModule`: of the words of all that ops have in a pack."""
    layout = lay_out(read_program(description), options.get("piece_bytes", PIECE_BYTES))
    places = (layout.masks, layout.fields, layout.ready)
    words = (*(sorted(place.items()) for place in places), layout.pieces)
    return hashlib.sha256(repr(words).encode()).hexdigest()


def memory(description: Mapping[str, Any], parties: int, **options: Any) -> tuple[int, int]:
    """See `engines.EngineModule`: at their peak; options: as of `Compute`."""
    program = read_program(description)
    layout = lay_out(program, options.get("piece_bytes", PIECE_BYTES))
    weights = arranged = 0
    for geometry in geometries(program).values():
        each = -(-geometry.outputs // geometry.groups // 8) * 8
        weights += math.prod(geometry.weight_shape)
        arranged += geometry.groups * each * math.prod(geometry.weight_shape[1:])
    pool = pool_slots(layout, **options) * layout.words
    # The shares as they came, then W_i and open_weight as the kernels read them.
    compute = weights + 2 * arranged + pool + _row_words(program)
    largest = max(piece.drawn_words for piece in layout.pieces) * layout.packs_per_message
    tables = sum(
        TUPLE_OPS[op.kind].dealer_table(program, op) for op in program.ops if op.kind in TUPLE_OPS
    )
    # B as it is drawn and as the kernels read it; each party's part of a piece.
    dealer = weights + arranged + (parties + 1) * largest + tables
    return PROCESS_BYTES + 8 * compute, PROCESS_BYTES + 8 * dealer


def _row_words(program: Program) -> int:
    """What the online phase writes into for one row, and its largest values by themselves."""
    scratch = sum(count + words for count, words in scratch_sizes(program))
    results = sum(result_sizes(program, place_results(program)).values())
    return scratch + results + 4 * max(v.size for v in program.values)
