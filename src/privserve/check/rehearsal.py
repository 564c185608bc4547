"""All parties of a session in this process: what they would answer, and every layer's values.

Two compute parties and the dealer run the engine that a cluster runs, a thread each, with queues
for channels. The model's owner, who has weights and samples anyway, sees what no party sees: the
values of all layers are joined, not only the outputs. The program is the served one, but that all
bits of those values are computed, and they are told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from privserve.activations import joined
from privserve.description import OutputDescription, read_description
from privserve.engines import Compute, Prepared, load_engine
from privserve.errors import BadFrame, PeerLost, PrivserveError
from privserve.fixedpoint import RingArray, decode, encode
from privserve.mesh import Payload
from privserve.party.answers import AnswerCoins
from privserve.prg import Prg
from privserve.program import Port, Program, needed_bits
from privserve.sharing import join, split
from privserve.validation import read_program

PARTIES = 2
"""That compute; the dealer is number PARTIES."""
OPTIONS = {"pool_queries": 1, "ready_packs": 1}
"""Rows are run one by one, so that a large network takes no more memory than it has to."""
LOOK_SECONDS = 0.2
"""So often this thread can be interrupted while others work."""

Floats = NDArray[np.float64]


class _Lane:
    """Queues between all parties, for one purpose."""

    def __init__(self) -> None:
        ranks = range(PARTIES + 1)
        self.queues: dict[tuple[int, int], SimpleQueue[bytes | None]] = {
            (a, b): SimpleQueue() for a in ranks for b in ranks
        }

    def cut(self) -> None:
        """Wake whoever waits for something: a party has failed."""
        for queue in self.queues.values():
            queue.put(None)


class _QueueMesh:
    """What an engine sees of the others: `mesh.Mesh`, on queues."""

    def __init__(self, lane: _Lane, rank: int) -> None:
        self._lane, self.rank, self.n = lane, rank, PARTIES

    def send(self, peer: int, *buffers: Payload) -> None:
        frame = b"".join(bytes(memoryview(one).cast("B")) for one in buffers)
        self._lane.queues[self.rank, peer].put(frame)

    def recv(self, peer: int) -> memoryview:
        frame = self._lane.queues[peer, self.rank].get()
        if frame is None:
            raise PeerLost(f"{self.name(peer)} failed")
        return memoryview(frame)

    def exchange(self, payload: Payload) -> list[memoryview | None]:
        others = [peer for peer in range(self.n) if peer != self.rank]
        for peer in others:
            self.send(peer, payload)
        return [self.recv(peer) if peer in others else None for peer in range(self.n)]

    def name(self, peer: int) -> str:
        return "the dealer" if peer == PARTIES else f"compute party {peer}"

    def limit(self, peer: int, size: int) -> None:
        """Nothing: the frames are this process' own."""

    def bad_frame(self, peer: int, why: str) -> BadFrame:
        return BadFrame(f"{self.name(peer)} sent {why}")


@dataclass(frozen=True)
class Answered:
    """What came of one row."""

    outputs: Mapping[str, Floats]
    """As a client gets them, float64[*shape], by name."""
    tensors: Mapping[str, Floats]
    """The values of the layers, by the names of the model's tensors."""
    left: tuple[str, ...]
    """The layers in which a value left a guessed range: a client would get no answer."""


