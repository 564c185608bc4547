"""The online phase at one compute party: every op as a step that is bound once per batch size.

A query of a small network takes a dozen exchanges of ten microseconds each, so what Python
does in between counts. Per batch size each op is therefore bound, once, to its numbers, its
buffers and the arrays that it reads, which stay where they are from query to query; a step
is two or three kernel calls around an exchange. The steps themselves are in `ops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privserve import local
from privserve.engines.ottt.buffers import Buffers, OpBuffers, expiring
from privserve.engines.ottt.layout import PackLayout, tuple_words
from privserve.engines.ottt.ops import TUPLE_OPS, openings_of
from privserve.engines.ottt.ops.arrangement import HeldWeight
from privserve.engines.ottt.ops.check import FLAGS
from privserve.engines.ottt.ops.opening import (
    BoundOpening,
    Guard,
    Site,
    Source,
    Step,
    bind_opening,
)
from privserve.engines.ottt.stats import Stats
from privserve.fixedpoint import RingArray
from privserve.mesh import Mesh
from privserve.prg import Prg
from privserve.program import OP_KINDS, Memory, Op, Program


@dataclass(frozen=True)
class Holdings:
    """What a compute party holds for a session, and all its steps share."""

    program: Program
    layout: PackLayout
    weights: Mapping[int, HeldWeight]
    """By index of the linear op."""
    parameters: Mapping[str, RingArray]
    """Shares of those that are added."""
    packs: RingArray
    """The pool's, int64[slots, words]."""
    mesh: Mesh
    stats: Stats
    checks: Prg | None
    """All compute parties draw the same from it: coefficients that no client knows. None where
    no range is guarded."""


