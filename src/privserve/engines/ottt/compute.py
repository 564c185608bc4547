"""A compute party: its session's set-up, and its evaluation of batches with packs of its pool."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from privserve.engines.ottt.dealer import LANE, dealt_keys
from privserve.engines.ottt.jit import compile_kernels
from privserve.engines.ottt.layout import PIECE_BYTES, PackLayout, lay_out
from privserve.engines.ottt.online import Evaluation, Holdings
from privserve.engines.ottt.ops import TUPLE_OPS
from privserve.engines.ottt.ops.arrangement import HeldWeight
from privserve.engines.ottt.ops.linear import geometries, hold, masks_of_weights
from privserve.engines.ottt.ops.opening import (
    LACKING,
    AheadStep,
    Held,
    lacking_memory,
    received_words,
)
from privserve.engines.ottt.pool import Pool
from privserve.engines.ottt.refill import Refill
from privserve.engines.ottt.stats import Stats
from privserve.errors import ClusterError, InputError, ModelError, TooManyRows
from privserve.fixedpoint import RingArray
from privserve.mesh import Mesh
from privserve.prg import KEY_BYTES, Prg, fresh_key
from privserve.program import Program
from privserve.validation import read_program

ONLINE = "online"
LANES: tuple[str, ...] = (ONLINE, LANE)

POOL_QUERIES = 512
POOL_BYTES = 256 << 20
EVALUATION_BYTES = 256 << 20
"""What is bound for batch sizes that may come again takes about this much, or one size alone."""
SETUP_BYTES = 16 << 20
"""Masked weights are opened in exchanges of about this size."""


def pool_slots(
    layout: PackLayout, pool_queries: int = POOL_QUERIES, pool_bytes: int = POOL_BYTES, **_: Any
) -> int:
    """Return how many packs a pool holds, and so how many rows run together at most."""
    return max(1, min(pool_queries, pool_bytes // (8 * layout.words)))


def check_shares(program: Program, shares: Mapping[str, RingArray]) -> None:
    """Raise ModelError unless there is a share of every parameter, of the shape that it has."""
    wanted: dict[str, tuple[int, ...]] = {}
    for index, geometry in geometries(program).items():
        attributes = program.ops[index].attributes
        wanted[attributes["weight"]] = geometry.weight_shape
        if attributes["bias"] is not None:
            wanted[attributes["bias"]] = (geometry.outputs,)
    for op in program.ops:
        if op.kind == "add_parameter":
            name, shape = op.attributes["parameter"], program.values[op.output].shape
            # Whatever broadcasts to it will do.
            given = shares[name].shape if name in shares else ()
            fits = len(given) <= len(shape) and all(
                d in (1, n) for d, n in zip(given[::-1], shape[::-1], strict=False)
            )
            wanted[name] = given if fits else shape
    for name, shape in wanted.items():
        if name not in shares or shares[name].shape != shape:
            raise ModelError(f"the shares hold no parameter '{name}' of the shape {shape}")


class Compute:
    """One compute party's side of a session.

    description: of the program; shares: of its parameters, by name; meshes: "online" among
    the compute parties, "deal" with the dealer. pool_queries and pool_bytes bound the pool.
    Construction is collective: it opens W - B, starts the pool's threads and waits for
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
        compile_kernels()
        self.program = read_program(description)
        check_shares(self.program, shares)
        self.layout = lay_out(self.program, piece_bytes)
        self.stats = Stats()
        self._mesh, self._dealer = meshes[ONLINE], meshes[LANE]
        self._rank, self._parties = self._mesh.rank, self._mesh.n
        slots = pool_slots(self.layout, pool_queries, pool_bytes)
        self.pool = Pool(slots, self.layout.words)
        self._broken = False
        self._sizes: dict[int, Evaluation] = {}

        setup_key, pack_key = dealt_keys(self._dealer)
        self._weights = self._open_weights(shares, Prg(setup_key))
        parameters = {
            op.attributes["parameter"]: shares[op.attributes["parameter"]]
            for op in self.program.ops
            if op.kind == "add_parameter"
        }
        self._holdings = Holdings(
            program=self.program,
            layout=self.layout,
            weights=self._weights,
            parameters=parameters,
            packs=self.pool.packs,
            mesh=self._mesh,
            stats=self.stats,
            checks=self._common_stream() if self.program.guards else None,
        )
        self._refill = Refill(
            self.pool, self.layout, self._ahead(), Prg(pack_key), self._dealer, self.stats
        )
        self._refill.start()
        self.pool.wait_for(min(ready_packs, slots))

    def _common_stream(self) -> Prg:
        """A stream that all compute parties draw alike, and the dealer does not know.

        The guards' coefficients come from it: a client who knew them would learn more of its
        query's values than whether they left their ranges.
        """
        if self._rank == 0:
            key = fresh_key()
            for peer in range(1, self._parties):
                self._mesh.send(peer, key)
            return Prg(key)
        frame = bytes(self._mesh.recv(0))
        if len(frame) != KEY_BYTES:
            raise self._mesh.bad_frame(0, "what is no key")
        return Prg(frame)

    def _open_weights(self, shares: Mapping[str, RingArray], prg: Prg) -> dict[int, HeldWeight]:
        """Open W - B of every linear op and arrange it and W_i for the kernels."""
        weights: dict[int, HeldWeight] = {}
        waiting: list[tuple[int, RingArray]] = []
        for index, mask in masks_of_weights(self.program, prg):
            # Many small weights go in one exchange; large ones do not all lie here at once.
            weight = shares[self.program.ops[index].attributes["weight"]]
            waiting.append((index, weight - mask))
            if sum(masked.nbytes for _, masked in waiting) >= SETUP_BYTES:
                weights.update(self._open_some(shares, waiting))
                waiting = []
        return {**weights, **self._open_some(shares, waiting)}

    def _open_some(
        self, shares: Mapping[str, RingArray], masked: Sequence[tuple[int, RingArray]]
    ) -> dict[int, HeldWeight]:
        """Open some ops' W - B from this party's shares of it."""
        if not masked:
            return {}
        opened = np.concatenate([share.ravel() for _, share in masked])
        for peer, payload in enumerate(self._mesh.exchange(opened.copy().data.cast("B"))):
            if payload is not None:
                opened += received_words(self._mesh, peer, payload, opened.size)
        weights: dict[int, HeldWeight] = {}
        start = 0
        for index, share in masked:
            weights[index] = hold(
                self.program,
                self.program.ops[index],
                shares,
                open_weight=opened[start : start + share.size],
            )
            start += share.size
        return weights

    def _ahead(self) -> dict[int, AheadStep]:
        """What is worked out of each op's tuple ahead of queries, by the op's index."""
        layout, steps = self.layout, {}
        for index, start in layout.ready.items():
            op = self.program.ops[index]
            bind = TUPLE_OPS[op.kind].ahead
            assert bind is not None  # of every op that has words for it
            fields = layout.fields.get(index, 0)
            held = Held(
                self.pool.packs, layout.masks[index], fields, start, self._weights.get(index)
            )
            steps[index] = bind(self.program, op, held)
        return steps

    def packs(self) -> tuple[int, int]:
        """Return how many packs are ready, and how many the pool holds."""
        return self.pool.ready, self.pool.slots

    # The online phase.

    def run(self, inputs: Sequence[RingArray]) -> list[RingArray]:
        """Return shares of the outputs, int64[B, ...], from shares of the inputs; collective.

        Where ranges are guarded, one more output: int64[B, guards, FLAGS], see `ops.check`.
        """
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
        evaluation = self._evaluation(batch)
        first, waited = self.pool.take(batch)
        if waited:
            self.stats.packs_waited_for += batch
            self.stats.waiting_seconds += time.perf_counter() - began
        self.stats.packs_used += batch
        try:
            return evaluation.run(inputs, first) if evaluation else self._decline(batch)
        except TooManyRows:
            raise
        except BaseException:
            self._broken = True
            raise
        finally:
            self.pool.release(batch)
            self.stats.run_seconds += time.perf_counter() - began

    def _evaluation(self, batch: int) -> Evaluation | None:
        """The program, bound for batches of this size; None where there is no memory for it."""
        if batch not in self._sizes:
            # A server sees few sizes; the oldest ones go, all of them for a large network.
            held = sum(evaluation.nbytes for evaluation in self._sizes.values())
            while self._sizes and (len(self._sizes) >= 16 or held > EVALUATION_BYTES):
                held -= self._sizes.pop(next(iter(self._sizes))).nbytes
            try:
                self._sizes[batch] = Evaluation(self._holdings, batch)
            except MemoryError:
                return None
        return self._sizes[batch]

    def _decline(self, batch: int) -> NoReturn:
        """Tell the others, in place of the first opening, that there is no memory for this batch.

        Its packs are used up here as they are there, so the session goes on.
        """
        self._mesh.exchange(LACKING)
        raise lacking_memory(batch)

    def close(self) -> None:
        """End the pool's threads and forget the session's packs."""
        self._broken = True
        self.pool.close()
        self._refill.join()
