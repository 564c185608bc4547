"""A compute party: the online phase, and the thread that keeps its pool of packs full."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privserve.engines import Mesh, RunStats
from privserve.engines.ottt import linear, local, lookup, nonlinear, product
from privserve.engines.ottt.bits import unpack_add_batch, unpack_xor_batch
from privserve.engines.ottt.buffers import Buffers, expiring
from privserve.engines.ottt.comparison import plan_comparison
from privserve.engines.ottt.dealer import (
    CREDIT,
    LANE,
    masks_of_weights,
    split_keys,
)
from privserve.engines.ottt.layout import PIECE_BYTES, PackLayout, Piece, lay_out
from privserve.engines.ottt.linear import Geometry
from privserve.engines.ottt.pool import Pool
from privserve.errors import ClusterError, InputError
from privserve.fixedpoint import RingArray
from privserve.prg import Prg
from privserve.program import Op, Program

ONLINE = "online"

POOL_QUERIES = 512
POOL_BYTES = 256 << 20
SETUP_BYTES = 16 << 20
"""Masked weights are opened in exchanges of about this size."""


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


class Compute:
    """One compute party's side of a session.

    description: of the program; shares: of its parameters, by name; meshes: "online" among
    the compute parties, "deal" with the dealer. pool_queries and pool_bytes bound the pool.
    Construction is collective: it opens W - B, starts the pool's thread and waits for
    `ready_packs` packs, so the first query meets no cold start.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        shares: Mapping[str, RingArray],
        meshes: Mapping[str, Mesh],
        *,
        pool_queries: int = POOL_QUERIES,
        pool_bytes: int = POOL_BYTES,
        ready_packs: int = 16,
        piece_bytes: int = PIECE_BYTES,
        **_: Any,
    ) -> None:
        self.program = Program.from_json(description)
        self.layout = lay_out(self.program, piece_bytes)
        self.stats = Stats()
        self._mesh, self._dealer = meshes[ONLINE], meshes[LANE]
        self._rank, self._parties = self._mesh.rank, self._mesh.n
        slots = max(1, min(pool_queries, pool_bytes // (8 * self.layout.words)))
        self.pool = Pool(slots, self.layout.words)
        self._broken = False
        self._sizes: dict[int, Buffers] = {}
        self._expiring = expiring(self.program)

        setup_key, pack_key = split_keys(self._dealer.recv(self._parties))
        self._stream = Prg(pack_key)
        self._linear = self._open_weights(shares, Prg(setup_key))
        self._compared = {
            index: _Compared.of(
                self.program, op, self.layout.fields[index], self._rank, self._parties
            )
            for index, op in enumerate(self.program.ops)
            if op.kind in ("relu", "truncate")
        }
        self._looked_up = {
            index: _LookedUp.of(op, self.layout, index, self._rank, self._parties)
            for index, op in enumerate(self.program.ops)
            if op.kind == "lookup"
        }
        self._parameters = {
            op.attributes["parameter"]: shares[op.attributes["parameter"]]
            for op in self.program.ops
            if op.kind == "add_parameter"
        }
        self._thread = threading.Thread(target=self._fill_pool, name="packs", daemon=True)
        self._thread.start()
        self.pool.wait_for(min(ready_packs, slots))

    def _open_weights(self, shares: Mapping[str, RingArray], prg: Prg) -> dict[int, _Linear]:
        """Open What = W - B of every linear op and arrange it and W_i for the kernels."""
        linears: dict[int, _Linear] = {}
        waiting: list[tuple[int, RingArray]] = []
        for index, mask in masks_of_weights(self.program, prg):
            # Many small weights go in one exchange; large ones do not all lie here at once.
            weight = shares[self.program.ops[index].attributes["weight"]]
            waiting.append((index, weight - mask))
            if sum(masked.nbytes for _, masked in waiting) >= SETUP_BYTES:
                linears.update(self._open_some(shares, waiting))
                waiting = []
        return {**linears, **self._open_some(shares, waiting)}

    def _open_some(
        self, shares: Mapping[str, RingArray], masked: Sequence[tuple[int, RingArray]]
    ) -> dict[int, _Linear]:
        """Open some ops' What from this party's shares of it."""
        if not masked:
            return {}
        opened = np.concatenate([share.ravel() for _, share in masked])
        for payload in self._mesh.exchange(opened.copy().data.cast("B")):
            if payload is not None:
                opened += _words(payload)
        linears: dict[int, _Linear] = {}
        start = 0
        for index, share in masked:
            op, what = self.program.ops[index], opened[start : start + share.size]
            start += share.size
            geometry = Geometry.from_json(op.attributes["geometry"])
            bias = np.zeros(self.program.values[op.output].size, np.int64)
            if name := op.attributes["bias"]:
                positions = bias.size // geometry.outputs
                bias += np.repeat(np.asarray(shares[name], np.int64), positions)
            inputs = self.program.values[op.inputs[0]].size
            linears[index] = _Linear(
                reading=geometry.reading(),
                weight=geometry.arrange(shares[op.attributes["weight"]]),
                opened=geometry.arrange(what),
                bias=bias,
                each=geometry.outputs // geometry.groups,
                inputs=inputs,
                group_size=inputs // geometry.groups,
                bits=self.program.values[op.output].bits,
                a=self.layout.masks[index],
                z=self.layout.fields[index],
            )
        return linears

    # The pool's thread.

    def _fill_pool(self) -> None:
        try:
            least = max(1, self.pool.slots // 4)
            while room := self.pool.room(least, self.pool.slots // 2):
                if self._rank == 0:
                    self._dealer.send(self._parties, CREDIT.pack(room))
                while room and not (self.pool.closed and self._rank):
                    room -= self._make_packs(room)
            if self._rank == 0:
                self._dealer.send(self._parties, CREDIT.pack(0))
        except BaseException as failure:
            self.pool.fail(failure)

    def _make_packs(self, most: int) -> int:
        """Fill some next slots, `most` of them at most, piece by piece."""
        count = min(most, self.layout.packs_per_message)
        for number, piece in enumerate(self.layout.pieces):
            corrected = None
            if self._rank == 0:
                frame = self._dealer.recv(self._parties)
                corrected = _words(frame).reshape(-1, piece.corrected_words)
                if number == 0:
                    count = len(corrected)
                if len(corrected) != count or count > most:
                    raise ClusterError("the dealer sent more packs than there is room for")
            self._fill_piece(piece, count, corrected)
        if self._rank == 0:
            self.stats.bytes_dealt += 8 * count * self.layout.corrected_words
        self.pool.publish(count)
        return count

    def _fill_piece(self, piece: Piece, count: int, corrected: RingArray | None) -> None:
        """A piece of the next `count` packs: its words, then every Z_i of it."""
        packs, first = self.pool.packs, self.pool.made
        for k in range(count):
            row = packs[(first + k) % self.pool.slots][piece.start : piece.start + piece.words]
            if corrected is None:
                self._stream.fill(row.data)
            else:
                self._stream.fill(row[: piece.mask_words].data)
                row[piece.mask_words :] = corrected[k]
        for index in range(piece.first, piece.last):
            if index not in self._linear:
                continue
            op = self._linear[index]
            linear.precompute(
                packs,
                first,
                count,
                op.a,
                op.inputs,
                op.z,
                op.bias.size,
                *op.reading,
                op.opened,
                op.each,
                op.group_size,
            )

    # The online phase.

    def run(self, inputs: Sequence[RingArray]) -> list[RingArray]:
        """Shares of the outputs, int64[B, ...], from shares of the inputs; collective."""
        if self._broken:
            raise ClusterError("the session failed earlier; share the model again")
        ports = self.program.inputs
        if len(inputs) != len(ports) or any(
            x.shape[1:] != self.program.values[port.value].shape or len(x) != len(inputs[0])
            for x, port in zip(inputs, ports, strict=True)
        ):
            raise InputError(
                "the model takes "
                + ", ".join(f"(B, {self.program.values[p.value].shape})" for p in ports)
            )
        batch, most = len(inputs[0]), self.pool.slots
        if batch <= most:
            return self._run_batch(inputs)
        parts = [
            self._run_batch([x[at : at + most] for x in inputs]) for at in range(0, batch, most)
        ]
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def _run_batch(self, inputs: Sequence[RingArray]) -> list[RingArray]:
        began = time.perf_counter()
        batch = len(inputs[0])
        first, waited = self.pool.take(batch)
        if waited:
            self.stats.packs_waited_for += batch
            self.stats.waiting_seconds += time.perf_counter() - began
        self.stats.packs_used += batch
        try:
            values: dict[int, RingArray] = {
                port.value: np.asarray(x, dtype=np.int64)
                for port, x in zip(self.program.inputs, inputs, strict=True)
            }
            buffers = self._buffers(batch)
            buffers.pack_number = first
            for index, op in enumerate(self.program.ops):
                values[op.output] = self._step(index, op, values, first, buffers)
                for number in self._expiring[index]:
                    del values[number]
            return [values[port.value].copy() for port in self.program.outputs]
        except BaseException:
            self._broken = True
            raise
        finally:
            self.pool.release(batch)
            self.stats.run_seconds += time.perf_counter() - began

    def _step(
        self, index: int, op: Op, values: Mapping[int, RingArray], first: int, buffers: Buffers
    ) -> RingArray:
        x = values[op.inputs[0]]
        if op.kind == "linear":
            return self._run_linear(index, x, first, buffers)
        if op.kind == "relu":
            return self._run_relu(index, x, first, buffers)
        if op.kind == "truncate":
            return self._run_truncate(index, x, first, buffers)
        if op.kind == "lookup":
            return self._run_lookup(index, x, first, buffers)
        if op.kind == "multiply":
            return self._run_multiply(index, x, values[op.inputs[1]], first, buffers)
        shape = self.program.values[op.output].shape
        if op.kind == "reshape":
            return x.reshape(len(x), *shape)
        inputs = [values[i] for i in op.inputs]
        return local.apply(op.kind, op.attributes, inputs, shape, self._rank == 0, self._parameters)

    def _run_linear(self, index: int, x: RingArray, first: int, buffers: Buffers) -> RingArray:
        op, b, packs = self._linear[index], buffers.of[index], self.pool.packs
        flat = np.ascontiguousarray(x).reshape(b.opened.shape)
        linear.mask_input(packs, first, op.a, flat, op.bits, b.opened, b.packed)
        self._open(b.packed, b.opened, op.bits, buffers)
        linear.evaluate(
            packs,
            first,
            op.z,
            b.opened,
            *op.reading,
            op.weight,
            op.each,
            op.group_size,
            op.bias,
            b.out,
        )
        return b.shaped

    def _run_relu(self, index: int, x: RingArray, first: int, buffers: Buffers) -> RingArray:
        op, b, packs = self._compared[index], buffers.of[index], self.pool.packs
        flat = np.ascontiguousarray(x).reshape(b.opened.shape)
        nonlinear.mask_shifted(
            packs, first, op.masks, op.offset, flat, op.shift, op.k, op.bias, b.opened, b.packed
        )
        self._open(b.packed, b.opened, op.k, buffers)
        nonlinear.look_up(
            packs,
            first,
            op.tables,
            b.opened,
            op.spec,
            op.chunks,
            op.opened_bits,
            op.k,
            b.matrix,
            b.packed_matrix,
        )
        self._open(b.packed_matrix, b.matrix, op.opened_bits, buffers, xor=True)
        nonlinear.finish_relu(
            packs,
            first,
            op.base,
            b.opened,
            b.matrix,
            op.chunks,
            op.bits,
            op.k,
            op.lead,
            b.out,
        )
        return b.shaped

    def _run_truncate(self, index: int, x: RingArray, first: int, buffers: Buffers) -> RingArray:
        op, b, packs = self._compared[index], buffers.of[index], self.pool.packs
        flat = np.ascontiguousarray(x).reshape(b.opened.shape)
        nonlinear.mask_shifted(
            packs, first, op.masks, op.offset, flat, op.shift, op.k, op.bias, b.opened, b.packed
        )
        self._open(b.packed, b.opened, op.k, buffers)
        nonlinear.finish_truncate(packs, first, op.base, b.opened, op.bits, op.k, op.lead, b.out)
        return b.shaped

    def _run_lookup(self, index: int, x: RingArray, first: int, buffers: Buffers) -> RingArray:
        op, b, packs = self._looked_up[index], buffers.of[index], self.pool.packs
        flat = np.ascontiguousarray(x).reshape(b.opened.shape)
        nonlinear.mask_shifted(
            packs, first, op.masks, op.offset, flat, op.shift, op.k, op.bias, b.opened, b.packed
        )
        self._open(b.packed, b.opened, op.k, buffers)
        lookup.finish_lookup(packs, first, op.tables, b.opened, op.k, op.segment_bits, b.out)
        return b.shaped

    def _run_multiply(
        self, index: int, x: RingArray, y: RingArray, first: int, buffers: Buffers
    ) -> RingArray:
        op, b, packs = self.program.ops[index], buffers.of[index], self.pool.packs
        masks, bits = self.layout.masks[index], self.program.values[op.output].bits
        both = np.concatenate([x.reshape(len(x), -1), y.reshape(len(y), -1)], axis=1)
        linear.mask_input(packs, first, masks, both, bits, b.opened, b.packed)
        self._open(b.packed, b.opened, bits, buffers)
        factors = self.program.values[op.inputs[1]].size
        product.finish_product(
            packs,
            first,
            masks,
            self.layout.fields[index],
            b.opened,
            factors,
            op.attributes["inner"],
            int(self._rank == 0),
            b.out,
        )
        return b.shaped

    def _open(
        self, packed: RingArray, total: RingArray, bits: int, buffers: Buffers, xor: bool = False
    ) -> None:
        """Add (or XOR) the other parties' packed shares to `total`, this party's share.

        A run's first exchange also carries the pack number, so that parties whose pools
        fell out of step notice before they use an opening under the wrong masks.
        """
        began = time.perf_counter()
        number, buffers.pack_number = buffers.pack_number, None
        payload = packed.data.cast("B")
        if number is not None:
            payload = memoryview(CREDIT.pack(number) + payload)
        received = self._mesh.exchange(payload)
        stats = self.stats
        stats.exchange_seconds += time.perf_counter() - began
        stats.exchanges += 1
        stats.bytes_sent += payload.nbytes * (self._parties - 1)
        stats.bytes_received += payload.nbytes * (self._parties - 1)
        unpack = unpack_xor_batch if xor else unpack_add_batch
        for frame in received:
            if frame is None:
                continue
            if number is not None:
                if CREDIT.unpack_from(frame)[0] != number:
                    raise ClusterError("the parties' packs are out of step; share the model again")
                frame = frame[CREDIT.size :]
            unpack(_words(frame).reshape(packed.shape), total.shape[1], bits, total)

    def _buffers(self, batch: int) -> Buffers:
        if batch not in self._sizes:
            if len(self._sizes) >= 16:  # a server sees few sizes; forget the oldest
                self._sizes.pop(next(iter(self._sizes)))
            self._sizes[batch] = Buffers.for_batch(self.program, batch)
        return self._sizes[batch]

    def close(self) -> None:
        """End the pool's thread and forget the session's packs."""
        self._broken = True
        self.pool.close()
        self._thread.join(timeout=10)


def _words(frame: memoryview) -> RingArray:
    """A received frame as int64 words; copied only where it is not aligned."""
    words = np.frombuffer(frame, dtype=np.int64)
    return words if words.flags.aligned else words.copy()


@dataclass(frozen=True)
class _Linear:
    """One linear op's public index map (or window) and this party's arranged arrays."""

    reading: tuple[np.ndarray[Any, np.dtype[np.int32]], RingArray]
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
class _Compared:
    """One ReLU's or truncation's numbers, as the kernels take them."""

    shift: int
    k: int
    bits: int
    lead: int
    offset: int
    bias: int
    base: int
    """The word of a pack where the op's fields begin."""
    masks: int
    """The word where the field that carries r_i begins."""
    tables: int
    chunks: int
    opened_bits: int
    spec: RingArray

    @classmethod
    def of(cls, program: Program, op: Op, base: int, rank: int, parties: int) -> _Compared:
        value = program.values[op.output]
        shift, k = op.attributes["shift"], op.attributes["comparison_bits"]
        lead, relu = int(rank == 0), op.kind == "relu"
        plan = plan_comparison(k)
        fields = 5 if nonlinear.relu_is_wide(value.bits, k) else 3
        return cls(
            shift=shift,
            k=k,
            bits=value.bits,
            lead=lead,
            offset=lead << (k - 1 if relu else k - 2),
            bias=lead * nonlinear.rounding(parties, shift),
            base=base,
            masks=base + 2 * value.size if relu else base,
            tables=base + fields * value.size,
            chunks=plan.chunks,
            opened_bits=plan.opened_bits,
            spec=plan.spec(),
        )


@dataclass(frozen=True)
class _LookedUp:
    """One lookup's numbers, as the kernels take them."""

    shift: int
    k: int
    segment_bits: int
    offset: int
    bias: int
    masks: int
    tables: int

    @classmethod
    def of(cls, op: Op, layout: PackLayout, index: int, rank: int, parties: int) -> _LookedUp:
        a, lead = op.attributes, int(rank == 0)
        return cls(
            shift=a["shift"],
            k=a["comparison_bits"],
            segment_bits=a["segment_bits"],
            offset=-lead * a["low"],
            bias=lead * nonlinear.rounding(parties, a["shift"]),
            masks=layout.masks[index],
            tables=layout.fields[index],
        )
