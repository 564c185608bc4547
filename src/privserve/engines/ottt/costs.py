"""What an op costs per query, by formula; tests hold the formulas against the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privserve.engines.ottt.bits import packed_words
from privserve.engines.ottt.comparison import plan_comparison
from privserve.engines.ottt.layout import tuple_words
from privserve.program import Op, Program
from privserve.text_table import table


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


def summary(program: Program) -> str:
    """A readable table of the ops: what each computes on, and what it costs per query."""
    head = ("op", "layer", "shape", "range", "K", "exchanges", "B online", "B dealt")
    rows: list[Sequence[str]] = [head]
    totals = [0, 0, 0]
    for op in program.ops:
        cost = cost_of_op(program, op)
        value = program.values[op.output]
        numbers = (cost.exchanges, cost.bytes_online, cost.bytes_dealt)
        totals = [t + x for t, x in zip(totals, numbers, strict=True)]
        rows.append(
            (
                op.kind,
                op.layer,
                "x".join(map(str, value.shape)),
                f"+-{value.bound:.4g}",
                str(op.attributes.get("comparison_bits", "")),
                *(f"{x:,}" if x else "" for x in numbers),
            )
        )
    rows.append(("total", "", "", "", "", *(f"{x:,}" for x in totals)))
    low, high = program.input_range
    said = (
        f"inputs in [{low:g}, {high:g}], {program.fraction_bits} fraction bits; online bytes are "
        "per query and party, dealt bytes per query for all parties"
    )
    return "\n".join(
        [*table(rows, right=range(4, 8)), said, *(f"note: {note}" for note in program.notes)]
    )
