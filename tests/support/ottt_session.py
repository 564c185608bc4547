"""A whole session in one process: queues for channels, a thread per party."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx

from privserve.activations import joined
from privserve.description import read_description
from privserve.engines import Prepared, ottt
from privserve.errors import BadFrame, PeerLost
from privserve.party.answers import AnswerCoins
from privserve.prg import Prg
from privserve.sharing import join, split
from privserve.validation import read_program


class Wire:
    """Queues between all parties of one lane, and a transcript of what each one sent."""

    def __init__(self, parties: int) -> None:
        self.parties = parties
        self.queues = {
            (a, b): queue.Queue() for a in range(parties + 1) for b in range(parties + 1)
        }
        self.sent: list[tuple[int, int, bytes]] = []
        self.lost: set[int] = set()

    def mesh(self, rank: int) -> MemoryMesh:
        return MemoryMesh(self, rank)

    def cut(self, rank: int) -> None:
        """Party `rank` dies: everybody's channels to it break."""
        self.lost.add(rank)
        for other in range(self.parties + 1):
            self.queues[rank, other].put(None)
            self.queues[other, rank].put(None)


class MemoryMesh:
    def __init__(self, wire: Wire, rank: int) -> None:
        self.wire, self.rank, self.n = wire, rank, wire.parties

    def send(self, peer: int, *buffers: bytes) -> None:
        if {peer, self.rank} & self.wire.lost:
            raise PeerLost(f"party {peer} left")
        frame = b"".join(bytes(memoryview(b).cast("B")) for b in buffers)
        self.wire.sent.append((self.rank, peer, frame))
        self.wire.queues[self.rank, peer].put(frame)

    def recv(self, peer: int) -> memoryview:
        frame = self.wire.queues[peer, self.rank].get(timeout=60)
        if frame is None:
            raise PeerLost(f"party {peer} left")
        return memoryview(frame)

    def bad_frame(self, peer: int, why: str) -> BadFrame:
        return BadFrame(f"party {peer} sent {why}")

    def exchange(self, payload: bytes) -> list[memoryview | None]:
        others = [p for p in range(self.n) if p != self.rank]
        for peer in others:
            self.send(peer, payload)
        return [self.recv(p) if p in others else None for p in range(self.n)]


def as_sent(description: dict[str, Any]) -> dict[str, Any]:
    """A description as a party reads it, through JSON and the checks of the front."""
    return dict(read_description(json.loads(json.dumps(description))))


class Session:
    """n compute parties and a dealer serving one prepared model."""

    def __init__(
        self, model: onnx.ModelProto | Prepared, parties: int = 2, options=None, **prepare
    ) -> None:
        is_prepared = isinstance(model, Prepared)
        self.prepared = model if is_prepared else ottt.prepare(model, **prepare)
        self.program = read_program(as_sent(self.prepared.description))
        self.parties = parties
        self.wires = {lane: Wire(parties) for lane in ottt.LANES}
        shares = {name: split(w, parties) for name, w in self.prepared.parameters.items()}
        self.computes: list[ottt.Compute] = [None] * parties  # type: ignore[list-item]
        self.failures: list[BaseException] = []

        def deal() -> None:
            try:
                ottt.deal(self.prepared.description, self._meshes(parties), **(options or {}))
            except BaseException as failure:
                self.failures.append(failure)
                for wire in self.wires.values():
                    wire.cut(parties)

        self.dealer = threading.Thread(target=deal, daemon=True)
        self.dealer.start()

        def start(rank: int) -> None:
            self.computes[rank] = ottt.Compute(
                self.prepared.description,
                {name: parts[rank] for name, parts in shares.items()},
                self._meshes(rank),
                **{"pool_queries": 64, **(options or {})},
            )

        self.everyone(start)

    def _meshes(self, rank: int) -> dict[str, MemoryMesh]:
        return {lane: wire.mesh(rank) for lane, wire in self.wires.items()}

    def everyone(self, step: Callable[[int], None]) -> None:
        def guarded(rank: int) -> None:
            try:
                step(rank)
            except BaseException as failure:
                self.failures.append(failure)
                for wire in self.wires.values():  # a party that fails leaves the session
                    wire.cut(rank)

        threads = [
            threading.Thread(target=guarded, args=(r,), daemon=True) for r in range(self.parties)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        if self.failures:
            raise self.failures[0]

    def query(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Real outputs (before any client activation) for real inputs (B, ...)."""
        return self.query_elements(*self._encoded(*inputs))

    def query_elements(self, *encoded: np.ndarray) -> list[np.ndarray]:
        """The same for any ring elements as inputs, int64 (B, ...)."""
        joins = [join(list(parts)) for parts in zip(*self._shares(*encoded), strict=True)]
        return [x / 2.0**self.program.output_fraction_bits for x in joins]

    def answer(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """What a client that asks for logits gets, and the guards' flags if there are any."""
        return self.answer_elements(*self._encoded(*inputs))

    def answer_elements(self, *encoded: np.ndarray) -> list[np.ndarray]:
        """The same for any ring elements as inputs, int64 (B, ...)."""
        outputs = self.prepared.description["outputs"]
        parts = [AnswerCoins(outputs, Prg()).told(shares) for shares in self._shares(*encoded)]
        bits = self.program.output_fraction_bits
        return [
            joined(shares, output.get("activation"), bits, logits=True)
            for output, shares in zip_longest(outputs, zip(*parts, strict=True), fillvalue={})
        ]

    def _encoded(self, *inputs: np.ndarray) -> list[np.ndarray]:
        bits = self.program.fraction_bits
        return [np.rint(x * 2.0**bits).astype(np.int64) for x in inputs]

    def _shares(self, *encoded: np.ndarray) -> list[Sequence[np.ndarray]]:
        """Every party's shares of the outputs."""
        shared = [split(x, self.parties) for x in encoded]
        outs: list[Sequence[np.ndarray]] = [()] * self.parties

        def run(rank: int) -> None:
            outs[rank] = self.computes[rank].run([s[rank] for s in shared])

        self.everyone(run)
        return outs

    def close(self) -> None:
        for compute in self.computes:
            compute.close()
        self.dealer.join(10)
        assert not self.dealer.is_alive()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def uniform(shape: Sequence[int], low: float, high: float) -> np.ndarray:
    """Uniform reals in [low, high)."""
    words = Prg().int64(tuple(shape)).view(np.uint64) >> np.uint64(11)
    return low + (high - low) * (words * 2.0**-53)
