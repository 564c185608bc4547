"""What an op costs per query, by formula; tests hold the formulas against the wire."""

from __future__ import annotations

from dataclasses import dataclass

from privserve.engines.ottt.bits import packed_words
from privserve.engines.ottt.comparison import plan_comparison
from privserve.engines.ottt.layout import tuple_words
from privserve.program import Op, Program


@dataclass(frozen=True)
class Cost:
    """Exchanges; bytes that a party sends to each peer; bytes that the dealer sends."""

    exchanges: int
    bytes_online: int
    bytes_dealt: int


def cost_of_op(program: Program, op: Op) -> Cost:
    """The cost of one op of `program` for one query."""
    value = program.values[op.output]
    dealt = 8 * tuple_words(program, op)
    if op.kind == "linear":
        return Cost(1, 8 * packed_words(program.values[op.inputs[0]].size, value.bits), dealt)
    if op.kind == "relu":
        plan = plan_comparison(op.attributes["comparison_bits"])
        words = packed_words(value.size, plan.bits) + packed_words(value.size, plan.opened_bits)
        return Cost(2, 8 * words, dealt)
    if op.kind == "truncate":
        return Cost(1, 8 * packed_words(value.size, op.attributes["comparison_bits"]), dealt)
    if op.kind == "lookup":
        return Cost(1, 8 * packed_words(value.size, op.attributes["comparison_bits"]), dealt)
    if op.kind == "multiply":
        both = sum(program.values[i].size for i in op.inputs)
        return Cost(1, 8 * packed_words(both, value.bits), dealt)
    return Cost(0, 0, dealt)
