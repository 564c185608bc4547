"""A party is killed between two exchanges: real processes, real sockets, recorded frames.

What survives ends in an error within seconds, and the next session of the same model, the
same shares and the same inputs repeats nothing of what went over any wire before.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from ottt_models import graph
from ottt_session import uniform

from privserve import sharing
from privserve.certificates import write_cluster
from privserve.config import party_names, read_config
from privserve.engines import Prepared, ottt
from privserve.errors import ClusterError, PeerLost
from privserve.fixedpoint import encode
from privserve.party.lanes import LaneMesh, Listener

SPAWN = multiprocessing.get_context("spawn")
NAMES = party_names(3)
ALICE, BOB, CAROL = NAMES
WIDTH, ROWS = 48, 3
EXCHANGES = 4  # linear, ReLU (2), linear
WINDOW = 32

Frame = tuple[str, str, bytes]
"""(sent | received, peer, payload)"""


def die_in_exchange(lane: LaneMesh, number: int) -> None:
    """Have this process killed instead of making exchange `number` (from 0) from now on."""
    exchange, made = lane.exchange, iter(range(number + 1))

    def counted(payload: Any) -> list[memoryview | None]:
        if next(made) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(payload)

    lane.exchange = counted  # type: ignore[method-assign]


def member(
    home: Path, name: str, sock: socket.socket, prepared: Prepared, shares: Any, pipe: Connection
) -> None:
    """One party's process: opens, runs and closes sessions as the pipe says."""
    frames: list[Frame] = []
    config = read_config(home / name / "cluster.toml")
    listener = Listener(
        config, config.parties[config.rank(name)], sock, lambda *event: frames.append(event)
    )
    lanes: dict[str, LaneMesh] = {}
    compute: ottt.Compute | None = None
    while True:
        order, value = pipe.recv()
        if order == "open":
            frames.clear()
            limits = ottt.frame_limits(prepared.description)
            lanes = listener.open_lanes(value, ottt.LANES, 60, limits=limits)
            if name == CAROL:
                with contextlib.suppress(PeerLost):
                    ottt.deal(prepared.description, lanes)
                pipe.send(list(frames))
                continue
            compute = ottt.Compute(prepared.description, shares, lanes, pool_queries=16)
            pipe.send("open")
        elif order == "die":
            die_in_exchange(lanes[ottt.LANES[0]], value)
        elif order == "run":
            assert compute is not None
            began = time.monotonic()
            try:
                compute.run([value])
                error = ""
            except (ClusterError, PeerLost) as failure:
                error = str(failure)
            pipe.send((error, time.monotonic() - began, compute.stats.packs_used))
        elif order == "close":
            assert compute is not None
            compute.close()
            for lane in lanes.values():
                lane.close()
            pipe.send(list(frames))
        else:
            return