class Rehearsal:
    """A session of one model, all of it here; a context manager."""

    def __init__(self, prepared: Prepared, tensors: Sequence[str]) -> None:
        """tensors: which of `prepared.tensors` to tell."""
        self._served = read_description(prepared.description)
        program = read_program(prepared.description)
        self._told = {name: prepared.tensors[name] for name in tensors}
        self._program = with_told(program, self._told)
        description = {**prepared.description, **self._program.to_json()}
        engine = load_engine(prepared.engine)
        self._lanes = {name: _Lane() for name in engine.LANES}
        self._failures: list[BaseException] = []
        self._computes: list[Compute | None] = [None] * PARTIES
        shares = {name: split(one, PARTIES) for name, one in prepared.parameters.items()}
        self._coins = [AnswerCoins(self._served["outputs"], Prg()) for _ in range(PARTIES)]

        def deal() -> None:
            engine.deal(description, self._meshes(PARTIES), **OPTIONS)

        def set_up(rank: int) -> None:
            mine = {name: parts[rank] for name, parts in shares.items()}
            self._computes[rank] = engine.Compute(description, mine, self._meshes(rank), **OPTIONS)

        self._dealer = threading.Thread(target=self._guarded, args=(deal,), daemon=True)
        self._dealer.start()
        self._everyone(set_up)

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        for compute in self._computes:
            if compute is not None:
                compute.close()
        self._dealer.join(5)

    def ask(self, row: Sequence[Floats]) -> Answered:
        """Return what the parties make of one row, float64[*shape] per input."""
        bits = self._program.fraction_bits
        shared = [split(encode(x[None], bits), PARTIES) for x in row]
        found: list[list[RingArray]] = [[] for _ in range(PARTIES)]

        def run(rank: int) -> None:
            compute = self._computes[rank]
            assert compute is not None  # all of them were set up
            found[rank] = compute.run([parts[rank] for parts in shared])

        self._everyone(run)
        outputs, ports = self._served["outputs"], self._program.outputs
        answers = [
            coins.told([*shares[: len(outputs)], *shares[len(ports) :]])
            for coins, shares in zip(self._coins, found, strict=True)
        ]
        told = {
            port.name: self._decoded(port, [shares[index] for shares in found])
            for index, port in enumerate(ports)
            if index >= len(outputs)
        }
        return Answered(
            {
                output["name"]: self._answer(output, parts)
                for output, parts in zip(outputs, zip(*answers, strict=True), strict=False)
            },
            told,
            self._left([parts[-1] for parts in answers]),
        )

    def _answer(self, output: OutputDescription, parts: Sequence[RingArray]) -> Floats:
        bits = self._program.output_fraction_bits
        return np.asarray(joined(parts, output["activation"], bits)[0], np.float64)

    def _decoded(self, port: Port, parts: Sequence[RingArray]) -> Floats:
        """A layer's value, each in its own step."""
        return np.asarray(decode(join(parts)[0], 0) * self._program.values[port.value].step)

    def _left(self, flags: Sequence[RingArray]) -> tuple[str, ...]:
        guards = self._program.guards
        if not guards:
            return ()
        layers = np.flatnonzero(join(flags)[0].any(axis=1))
        return tuple(dict.fromkeys(guards[index] for index in layers))

    # -- threads ------------------------------------------------------------------------------

    def _meshes(self, rank: int) -> dict[str, _QueueMesh]:
        return {name: _QueueMesh(lane, rank) for name, lane in self._lanes.items()}

    def _guarded(self, step: Callable[..., None], *arguments: int) -> None:
        try:
            step(*arguments)
        except BaseException as failure:
            self._failures.append(failure)
            for lane in self._lanes.values():
                lane.cut()

    def _everyone(self, step: Callable[[int], None]) -> None:
        """Let every compute party do a step; raises what the first that failed raised."""
        threads = [
            threading.Thread(target=self._guarded, args=(step, rank), daemon=True)
            for rank in range(PARTIES)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_SECONDS)
        if self._failures:
            first = self._failures[0]
            known = next((f for f in self._failures if isinstance(f, PrivserveError)), first)
            raise first if not isinstance(first, PeerLost) else known


def with_told(program: Program, told: Mapping[str, int]) -> Program:
    """Return the program with further outputs: values by number, of which all bits are computed."""
    ports = [Port(name, number) for name, number in told.items()]
    outputs = (*program.outputs, *ports)
    bits = needed_bits(len(program.values), program.ops, [port.value for port in outputs])
    values = tuple(replace(v, bits=b) for v, b in zip(program.values, bits, strict=True))
    return replace(program, outputs=outputs, values=values)
