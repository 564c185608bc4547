"""Sessions of three parties in one process: real channels, an engine that doubles."""

from __future__ import annotations

import socket
from pathlib import Path
from uuid import uuid4

import echo_engine
import numpy as np
from serving import make_config

from privserve import sharing
from privserve.config import Timeouts, read_config
from privserve.errors import QueryError
from privserve.party.lanes import Listener
from privserve.party.pending import Pending
from privserve.party.poller import Poller
from privserve.party.roles import LeaderSession, open_session
from privserve.party.seat import Seat
from privserve.party.session import Session
from privserve.party.session_spec import SessionSpec
from privserve.party.wheel import Wheel

QUICK = Timeouts(connect=5, peer=1.5, share=0.3)


class Sessions:
    """One session at every party of a cluster, the leader first and the dealer last."""

    def __init__(self, home: Path, parties: int = 3) -> None:
        socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(parties)]
        config = make_config(home, [f"127.0.0.1:{s.getsockname()[1]}" for s in socks])
        self.configs = [read_config(home / p.name / "cluster.toml") for p in config.parties]
        self.listeners = [
            Listener(own, own.parties[rank], sock)
            for rank, (own, sock) in enumerate(zip(self.configs, socks, strict=True))
        ]
        self.all: list[Session] = []
        self.wheels: list[Wheel] | None = None
        """Of each party, where its sessions share a poller as a party's process has one."""

    def share_pollers(self) -> None:
        """Have the sessions that are started from now on drive one poller per party in turns."""
        self.wheels = [Wheel(Poller()) for _ in self.listeners]

    def start(
        self,
        who: list[int] | None = None,
        timeouts: Timeouts = QUICK,
        shares: dict[str, np.ndarray] | None = None,
        **options,
    ) -> None:
        name = uuid4().hex
        for rank in range(len(self.listeners)) if who is None else who:
            spec = SessionSpec(name, "m", "echo", echo_engine.DESCRIPTION, shares or {}, options)
            self.all.append(self.begin(rank, spec, timeouts))
        for session in self.all:
            assert session.ready.wait(10)

    def begin(
        self, rank: int, spec: SessionSpec, timeouts: Timeouts = QUICK, came_back: str = ""
    ) -> Session:
        """Start one party's side of a session."""
        config = self.configs[rank]
        wheel = self.wheels[rank] if self.wheels else None
        seat = Seat(config, config.parties[rank], self.listeners[rank], timeouts, None, wheel)
        session = open_session(seat, spec, came_back)
        session.start()
        return session

    def come_back(self, rank: int, timeouts: Timeouts = QUICK) -> None:
        """Have a party that vanished take part again, with what it had."""
        spec = self.all[rank].spec
        self.all[rank] = self.begin(rank, spec, timeouts, "it was started again")

    @property
    def leader(self) -> LeaderSession:
        assert isinstance(self.all[0], LeaderSession)
        return self.all[0]

    def ask(self, x: np.ndarray, name: str | None = None) -> list[Pending]:
        """Submit one share of x to every compute party."""
        return self.ask_raw(sharing.split(x, len(self.all) - 1), name)

    def ask_raw(self, shares: list[np.ndarray], name: str | None = None) -> list[Pending]:
        name = name or uuid4().hex
        asked = [Pending(name, [share], len(share)) for share in shares]
        for session, query in zip(self.all, asked, strict=False):
            session.submit(query)  # type: ignore[attr-defined]
        return asked

    def close(self) -> None:
        for session in self.all:
            session.end("the test is over")
        for listener in self.listeners:
            listener.close()
        for wheel in self.wheels or []:
            wheel.poller.close()


def answer(asked: list[Pending]) -> np.ndarray:
    return sharing.join([query.future.result(10)[0] for query in asked])


def refusals(asked: list[Pending], seconds: float = 10) -> list[QueryError]:
    errors = [query.future.exception(seconds) for query in asked]
    assert all(isinstance(error, QueryError) for error in errors), errors
    return errors  # type: ignore[return-value]


def states(sessions: Sessions) -> list[str]:
    return [session.state for session in sessions.all]


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64).reshape(-1, 2)


def vanish(session: Session) -> None:
    """End `session` without a word, as a killed process does: it does not come back."""
    session._watch._tell = lambda _: None  # type: ignore[union-attr,method-assign,assignment]
    with session._end_lock:
        session.state, session.has_left = "ended", True
        session._ended.set()
        session._round.over.set()  # and nothing is told
    cut_off(session)


def cut_off(session: Session) -> None:
    """Break all channels of `session`, as a cut cable does: it may come back."""
    for lane in session._round.lanes.values():
        lane.close()
