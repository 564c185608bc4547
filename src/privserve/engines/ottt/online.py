"""The online phase at one compute party: every op as a step that is bound once per batch size.

A query of a small network takes a dozen exchanges of ten microseconds each, so what Python
does in between counts. Per batch size each op is therefore bound, once, to its numbers, its
buffers and the arrays that it reads, which stay where they are from query to query; a step
is two or three kernel calls around an exchange.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privserve import local
from privserve.engines import RunStats
from privserve.engines.ottt import guard, linear, lookup, nonlinear, product
from privserve.engines.ottt.bits import unpack_add_batch, unpack_xor_batch
from privserve.engines.ottt.buffers import Buffers, OpBuffers, expiring
from privserve.engines.ottt.comparison import plan_comparison
from privserve.engines.ottt.layout import PackLayout, tuple_words
from privserve.errors import ClusterError, TooManyRows
from privserve.fixedpoint import RingArray
from privserve.mesh import Mesh
from privserve.prg import Prg
from privserve.program import Op, Program

Step = Callable[[int], None]
"""Takes the number of the batch's first pack."""
Source = Callable[[], RingArray]


NO_PACK = -1
LACKING = struct.pack("<q", NO_PACK)
"""Sent for a batch's first opening by a party that has no memory for the batch."""


def lacking_memory(rows: int) -> TooManyRows:
    """What a batch ends with where a party has no memory for it."""
    return TooManyRows(f"a party has no memory for {rows} rows at a time; ask fewer per query")


@dataclass
class Stats(RunStats):
    """What a party counted since its session began; times in seconds."""

    packs_used: int = 0
    packs_waited_for: int = 0
    exchange_seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Waiting for packs."""
    run_seconds: float = 0.0
    """In `run`, exchanges and waiting included."""


@dataclass(frozen=True)
class BoundLinear:
    """One linear op's public index map (or window) and this party's arranged arrays."""

    reading: tuple[NDArray[np.int32], RingArray]
    weight: RingArray
    opened: RingArray
    bias: RingArray
    each: int
    inputs: int
    group_size: int
    bits: int
    """xhat is opened modulo 2^bits."""
    a: int
    """The word of a pack where the mask A begins."""
    z: int
    """The word where Z (before: C) begins."""


@dataclass(frozen=True)
class Party:
    """What all steps of one party share."""

    program: Program
    layout: PackLayout
    linears: Mapping[int, BoundLinear]
    """By index of the op."""
    parameters: Mapping[str, RingArray]
    packs: RingArray
    """The pool's, int64[slots, words]."""
    mesh: Mesh
    stats: Stats
    checks: Prg | None
    """All compute parties draw the same from it: coefficients that no client knows. None where
    no range is guarded."""

    @property
    def lead(self) -> int:
        """1 at the party that adds public constants, else 0."""
        return int(self.mesh.rank == 0)


