"""What of a finished program takes fewer exchanges for some more bytes, where that is worth it.

A dense layer may open what it needs beside the comparison of the ReLU before it (`relu_linear`).
That saves an exchange, and takes a second opened word per input and a dealt one per weight. The
program says what an exchange is worth (`exchange_bytes`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from privserve.geometry import Geometry
from privserve.lift import lifting_ops
from privserve.program import Op, Program

DEALT = 6
"""A byte that is sent online weighs as much as so many dealt ones, as in a comparison's tables."""


def fused(program: Program) -> Program:
    """Return the program with each dense layer beside its ReLU where an exchange is worth it."""
    readers = Counter(number for op in program.ops for number in op.inputs)
    readers += Counter(port.value for port in program.outputs)
    makers = {op.output: op for op in program.ops}
    lifting = {op.output for op in lifting_ops(program)}
    gone: set[int] = set()
    joined: dict[int, Op] = {}
    for op in program.ops:
        if op.kind != "linear" or not Geometry.from_json(op.attributes["geometry"]).is_dense:
            continue
        chain = _before(op, makers, readers)
        positive = chain[-1]
        if positive.kind != "relu" or positive.output in lifting or not _pays(program, op):
            continue
        gone.update(step.output for step in chain)
        joined[positive.output] = _joined(positive, op)
    ops = [
        joined.get(op.output, op)
        for op in program.ops
        if op.output in joined or op.output not in gone
    ]
    return replace(program, ops=tuple(ops))


def _before(op: Op, makers: Mapping[int, Op], readers: Mapping[int, int]) -> list[Op]:
    """The op, and those before it that nothing else reads, up to the first that is no reshape."""
    chain = [op]
    while readers[chain[-1].inputs[0]] == 1 and chain[-1].inputs[0] in makers:
        chain.append(makers[chain[-1].inputs[0]])
        if chain[-1].kind != "reshape":
            break
    return chain


def _pays(program: Program, op: Op) -> bool:
    inputs, output = program.values[op.inputs[0]].size, program.values[op.output]
    more = inputs * output.bits * (1 + output.size / DEALT)
    return more / 8 <= program.exchange_bytes


def _joined(positive: Op, linear: Op) -> Op:
    """Both as one op; who left a guarded range is told the ReLU's layer."""
    layer = positive.layer if positive.is_guarded else f"{positive.layer}, {linear.layer}"
    attributes = {**positive.attributes, **linear.attributes}
    return Op("relu_linear", layer, positive.inputs, linear.output, attributes)
