"""What an op costs per query, by what it opens and deals; tests hold that against the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privserve.engines.ottt.layout import tuple_words
from privserve.engines.ottt.ops import openings_of
from privserve.lift import lifting_ops
from privserve.program import Lift, Op, Program
from privserve.text_table import table


@dataclass(frozen=True)
class Cost:
    """Exchanges; bytes that a party sends to each peer; bytes that the dealer sends."""

    exchanges: int
    bytes_online: int
    bytes_dealt: int


def cost_of_op(program: Program, op: Op) -> Cost:
    """Return the cost of one op of `program` for one query."""
    openings = openings_of(program, op)
    sent = sum(opening.words for opening in openings)
    return Cost(len(openings), 8 * sent, 8 * tuple_words(program, op))


def strictness(program: Program, lift: Lift) -> str:
    """Say what the strict inputs of `program` are lifted to, and what that costs."""
    low, high = lift.interval(program.values[program.inputs[0].value].step)
    each = [cost_of_op(program, op) for op in lifting_ops(program)]
    return (
        f"inputs are strict: whatever a client sends is lifted to [{low:g}, {high:g}], for "
        f"{sum(c.exchanges for c in each)} exchanges, {sum(c.bytes_online for c in each):,} B "
        f"online and {sum(c.bytes_dealt for c in each):,} B dealt per query; values behind are "
        "compared with some bits more"
    )


def summary(program: Program) -> str:
    """Return a readable table of the ops: what each computes on, and what it costs per query."""
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
    strict = "" if program.lift is None else "strict "
    said = (
        f"{strict}inputs in [{low:g}, {high:g}], {program.fraction_bits} fraction bits; online "
        "bytes are per query and party, dealt bytes per query for all parties"
    )
    return "\n".join(
        [*table(rows, right=range(4, 8)), said, *(f"note: {note}" for note in program.notes)]
    )