class Evaluation:
    """The program, bound for batches of one size."""

    def __init__(self, party: Party, batch: int) -> None:
        self._party = party
        self._batch = batch
        program = party.program
        self._values: dict[int, RingArray] = {}
        """Results of local ops that are made anew for every query."""
        self._kept: dict[int, RingArray] = {}
        """Values whose arrays stay, contiguous int64[B, *shape], by number."""
        self._inputs = []
        for port in program.inputs:
            self._kept[port.value] = np.zeros((batch, *program.values[port.value].shape), np.int64)
            self._inputs.append(self._kept[port.value])
        guarded = [op for op in program.ops if guard.flag_words(op)]
        self._flags: list[RingArray] = []
        """Of every guarded op, int64[B, FLAGS]."""
        most = max((program.values[op.inputs[0]].size for op in guarded), default=0)
        self._coefficients = np.zeros(most, np.int64)
        self._matrix = np.zeros((guard.FLAGS, guard.FLAGS), np.int64)
        self._openings = 0
        self._bytes = 0
        self._number: RingArray | None = None
        self._buffers = buffers = Buffers.for_batch(program, batch)
        self._steps: list[tuple[Step, tuple[int, ...]]] = []
        for index, (op, dead) in enumerate(zip(program.ops, expiring(program), strict=True)):
            step = self._bind(index, op, buffers)
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
        """Shares of the outputs from shares of the inputs, with the packs from number `first`.

        Every party writes that number before what it opens first, so that parties whose pools
        fell out of step notice before they use an opening under the wrong masks.
        """
        for kept, x in zip(self._inputs, inputs, strict=True):
            kept[...] = x
        if self._number is not None:
            self._number[0] = first
        if self._party.checks is not None:
            self._party.checks.fill(self._coefficients.data)
            self._party.checks.fill(self._matrix.reshape(-1).data)
        values = self._values
        for step, gone in self._steps:
            step(first)
            for number in gone:
                values.pop(number, None)
        answers = [output().copy() for output in self._outputs]
        if self._flags:
            answers.append(np.stack(self._flags, axis=1))
        values.clear()
        stats, others = self._party.stats, self._party.mesh.n - 1
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
        size = self._party.program.values[number].size
        if number in self._kept:
            flat = self._kept[number].reshape(self._batch, size)
            return lambda: flat
        values, batch = self._values, self._batch
        return lambda: np.ascontiguousarray(values[number]).reshape(batch, size)

    # Steps.

    def _bind(self, index: int, op: Op, buffers: Buffers) -> Step | None:
        """The op's step; None where there is nothing to do at run time."""
        shape = self._party.program.values[op.output].shape
        if op.kind == "check":
            return self._check(index, op)
        if op.kind in ("reshape", "reread") and op.inputs[0] in self._kept:
            self._kept[op.output] = self._kept[op.inputs[0]].reshape(self._batch, *shape)
            return None
        binders: dict[str, Callable[[int, Op, OpBuffers], Step]] = {
            "linear": self._linear,
            "relu": self._relu,
            "truncate": self._truncate,
            "lookup": self._lookup,
            "multiply": self._multiply,
        }
        if op.kind not in binders:
            return self._local(op, shape)
        room = buffers.of[index]
        step = binders[op.kind](index, op, room)
        self._kept[op.output] = room.shaped
        return step

    def _local(self, op: Op, shape: tuple[int, ...]) -> Step:
        sources = [self._shaped(number) for number in op.inputs]
        values, lead, parameters = self._values, self._party.lead == 1, self._party.parameters

        def step(first: int) -> None:
            inputs = [source() for source in sources]
            values[op.output] = local.apply(op.kind, op.attributes, inputs, shape, lead, parameters)

        return step

    def _linear(self, index: int, op: Op, room: OpBuffers) -> Step:
        bound, packs = self._party.linears[index], self._party.packs
        source, opened, out = self._flat(op.inputs[0]), room.opened, room.out
        packed, open_ = self._opening(room.packed, opened, bound.bits)
        a, z, bits, bias = bound.a, bound.z, bound.bits, bound.bias
        numbers = (*bound.reading, bound.weight, bound.each, bound.group_size)

        def step(first: int) -> None:
            linear.mask_input(packs, first, a, source(), bits, opened, packed)
            open_()
            linear.evaluate(packs, first, z, opened, *numbers, bias, out)

        return step

    def _shifted(
        self, op: Op, room: OpBuffers, masks: int, offset: int
    ) -> tuple[Step, Callable[[], None]]:
        """Opening (x >> shift) + offset + r modulo 2^K: the masking, and the opening itself."""
        packs, source, opened = self._party.packs, self._flat(op.inputs[0]), room.opened
        shift, k = op.attributes["shift"], op.attributes["comparison_bits"]
        lead = self._party.lead
        bias = lead * nonlinear.rounding(self._party.mesh.n, shift)
        packed, open_ = self._opening(room.packed, opened, k)
        offset *= lead

        def mask(first: int) -> None:
            nonlinear.mask_shifted(
                packs, first, masks, offset, source(), shift, k, bias, opened, packed
            )

        return mask, open_

    def _relu(self, index: int, op: Op, room: OpBuffers) -> Step:
        party = self._party
        packs, lead, base = party.packs, party.lead, party.layout.fields[index]
        value, k = party.program.values[op.output], op.attributes["comparison_bits"]
        plan = plan_comparison(k)
        spec, chunks, opened_bits, bits = plan.spec(), plan.chunks, plan.opened_bits, value.bits
        fields = 5 if nonlinear.relu_is_wide(bits, k) else 3
        tables = base + fields * value.size
        mask, open_ = self._shifted(op, room, base + 2 * value.size, 1 << (k - 1))
        opened, matrix, out = room.opened, room.matrix, room.out
        packed, open_matrix = self._opening(room.packed_matrix, matrix, opened_bits, xor=True)

        def step(first: int) -> None:
            mask(first)
            open_()
            nonlinear.look_up(
                packs, first, tables, opened, spec, chunks, opened_bits, k, matrix, packed
            )
            open_matrix()
            nonlinear.finish_relu(packs, first, base, opened, matrix, chunks, bits, k, lead, out)

        if not op.attributes["guard"]:
            return step
        source, arguments = self._guarded(index, op)
        arguments = (*arguments, bits)

        def guarded(first: int) -> None:
            step(first)  # which leaves dhat in `matrix`
            guard.guard_relu(packs, first, base, opened, matrix, source(), *arguments)

        return guarded

    def _truncate(self, index: int, op: Op, room: OpBuffers) -> Step:
        party = self._party
        packs, lead, base = party.packs, party.lead, party.layout.fields[index]
        bits, k = party.program.values[op.output].bits, op.attributes["comparison_bits"]
        mask, open_ = self._shifted(op, room, base, 1 << (k - 2))

        def step(first: int) -> None:
            mask(first)
            open_()
            nonlinear.finish_truncate(packs, first, base, room.opened, bits, k, lead, room.out)

        if not op.attributes["guard"]:
            return step
        source, arguments = self._guarded(index, op)

        def guarded(first: int) -> None:
            step(first)
            guard.guard_truncate(packs, first, room.out, source(), *arguments)

        return guarded

    def _guarded(self, index: int, op: Op) -> tuple[Source, tuple[Any, ...]]:
        """What a guard reads, and the arguments that both guards share, from `shift` on."""
        shift, lead = op.attributes["shift"], self._party.lead
        bias = lead * nonlinear.rounding(self._party.mesh.n, shift)
        numbers = (shift, bias, op.attributes["comparison_bits"], op.attributes["guard"], lead)
        drawn = (self._coefficients, self._matrix, self._zeros(index, op))
        return self._flat(op.inputs[0]), (*numbers, *drawn, self._flag())

    def _check(self, index: int, op: Op) -> Step:
        packs, source, bits = self._party.packs, self._flat(op.inputs[0]), op.attributes["bits"]
        zeros, flags = self._zeros(index, op), self._flag()
        coefficients, matrix = self._coefficients, self._matrix

        def step(first: int) -> None:
            guard.guard_zero(packs, first, source(), bits, coefficients, matrix, zeros, flags)

        return step

    def _zeros(self, index: int, op: Op) -> int:
        """The word of a pack where the shares of zero of a guarded op begin."""
        words = tuple_words(self._party.program, op)
        return self._party.layout.fields[index] + words - guard.FLAGS

    def _flag(self) -> RingArray:
        self._flags.append(np.zeros((self._batch, guard.FLAGS), np.int64))
        return self._flags[-1]

    def _lookup(self, index: int, op: Op, room: OpBuffers) -> Step:
        layout, packs = self._party.layout, self._party.packs
        k, segment_bits = op.attributes["comparison_bits"], op.attributes["segment_bits"]
        mask, open_ = self._shifted(op, room, layout.masks[index], -op.attributes["low"])
        tables = layout.fields[index]

        def step(first: int) -> None:
            mask(first)
            open_()
            lookup.finish_lookup(packs, first, tables, room.opened, k, segment_bits, room.out)

        return step

    def _multiply(self, index: int, op: Op, room: OpBuffers) -> Step:
        party = self._party
        packs, lead = party.packs, party.lead
        masks, c = party.layout.masks[index], party.layout.fields[index]
        bits, factors = party.program.values[op.output].bits, party.program.values[op.inputs[1]]
        x, y = (self._flat(number) for number in op.inputs)
        packed, open_ = self._opening(room.packed, room.opened, bits)

        def step(first: int) -> None:
            both = np.concatenate([x(), y()], axis=1)
            linear.mask_input(packs, first, masks, both, bits, room.opened, packed)
            open_()
            product.finish_product(
                packs,
                first,
                masks,
                c,
                room.opened,
                factors.size,
                op.attributes["inner"],
                lead,
                room.out,
            )

        return step

    def _opening(
        self, packed: RingArray, total: RingArray, bits: int, xor: bool = False
    ) -> tuple[RingArray, Callable[[], None]]:
        """Where to pack one's share of `total`, and what opens it.

        The opening adds (or XORs) the other parties' packed shares to `total`, this party's.
        """
        shape, count = packed.shape, total.shape[1]
        number: RingArray | None = None
        payload = packed.data.cast("B")
        if self._number is None:  # the first one
            numbered = np.zeros(1 + packed.size, np.int64)
            self._number = number = numbered[:1]
            packed, payload = numbered[1:].reshape(shape), numbered.data.cast("B")
        mesh, stats = self._party.mesh, self._party.stats
        peers = [peer for peer in range(mesh.n) if peer != mesh.rank]
        unpack = unpack_xor_batch if xor else unpack_add_batch
        self._openings += 1
        self._bytes += payload.nbytes

        # A channel hands frames of one size out in one view again and again.
        seen: list[memoryview | None] = [None] * mesh.n
        words: list[RingArray] = [packed] * mesh.n

        def open_() -> None:
            began = time.perf_counter()
            received = mesh.exchange(payload)
            stats.exchange_seconds += time.perf_counter() - began
            for peer in peers:
                frame = received[peer]
                if frame is not seen[peer]:
                    words[peer] = received_words(frame)
                    seen[peer] = frame if words[peer].base is not None else None  # no copy
                if words[peer].size == 1 and words[peer][0] == NO_PACK:
                    raise lacking_memory(shape[0])
                if number is None:
                    unpack(words[peer].reshape(shape), count, bits, total)
                elif words[peer][0] == number[0]:
                    unpack(words[peer][1:].reshape(shape), count, bits, total)
                else:
                    raise ClusterError("the parties' packs are out of step; share the model again")

        return packed, open_


def received_words(frame: memoryview | None) -> RingArray:
    """A received frame as int64 words; copied only where it is not aligned."""
    assert frame is not None  # only the own rank's is
    words: NDArray[Any] = np.frombuffer(frame, dtype=np.int64)
    return words if words.flags.aligned else words.copy()
