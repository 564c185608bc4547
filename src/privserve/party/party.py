"""What one party is to its front: its place in the cluster, and at most one session."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

from privserve.authority import check_revoked, days_left
from privserve.config import ClusterConfig, Timeouts
from privserve.errors import NotServing, QueryError
from privserve.files import write_file
from privserve.owner_calls import Verifier
from privserve.party.accounts import Accounts
from privserve.party.lanes import Listener
from privserve.party.poller import Poller
from privserve.party.query_lanes import QueryLanes
from privserve.party.roles import ComputeSession, LeaderSession, open_session
from privserve.party.session import Seat, Session, SessionSpec
from privserve.tls import REVOKED_FILE


class Party:
    """What the HTTP front may ask of a party. Thread-safe."""

    def __init__(self, config: ClusterConfig, name: str, timeouts: Timeouts) -> None:
        self.config = config
        self.me = config.parties[config.rank(name)]
        self.role = config.role(name)
        self.owner = Verifier(config.owner, config.cluster, name)
        self._listener = Listener(config, self.me)
        self.accounts = Accounts()
        self._session: Session | None = None
        self._lock = threading.Lock()
        poller = Poller()
        self.lanes = QueryLanes(self, poller)
        self.contexts: list[ssl.SSLContext] = [self.lanes.context]
        """Of the front, which show this party's certificate."""
        self._seat = Seat(config, self.me, self._listener, timeouts, self.accounts, poller)

    def meet(self, connection: socket.socket) -> None:
        """Take a connection that another party, or who says so, has made."""
        self._listener.welcome(connection)

    @property
    def session(self) -> Session | None:
        """The current session, if a model was ever shared."""
        return self._session

    def load(self, spec: SessionSpec) -> None:
        """Begin a session with `spec`, ending the one before; returns before it is ready."""
        with self._lock:
            if self._session is not None:
                self._session.end("the model owner shares another model")
            self._session = open_session(self._seat, spec)
            self._session.start()

    def unload(self) -> None:
        """End the session; shares and randomness are forgotten."""
        with self._lock:
            if self._session is not None:
                self._session.end("the model owner stopped the model")

    def leader(self) -> LeaderSession:
        """Return the leader's loaded session; raises QueryError at any other party."""
        session = self._session
        if session is None or session.state != "loaded":
            raise NotServing("no model is shared; the model owner has to call share()", 409)
        if not isinstance(session, LeaderSession):
            leader = self.config.compute[0]
            raise QueryError(f"{leader.name} at {leader.address} leads; ask it to serve", 409)
        return session

    def compute_session(self, model: str | None = None) -> ComputeSession:
        """Return the loaded session, to describe it or to query it; NotServing without one."""
        if self.role == "dealer":
            compute = " and ".join(f"{p.name} ({p.address})" for p in self.config.compute)
            raise QueryError(
                f"{self.me.name} is the dealer: it never sees a model or a query; "
                f"send the shares to {compute}",
                403,
            )
        session = self._session
        if session is None:
            raise NotServing("no model is shared; the model owner has to call share() first")
        if session.state == "loading":
            raise NotServing("the model is still being set up; try again in a moment")
        if session.state != "loaded":
            raise NotServing(f"{session.reason}; the model owner has to share the model again")
        if model is not None and model != session.spec.model:
            raise QueryError(f"there is no model '{model}'; '{session.spec.model}' is served", 404)
        assert isinstance(session, ComputeSession)
        return session

    def status(self) -> dict[str, Any]:
        """Return public facts about the party."""
        session = self._session
        facts = {
            "party": self.me.name,
            "role": self.role,
            "state": "idle",
            "memory_available": available_memory(),
            "clients": self.accounts.status(),
            "lanes": self.lanes.status(),
            "certificate_days_left": round(self.certificate_days_left(), 1),
        }
        return {**facts, **session.status()} if session is not None else facts

    def certificate_days_left(self) -> float:
        """Return for how many days this party's certificate is good."""
        return days_left(self.me.cert)

    def read_certificates(self) -> None:
        """Go by the certificate files as they are now, from the next connection on."""
        self._listener.read_certificates()
        for context in self.contexts:
            context.load_cert_chain(self.me.cert, self.me.key)

    def revoked(self) -> bytes:
        """Return the authority's list of revoked certificates, PEM; empty where there is none."""
        try:
            return (self.config.ca.parent / REVOKED_FILE).read_bytes()
        except FileNotFoundError:
            return b""

    def take_revoked(self, signed: str) -> None:
        """Keep the authority's list of revoked certificates, and end the session.

        Its channels may be with somebody who is on the list. Raises ConfigError for a list that
        the cluster's authority did not sign.
        """
        listed = check_revoked(signed.encode(), self.config.ca).pem
        write_file(self.config.ca.parent / REVOKED_FILE, listed)
        self.read_certificates()
        with self._lock:
            if self._session is not None:
                self._session.end("the model owner revoked a party's certificate")

    def close(self) -> None:
        """End the session, and talk to no other party any more."""
        with self._lock:
            if self._session is not None:
                self._session.end(f"{self.me.name} was shut down")
        self._listener.close()
        self.lanes.close()


def available_memory() -> int | None:
    """Return the bytes that this host could give a process without swapping; None: unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