class Evaluation:
    """The program, bound for batches of one size."""

    def __init__(self, holdings: Holdings, batch: int) -> None:
        self._holdings = holdings
        self._batch = batch
        program = holdings.program
        self._values: dict[int, RingArray] = {}
        """Results of local ops that are made anew for every query."""
        self._kept: dict[int, RingArray] = {}
        """Values whose arrays stay, contiguous int64[B, *shape], by number."""
        self._inputs = []
        for port in program.inputs:
            self._kept[port.value] = np.zeros((batch, *program.values[port.value].shape), np.int64)
            self._inputs.append(self._kept[port.value])
        guarded = [op for op in program.ops if op.is_guarded]
        self._flags: list[RingArray] = []
        """Of every guarded op, int64[B, FLAGS]."""
        most = max((program.values[op.inputs[0]].size for op in guarded), default=0)
        self._coefficients = np.zeros(most, np.int64)
        self._matrix = np.zeros((FLAGS, FLAGS), np.int64)
        self._openings = 0
        self._bytes = 0
        self._numbered: RingArray | None = None
        """What is sent first in a run, and begins with the number of its first pack."""
        self._bound: dict[int, tuple[BoundOpening, ...]] = {}
        """What the op that makes a value opens."""
        self._buffers = buffers = Buffers.for_batch(program, batch)
        self._steps: list[tuple[Step, tuple[int, ...]]] = []
        for index, (op, dead) in enumerate(zip(program.ops, expiring(program), strict=True)):
            step = self._bind(index, op, buffers.of.get(index))
            gone = tuple(number for number in dead if number not in self._kept)
            if step is not None:
                self._steps.append((step, gone))
            elif gone:
                self._steps.append((lambda first: None, gone))
        self._outputs = [self._shaped(port.value) for port in program.outputs]

    @property
    def nbytes(self) -> int:
        """What its buffers take."""
        return self._buffers.nbytes

    def run(self, inputs: Sequence[RingArray], first: int) -> list[RingArray]:
        """Return shares of the outputs from shares of the inputs, with the packs from `first` on.

        Every party writes that number before what it opens first, so that parties whose pools
        fell out of step notice before they use an opening under the wrong masks.
        """
        for kept, x in zip(self._inputs, inputs, strict=True):
            kept[...] = x
        if self._numbered is not None:
            self._numbered[0] = first
        if self._holdings.checks is not None:
            self._holdings.checks.fill(self._coefficients.data)
            self._holdings.checks.fill(self._matrix.reshape(-1).data)
        values = self._values
        for step, gone in self._steps:
            step(first)
            for number in gone:
                values.pop(number, None)
        answers = [output().copy() for output in self._outputs]
        if self._flags:
            answers.append(np.stack(self._flags, axis=1))
        values.clear()
        stats, others = self._holdings.stats, self._holdings.mesh.n - 1
        stats.exchanges += self._openings
        stats.bytes_sent += self._bytes * others
        stats.bytes_received += self._bytes * others
        return answers

    # Where an op reads.

    def _shaped(self, number: int) -> Source:
        """The value as int64[B, *shape], in whatever memory order."""
        if number in self._kept:
            kept = self._kept[number]
            return lambda: kept
        values = self._values
        return lambda: values[number]

    def _flat(self, number: int) -> Source:
        """The value as contiguous int64[B, size]."""
        size = self._holdings.program.values[number].size
        if number in self._kept:
            flat = self._kept[number].reshape(self._batch, size)
            return lambda: flat
        values, batch = self._values, self._batch
        return lambda: np.ascontiguousarray(values[number]).reshape(batch, size)

    # Steps.

    def _bind(self, index: int, op: Op, room: OpBuffers | None) -> Step | None:
        """The op's step; None where there is nothing to do at run time."""
        shape = self._holdings.program.values[op.output].shape
        if op.kind in TUPLE_OPS:
            step = TUPLE_OPS[op.kind].bind(self._site(index, op, room))
            if room is not None:
                self._kept[op.output] = room.shaped
            return step
        if OP_KINDS[op.kind].memory is Memory.SAME and op.inputs[0] in self._kept:
            self._kept[op.output] = self._kept[op.inputs[0]].reshape(self._batch, *shape)
            return None
        return self._local(op, shape)

    def _local(self, op: Op, shape: tuple[int, ...]) -> Step:
        sources = [self._shaped(number) for number in op.inputs]
        values, parameters = self._values, self._holdings.parameters
        lead = self._holdings.mesh.rank == 0

        def step(first: int) -> None:
            inputs = [source() for source in sources]
            values[op.output] = local.apply(op.kind, op.attributes, inputs, shape, lead, parameters)

        return step

    def _site(self, index: int, op: Op, room: OpBuffers | None) -> Site:
        """What the op's step reads and writes."""
        holdings = self._holdings
        layout = holdings.layout
        return Site(
            program=holdings.program,
            op=op,
            packs=holdings.packs,
            masks=layout.masks.get(index, 0),
            fields=layout.fields.get(index, 0),
            ready=layout.ready.get(index, 0),
            parties=holdings.mesh.n,
            rank=holdings.mesh.rank,
            inputs=tuple(self._flat(number) for number in op.inputs),
            openings=self._bind_openings(op, room),
            out=np.zeros((self._batch, 0), np.int64) if room is None else room.out,
            weight=holdings.weights.get(index),
            guard=self._guard(index, op) if op.is_guarded else None,
        )

    def _bind_openings(self, op: Op, room: OpBuffers | None) -> tuple[BoundOpening, ...]:
        program = self._holdings.program
        if room is None:
            return ()
        if op.output in program.leaders:
            return self._bound[program.leaders[op.output]]
        mesh, stats, bound = self._holdings.mesh, self._holdings.stats, []
        openings = openings_of(self._holdings.program, op)
        for opening, (values, packed) in zip(openings, room.openings, strict=True):
            numbered = None
            if self._numbered is None:
                self._numbered = numbered = np.zeros(1 + packed.size, np.int64)
            bound.append(bind_opening(opening, values, packed, numbered, self._batch, mesh, stats))
            self._openings += 1
            self._bytes += bound[-1].nbytes
        self._bound[op.output] = tuple(bound)
        return self._bound[op.output]

    def _guard(self, index: int, op: Op) -> Guard:
        """What flags the op's rows; its shares of zero are the last words of its tuple."""
        holdings = self._holdings
        zeros = holdings.layout.fields[index] + tuple_words(holdings.program, op) - FLAGS
        self._flags.append(np.zeros((self._batch, FLAGS), np.int64))
        return Guard(zeros, self._coefficients, self._matrix, self._flags[-1])
