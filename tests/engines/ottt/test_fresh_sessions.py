"""A party is killed between two exchanges: real processes, real sockets, recorded frames.

What survives ends in an error within seconds, and the next session of the same model, the
same shares and the same inputs repeats nothing of what went over any wire before.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import helper
from ottt_models import graph
from ottt_session import uniform

from privserve import sharing
from privserve.bench.processes import Frame, Member, PartyProcesses, split_parameters
from privserve.config import party_names
from privserve.engines import Compute, Prepared, ottt
from privserve.errors import ClusterError, PeerLost
from privserve.fixedpoint import encode
from privserve.party.lane_mesh import LaneMesh

NAMES = party_names(3)
ALICE, BOB, CAROL = NAMES
WIDTH, ROWS = 48, 3
EXCHANGES = 3  # linear, ReLU (2), linear
WINDOW = 32


def die_in_exchange(lane: LaneMesh, number: int) -> None:
    """Have this process killed instead of making exchange `number` (from 0) from now on."""
    exchange, made = lane.exchange, iter(range(number + 1))

    def counted(payload: Any) -> list[memoryview | None]:
        if next(made) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(payload)

    lane.exchange = counted  # type: ignore[method-assign]


def obey(member: Member) -> None:
    """One party's process: opens, runs and closes sessions as the pipe says."""
    lanes: dict[str, LaneMesh] = {}
    compute: Compute | None = None
    while True:
        try:
            order, value = member.pipe.recv()
        except EOFError:
            return
        if order == "open":
            member.frames.clear()
            lanes = member.open(value, 60)
            if member.deals:
                member.deal(lanes)
                member.pipe.send(list(member.frames))
                continue
            compute = member.compute(lanes)
            member.pipe.send("open")
        elif order == "die":
            die_in_exchange(lanes[ottt.LANES[0]], value)
        elif order == "run":
            assert compute is not None
            member.pipe.send(timed(compute, value))
        elif order == "close":
            assert compute is not None
            compute.close()
            for lane in lanes.values():
                lane.close()
            member.pipe.send(list(member.frames))


def timed(compute: Compute, value: np.ndarray) -> tuple[str, float, int]:
    """Run a batch: (its error, if it ends in one, the seconds that it takes, packs used)."""
    began = time.monotonic()
    try:
        compute.run([value])
        error = ""
    except (ClusterError, PeerLost) as failure:
        error = str(failure)
    return error, time.monotonic() - began, compute.stats.packs_used  # type: ignore[attr-defined]


@dataclass
class Members:
    """The processes of all parties, and what each was given."""

    prepared: Prepared
    shares: dict[str, dict[str, np.ndarray]]
    parties: PartyProcesses

    def start(self, name: str) -> None:
        """A new process for party `name`, on its old address."""
        self.parties.start(name, self.shares[name])

    def tell(self, names: list[str], order: str, value: Any = None) -> None:
        for name in names:
            self.parties.tell(name, (order, value))

    def hear(self, name: str) -> Any:
        return self.parties.hear(name, 60)

    def open(self, session: str) -> None:
        self.tell(NAMES, "open", session)
        assert [self.hear(name) for name in (ALICE, BOB)] == ["open", "open"]

    def run(self, inputs: list[np.ndarray]) -> None:
        """Have each compute party run its share of a batch."""
        for name, share in zip((ALICE, BOB), inputs, strict=True):
            self.tell([name], "run", share)

    def assert_answered(self, used: int) -> None:
        """The batch was answered, and `used` packs went into this session."""
        for name in (ALICE, BOB):
            error, _, packs_used = self.hear(name)
            assert (error, packs_used) == ("", used)


@pytest.fixture
def members() -> Iterator[Members]:
    layers = ["Gemm", "Relu", "Gemm"]
    weights = {"w": uniform((WIDTH, WIDTH), -0.2, 0.2), "v": uniform((WIDTH, WIDTH), -0.2, 0.2)}
    nodes = [
        helper.make_node(kind, inputs, [output])
        for kind, inputs, output in zip(
            layers, (["x", "w"], ["g"], ["r", "v"]), ("g", "r", "y"), strict=True
        )
    ]
    prepared = ottt.prepare(graph(nodes, weights, (WIDTH,)))
    shares = split_parameters(prepared.parameters, NAMES)
    with PartyProcesses(
        prepared, len(NAMES), obey, options={"pool_queries": 16}, record=True
    ) as parties:
        made = Members(prepared, shares, parties)
        for name in NAMES:
            made.start(name)
        yield made


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


def frames_of_a_killed_session(
    members: Members, exchange: int, inputs: list[np.ndarray]
) -> dict[str, list[Frame]]:
    """Run two batches, and a third in which bob is killed before `exchange`: what was sent."""
    members.open("first")
    for used in (ROWS, 2 * ROWS):
        members.run(inputs)
        members.assert_answered(used)
    members.tell([BOB], "die", exchange)
    members.run(inputs)
    error, seconds, packs_used = members.hear(ALICE)
    assert BOB in error
    assert seconds < 5
    assert packs_used == 3 * ROWS
    members.parties.processes[BOB].join(10)
    assert members.parties.processes[BOB].exitcode == -signal.SIGKILL

    # The survivor takes no further pack, and says nothing more in this session.
    members.tell([ALICE], "run", inputs[0])
    error, _, packs_used = members.hear(ALICE)
    assert "share the model again" in error
    assert packs_used == 3 * ROWS
    members.tell([ALICE], "close")
    return {ALICE: members.hear(ALICE), CAROL: members.hear(CAROL)}


@pytest.mark.parametrize("exchange", [1, 2])
def test_a_session_after_a_killed_party_repeats_nothing(members: Members, exchange: int) -> None:
    bits = members.prepared.description["fraction_bits"]
    inputs = sharing.split(encode(uniform((ROWS, WIDTH), -1, 1), bits), 2)
    before = frames_of_a_killed_session(members, exchange, inputs)
    assert pack_numbers(before[ALICE]) == [0, ROWS, 2 * ROWS]
    sent = [p for went, to, p in before[ALICE] if (went, to) == ("sent", BOB)]
    assert len(sent) == 1 + 2 * EXCHANGES + exchange + 1
    assert min(map(len, sent)) >= WINDOW

    # The same listeners, a new process for the dead party, the same shares of all secrets.
    members.start(BOB)
    members.open("second")
    members.run(inputs)
    members.assert_answered(ROWS)
    members.tell([ALICE, BOB], "close")
    after = {name: members.hear(name) for name in NAMES}
    assert pack_numbers(after[ALICE]) == [0]
    assert_nothing_repeated(before, after)


def assert_nothing_repeated(before: dict[str, list[Frame]], after: dict[str, list[Frame]]) -> None:
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