@dataclass
class Cluster:
    """The processes of all parties; the test keeps their listening sockets."""

    home: Path
    prepared: Prepared
    shares: dict[str, dict[str, np.ndarray]]
    socks: dict[str, socket.socket]
    pipes: dict[str, Connection]
    processes: dict[str, Any]

    def start(self, name: str) -> None:
        """A new process for party `name`, on its old address."""
        self.pipes[name], theirs = SPAWN.Pipe()
        self.processes[name] = SPAWN.Process(
            target=member,
            args=(self.home, name, self.socks[name], self.prepared, self.shares[name], theirs),
            daemon=True,
        )
        self.processes[name].start()
        theirs.close()

    def tell(self, names: list[str], order: str, value: Any = None) -> None:
        for name in names:
            self.pipes[name].send((order, value))

    def hear(self, name: str) -> Any:
        assert self.pipes[name].poll(60), f"{name} does not answer"
        return self.pipes[name].recv()

    def open(self, session: str) -> None:
        self.tell(NAMES, "open", session)
        assert [self.hear(name) for name in (ALICE, BOB)] == ["open", "open"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    layers = ["Gemm", "Relu", "Gemm"]
    weights = {"w": uniform((WIDTH, WIDTH), -0.2, 0.2), "v": uniform((WIDTH, WIDTH), -0.2, 0.2)}
    nodes = [
        helper.make_node(kind, inputs, [output])
        for kind, inputs, output in zip(
            layers, (["x", "w"], ["g"], ["r", "v"]), ("g", "r", "y"), strict=True
        )
    ]
    prepared = ottt.prepare(graph(nodes, weights, (WIDTH,)))
    split = {name: sharing.split(w, 2) for name, w in prepared.parameters.items()}
    shares: dict[str, dict[str, np.ndarray]] = {
        name: {k: parts[rank] for k, parts in split.items()}
        for rank, name in enumerate((ALICE, BOB))
    }
    socks = {name: socket.create_server(("127.0.0.1", 0)) for name in NAMES}
    where = {name: f"127.0.0.1:{sock.getsockname()[1]}" for name, sock in socks.items()}
    write_cluster(tmp_path, [(name, where[name], where[name]) for name in NAMES])
    made = Cluster(tmp_path, prepared, {**shares, CAROL: {}}, socks, {}, {})
    try:
        for name in NAMES:
            made.start(name)
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.join()
        for sock in socks.values():
            sock.close()


def windows(frames: list[Frame], direction: str) -> list[bytes]:
    """Every 32-byte piece, at every word, of the payloads that went in `direction`."""
    return [
        payload[at : at + WINDOW]
        for went, _, payload in frames
        if went == direction
        for at in range(0, len(payload) - WINDOW + 1, 8)
    ]


def keys(dealer: list[Frame]) -> list[bytes]:
    """The set-up and pack keys that the dealer sent, all parties'."""
    firsts = [next(p for went, to, p in dealer if (went, to) == ("sent", n)) for n in (ALICE, BOB)]
    assert [len(first) for first in firsts] == [64, 64]
    return [first[at : at + 32] for first in firsts for at in (0, 32)]


def pack_numbers(frames: list[Frame]) -> list[int]:
    """The pack number at the head of each run that alice began; her first frame is of W - B."""
    online = [p for went, to, p in frames if (went, to) == ("sent", BOB)][1:]
    return [struct.unpack_from("<q", first)[0] for first in online[::EXCHANGES]]


@pytest.mark.parametrize("exchange", [1, 2])
def test_a_session_after_a_killed_party_repeats_nothing(cluster: Cluster, exchange: int) -> None:
    bits = cluster.prepared.description["fraction_bits"]
    inputs = sharing.split(encode(uniform((ROWS, WIDTH), -1, 1), bits), 2)

    def run() -> None:
        for name, share in zip((ALICE, BOB), inputs, strict=True):
            cluster.tell([name], "run", share)

    cluster.open("first")
    for used in (ROWS, 2 * ROWS):
        run()
        for name in (ALICE, BOB):
            error, _, packs_used = cluster.hear(name)
            assert (error, packs_used) == ("", used)
    cluster.tell([BOB], "die", exchange)
    run()
    error, seconds, packs_used = cluster.hear(ALICE)
    assert BOB in error
    assert seconds < 5
    assert packs_used == 3 * ROWS
    cluster.processes[BOB].join(10)
    assert cluster.processes[BOB].exitcode == -signal.SIGKILL

    # The survivor takes no further pack, and says nothing more in this session.
    cluster.tell([ALICE], "run", inputs[0])
    error, _, packs_used = cluster.hear(ALICE)
    assert "share the model again" in error
    assert packs_used == 3 * ROWS
    cluster.tell([ALICE], "close")
    before = {ALICE: cluster.hear(ALICE), CAROL: cluster.hear(CAROL)}
    numbers = pack_numbers(before[ALICE])
    assert numbers == [0, ROWS, 2 * ROWS]
    sent = [p for went, to, p in before[ALICE] if (went, to) == ("sent", BOB)]
    assert len(sent) == 1 + 2 * EXCHANGES + exchange + 1
    assert min(map(len, sent)) >= WINDOW

    # The same listeners, a new process for the dead party, the same shares of all secrets.
    cluster.start(BOB)
    cluster.open("second")
    run()
    for name in (ALICE, BOB):
        error, _, packs_used = cluster.hear(name)
        assert (error, packs_used) == ("", ROWS)
    cluster.tell([ALICE, BOB], "close")
    after = {name: cluster.hear(name) for name in NAMES}
    assert pack_numbers(after[ALICE]) == [0]

    assert len({*keys(before[CAROL]), *keys(after[CAROL])}) == 8
    # alice's transcript has both directions of her link to bob, carol's all that was dealt.
    old = [
        *windows(before[ALICE], "sent"),
        *windows(before[ALICE], "received"),
        *windows(before[CAROL], "sent"),
    ]
    new = [
        piece
        for frames in after.values()
        for way in ("sent", "received")
        for piece in windows(frames, way)
    ]
    assert old
    assert new
    assert not set(old) & set(new)
    # Nor does a run repeat another one's openings within a session.
    own = windows(before[ALICE], "sent")
    assert len(set(own)) == len(own)
