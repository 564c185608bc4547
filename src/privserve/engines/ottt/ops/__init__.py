"""The ops that take a tuple from the pack, one file per op: its protocol, kernels and steps.

A new op is a file here with a `TupleOp`, an entry in `TUPLE_OPS` and in `program.OP_KINDS`, its
meaning in `compiler.simulate`, a slow twin in `reference`, and a test.
"""

from __future__ import annotations

from collections.abc import Mapping

from privserve.engines.ottt.ops.check import CHECK
from privserve.engines.ottt.ops.halves import HALVES
from privserve.engines.ottt.ops.linear import LINEAR
from privserve.engines.ottt.ops.lookup import LOOKUP
from privserve.engines.ottt.ops.opening import Opening, TupleOp
from privserve.engines.ottt.ops.product import PRODUCT
from privserve.engines.ottt.ops.relu import RELU
from privserve.engines.ottt.ops.relu_linear import RELU_LINEAR
from privserve.engines.ottt.ops.square import SQUARE
from privserve.engines.ottt.ops.truncate import TRUNCATE
from privserve.program import Op, Program

TUPLE_OPS: Mapping[str, TupleOp] = {
    "linear": LINEAR,
    "relu": RELU,
    "halves": HALVES,
    "truncate": TRUNCATE,
    "relu_linear": RELU_LINEAR,
    "multiply": PRODUCT,
    "square": SQUARE,
    "lookup": LOOKUP,
    "check": CHECK,
}
"""By kind of `program.OP_KINDS`; all others are in `local`."""


def openings_of(program: Program, op: Op) -> tuple[Opening, ...]:
    """Return the op's exchanges, in order; none for a local op."""
    return TUPLE_OPS[op.kind].openings(program, op) if op.kind in TUPLE_OPS else ()
