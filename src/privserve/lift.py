"""Strict inputs: every ring element that a client may send is lifted to an input like another.

A client's library refuses inputs outside the declared range, but a client need not use it: the
sum of its shares may be any element v of the ring. For strict inputs the parties first compute,
exactly and on shares,

    start + max(s, 0),          s = (v - start) mod 2^(bits + 1), read as signed     (ottt)
    start + (v - start) mod 2^bits                                                   (crypten)

which is v where v lies in start .. start + 2^bits - 1, as all declared inputs do, and another
element of that interval where it does not. So bounds that hold on it hold for every client.
"""

from __future__ import annotations

from privserve.errors import ModelError
from privserve.fields import malformed, record, whole
from privserve.program import (
    MAX_COMPARISON_BITS,
    MIN_COMPARISON_BITS,
    Lift,
    Op,
    Program,
)

LEAST_BITS = MIN_COMPARISON_BITS - 1
MOST_BITS = MAX_COMPARISON_BITS - 1
"""Of a lift: `ottt` compares with one bit more."""
FURTHEST = 2.0**62
"""No unit of a lift lies beyond it."""


def lift_for(input_range: tuple[float, float], fraction_bits: int) -> Lift:
    """Return the smallest lift that holds all inputs of a range, encoded with these bits.

    It is centred on the range, but begins where a range does that is not negative, and ends
    where one does that is not positive, so that no input changes its sign. Raises ModelError where
    the range has more units than a comparison has room for.
    """
    low, high = (end * 2.0**fraction_bits for end in input_range)
    if max(-low, high) < FURTHEST:
        first, last = round(low), round(high)
        bits = max(LEAST_BITS, (last - first).bit_length())
        if bits <= MOST_BITS:
            spare = 2**bits - (last - first + 1)
            before = 0 if first >= 0 else spare if last <= 0 else spare // 2
            return Lift(first - before, bits)
    low, high = input_range
    raise ModelError(
        f"strict inputs do not fit: the input range [{low:g}, {high:g}] has more than "
        f"2^{MOST_BITS} units with {fraction_bits} fraction bits; declare a narrower range "
        "(--input-range) or use fewer fraction bits (--fraction-bits)"
    )


def read_lift(given: object) -> Lift | None:
    """Return the lift of a description, None where its inputs are not strict.

    Raises ModelError where it is malformed.
    """
    if given is None:
        return None
    fields = record(given, "its lift")
    furthest = int(FURTHEST)
    return Lift(
        whole(fields, "start", -furthest, furthest), whole(fields, "bits", LEAST_BITS, MOST_BITS)
    )


def lifting_ops(program: Program) -> tuple[Op, ...]:
    """Return the comparisons that lift the inputs of a program; none where they are not strict.

    Raises ModelError where its inputs should be strict, and something else reads one.
    """
    lift, found = program.lift, []
    if lift is None:
        return ()
    compared = {"shift": 0, "comparison_bits": lift.bits + 1, "guard": 0}
    raw = {port.value for port in program.inputs}
    moved = set() if lift.start else set(raw)
    for op in program.ops:
        if raw.isdisjoint(op.inputs) and moved.isdisjoint(op.inputs):
            continue
        if op.kind == "relu" and op.inputs[0] in moved and op.attributes == compared:
            found.append(op)
        elif op.kind == "offset" and op.inputs[0] in raw - moved:
            moved.add(op.output)
            if op.attributes["value"] != -lift.start:
                raise malformed("an input is lifted to another interval than it says")
        else:
            raise malformed("its inputs should be strict, and an op reads one that is not lifted")
    if any(port.value in raw | moved for port in program.outputs):
        raise malformed("its inputs should be strict, and one is an output")
    return tuple(found)
