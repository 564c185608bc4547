"""A party that the test plays itself, with its certificate, and one of whose frames is bad.

It takes part in a session as any party does (`privserve.party`'s own code), so that the bad frame
can come at any point, on any lane, in any role.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import mutations
from stage import Stage

from privserve.config import Timeouts, read_config
from privserve.mesh import Payload
from privserve.party import lanes
from privserve.party.channel import HEADER, Channel
from privserve.party.lanes import Listener
from privserve.party.roles import open_session
from privserve.party.seat import Seat
from privserve.party.session import Session
from privserve.party.session_spec import SessionSpec

LANES = {
    "alice": ("watch", "orders", "online", "deal"),
    "bob": ("watch", "arrivals", "online"),
    "carol": ("watch", "deal"),
}
"""On which each party writes, in a session of ottt."""
WAITS = Timeouts(connect=20, peer=6, share=3)


@dataclass
class Plan:
    """Which frame is bad, and what was sent in its place."""

    draw: random.Random
    lane: str
    nth: int
    seen: int = 0
    sent: bytes | None = None
    """None as long as nothing bad was sent."""
    original: bytes = field(default=b"", repr=False)

    def strike(self, lane: str, payload: bytes) -> bytes | None:
        """The bytes to send in place of a frame with this payload; None to send it as it is."""
        # A bad hello is waited for, and is in `test_fuzz_peers` by itself.
        if lane != self.lane or self.sent is not None or payload.startswith(b'{"session"'):
            return None
        self.seen += 1
        if self.seen <= self.nth:
            return None
        self.original = payload
        while (bad := self._bad(payload)) == struct.pack("<Q", len(payload)) + payload:
            pass
        self.sent = bad
        return bad

    def _bad(self, payload: bytes) -> bytes:
        way = self.draw.random()
        if way < 0.15:
            return mutations.lying_frame(self.draw, payload)
        if way < 0.2:
            return self.draw.randbytes(self.draw.randrange(40))
        if way < 0.3:  # one more frame, or the same one twice
            more = self.draw.choice([payload, b"", self.draw.randbytes(8)])
            return framed(more) + framed(payload)
        if payload[:1] in (b"{", b"[") and way < 0.9:
            return framed(mutations.mutant(self.draw, json.loads(payload)))
        return framed(mutations.damaged(self.draw, payload))


def framed(payload: bytes) -> bytes:
    return struct.pack("<Q", len(payload)) + payload


class Rogue:
    """One party of a stage, played here; its process must have been stopped."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.config = read_config(stage.home / name / "cluster.toml")
        self.me = self.config.parties[self.config.rank(name)]
        self.plan: Plan | None = None
        # The stage keeps the port; what the listener closes is a copy.
        self._listener = Listener(self.config, self.me, stage.sockets[name].dup())

    def open(self, spec: SessionSpec) -> Session:
        """Take part in a session."""
        session = open_session(Seat(self.config, self.me, self._listener, WAITS), spec)
        session.start()
        return session

    @contextmanager
    def playing(self) -> Iterator[None]:
        """While the block runs, channels that are opened in this process go by the plan."""
        rogue = self

        class Corrupt(Channel):
            def send_frame(self, parts: Sequence[Payload]) -> None:
                payload = b"".join(parts)[HEADER.size :]
                bad = rogue.plan.strike(self.lane, payload) if rogue.plan is not None else None
                # What is no frame goes out like one that has its header already.
                super().send_frame(parts if bad is None else [bad])

        with mock.patch.object(lanes, "Channel", Corrupt):
            yield

    def close(self) -> None:
        self._listener.close()
