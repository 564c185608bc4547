"""What one party is to its front: its place in the cluster, and its models' sessions."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any

from privserve.authority import check_revoked, days_left, newest_revoked
from privserve.config import ClusterConfig, Timeouts
from privserve.credentials import ANONYMOUS, Entry
from privserve.errors import NotServing, QueryError, StaleSession, UnknownClient, several_models
from privserve.files import write_file
from privserve.owner_calls import Verifier
from privserve.party.accounts import Accounts
from privserve.party.computing import ComputeSession
from privserve.party.free_memory import available_memory
from privserve.party.keep import Keep
from privserve.party.lanes import Listener
from privserve.party.memory import promised_memory, used_memory
from privserve.party.messages import Hello
from privserve.party.models import Models
from privserve.party.poller import Poller
from privserve.party.query_lanes import QueryLanes
from privserve.party.reasons import REPLACED, draining, is_over, is_stopped
from privserve.party.roles import LeaderSession, open_session
from privserve.party.seat import Seat
from privserve.party.session import Session
from privserve.party.session_spec import SessionSpec
from privserve.party.statistics import Statistics
from privserve.party.wheel import Wheel
from privserve.tls import revoked_files

log = logging.getLogger("privserve")

LOOK_SECONDS = 0.02
"""Between two looks whether all queries are answered, before the party ends."""


class Party:
    """What the HTTP front may ask of a party. Thread-safe."""

    def __init__(
        self, config: ClusterConfig, name: str, timeouts: Timeouts, keep: Keep | None = None
    ) -> None:
        """keep: where its sessions and clients are kept, and were; it closes it."""
        self.config = config
        self.me = config.parties[config.rank(name)]
        self.role = config.role(name)
        self.owner = Verifier(config.owner, config.cluster, name)
        self._listener = Listener(config, self.me)
        self.accounts = Accounts()
        self.is_draining = False
        """Whether it was told to end, and answers what it has before."""
        self._closed = threading.Event()
        self.unplaced = Statistics()
        """Of queries that named no session which could take them: how they were refused."""
        poller = Poller()
        self._keep = keep
        seat = Seat(config, self.me, self._listener, timeouts, self.accounts, Wheel(poller), keep)
        self.models = Models(name, lambda spec, why: open_session(seat, spec, why), keep)
        self._listener.meets = self._meets
        self.lanes = QueryLanes(self, poller)
        self.contexts: list[ssl.SSLContext] = [self.lanes.context]
        """Of the front, which show this party's certificate."""
        if keep is not None:
            self._restore(keep)

    def _restore(self, keep: Keep) -> None:
        """Go on with what was kept when this party's process ended; raises ConfigError."""
        self.accounts.know(keep.clients())
        if keep.journal is not None:
            totals, now = keep.journal.totals, time.time()
            recent = [(max(0.0, now - at), key, rows) for at, key, rows in totals.recent]
            self.accounts.restore(totals.rows, recent)
        self.models.restore()

    def know(self, entries: Sequence[Entry]) -> None:
        """Let these clients in, and no others."""
        if self._keep is not None:
            self._keep.know(entries)
        self.accounts.know(entries)

    def meet(self, connection: socket.socket) -> None:
        """Take a connection that another party, or who says so, has made."""
        self._listener.welcome(connection)

    def _meets(self, hello: Hello) -> str | None:
        """See `Listener.meets`: the leader is come to, and asks the others what became of them."""
        session = self.models.find(hello.session)
        if session is None:
            what = "the model" if self.role == "dealer" else "its share of the model"
            return f"{self.me.name} was started again and has lost {what}"
        if not session.is_alive and not session.has_left:
            return session.reason
        return None if self.me.name == self.config.compute[0].name else ""

    def load(self, spec: SessionSpec) -> None:
        """Begin a session with `spec`; returns before it is ready. See `Models.load`."""
        if self.is_draining:
            raise draining(is_stopped(self.me.name))
        self.models.load(spec)

    def leader(self, session_id: str = "") -> LeaderSession:
        """Return the leader's session, of this id or the only loaded one.

        Raises QueryError at any other party, and where there is none, or several.
        """
        session = self.models.find(session_id) if session_id else self._only_loaded()
        if session is None or (session.state != "loaded" and not session_id):
            raise NotServing("no model is shared; the model owner has to call share()", 409)
        if session.state not in ("loaded", "waiting"):
            raise NotServing(f"the model is not shared: {session.reason or session.state}", 409)
        if not isinstance(session, LeaderSession):
            leader = self.config.compute[0]
            raise QueryError(f"{leader.name} at {leader.address} leads; ask it to serve", 409)
        return session

    def owner_heard(self, session_id: str) -> None:
        """Note that the owner of a session looks after it."""
        session = self.models.find(session_id) if session_id else None
        if isinstance(session, LeaderSession):
            session.queue.owner_heard()

    def _only_loaded(self) -> Session | None:
        loaded = self.models.loaded()
        if len(loaded) > 1:
            raise QueryError(f"the call has to name a session: {_several(loaded)} are shared", 409)
        return loaded[0] if loaded else None

    def compute_session(self, model: str | None = None) -> ComputeSession:
        """Return the loaded session of a model, to describe it or to query it.

        model: its name; None: any. Raises NotServing where none is loaded, and QueryError for a
        name that is not there.
        """
        self._refuse_at_dealer()
        loaded = self.models.loaded()
        session = self.models.current(model) if model is not None else None
        if session is None and loaded:
            if model is not None:
                raise QueryError(f"there is no model '{model}'; {_several(loaded)} served", 404)
            session = loaded[0]
        found = _usable(session or self.models.only())
        if found.stopping:
            raise draining(found.stopping)
        return found

    def _refuse_at_dealer(self) -> None:
        if self.role == "dealer":
            compute = " and ".join(f"{p.name} ({p.address})" for p in self.config.compute)
            raise QueryError(
                f"{self.me.name} is the dealer: it never sees a model or a query; "
                f"send the shares to {compute}",
                403,
            )

    def chosen(self, model: str | None, authorization: str) -> ComputeSession:
        """Return the session of a model for this client, who need not name the only one it has.

        Raises as `compute_session` does, and QueryError where the client has to choose.
        """
        if model is None:
            loaded = self.models.loaded()
            mine = self.may_ask(authorization)
            if len(loaded) > 1 and len(mine) == 1:
                return mine[0]
            if len(loaded) > 1:
                raise QueryError(several_models([s.spec.model for s in mine or loaded]), 409)
        return self.compute_session(model)

    def may_ask(self, authorization: str) -> list[ComputeSession]:
        """Return the loaded models that a client may ask, by what it shows."""
        return self._admitting(self.models.loaded(), authorization)

    def largest_query(self, authorization: str) -> int:
        """Return the bytes of the largest query that this client may have to have read.

        Also of models that wait for a party, since it may know them: it is told so.
        """
        alive = [listed.session for listed in self.models.listed() if listed.session.is_alive]
        sizes = (s.query_format.largest for s in self._admitting(alive, authorization))
        return max(sizes, default=0)

    @staticmethod
    def _admitting(sessions: Sequence[Session], authorization: str) -> list[ComputeSession]:
        found = []
        for session in sessions:
            if isinstance(session, ComputeSession):
                try:
                    session.accounts.admit(authorization)
                except QueryError:
                    continue
                found.append(session)
        return found

    def served(self) -> list[str] | None:
        """Return the names of the models that are being served; None where that is not known."""
        if self.me.name != self.config.compute[0].name:
            return None  # the leader decides
        found = [s for s in self.models.loaded() if isinstance(s, LeaderSession) and not s.stopping]
        return [s.spec.model for s in found if s.queue.serving]

    def admit(self, authorization: str) -> None:
        """Raise UnknownClient for who may ask none of the models that are loaded, if any is."""
        loaded = [s for s in self.models.loaded() if isinstance(s, ComputeSession)]
        refused: UnknownClient | None = None
        for session in loaded:
            try:
                session.accounts.admit(authorization)
            except UnknownClient as error:
                refused = error
            except QueryError:
                return  # it is known, and is told at its query what it may not ask
            else:
                return
        if refused is not None:
            raise refused

    def queried(self, session_id: str) -> ComputeSession:
        """Return the session that a query names; raises StaleSession where that is over.

        One that drains is returned too: its leader decides what becomes of the query.
        """
        self._refuse_at_dealer()
        session = self.models.find(session_id)
        if session is not None and session.is_alive and self.models.is_asked(session):
            return _usable(session)
        # Where there are models the client is to find the one that it may ask, or why it may not.
        if not self.models.loaded():
            self.compute_session(None if session is None else session.spec.model)
        raise StaleSession(REPLACED)

    def status(self, session_id: str = "") -> dict[str, Any]:
        """Return public facts about the party, its models, and one of them in full.

        That is the session of this id; or the only one, where none is named.
        """
        listed = self.models.listed()
        one = self.models.find(session_id) if session_id else self.models.only()
        clients = self.accounts.status()
        facts = {
            "party": self.me.name,
            "role": self.role,
            "state": "loaded" if self.models.loaded() else "idle",
            "memory_used": used_memory(),
            "memory_available": available_memory(),
            "memory_promised": promised_memory(session for _, session in listed),
            "clients": clients,
            "lanes": self.lanes.status(),
            "certificate_days_left": round(self.certificate_days_left(), 1),
            "models": [{**session.facts(), "place": place} for place, session in listed],
        }
        if one is None:
            return facts
        told = one.status()
        if told.get("anonymous") is not None:
            clients[ANONYMOUS] = told["anonymous"]
        return {**facts, **told, "place": self.models.place(one)}

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
        return newest_revoked(self.config.ca, self.config.state)

    def take_revoked(self, signed: str) -> None:
        """Keep the authority's list of revoked certificates, and end all sessions.

        Their channels may be with somebody who is on the list. Raises ConfigError for a list that
        the cluster's authority did not sign, QueryError where it cannot be kept: it would be
        forgotten when this process ends.
        """
        listed = check_revoked(signed.encode(), self.config.ca).pem
        kept = revoked_files(self.config.ca, self.config.state)[-1]
        try:
            write_file(kept, listed)
        except OSError as error:
            raise QueryError(
                f"{self.me.name} cannot keep the list of revoked certificates in {kept.parent} "
                f"({error.strerror}); start it with --state-dir and a directory that it may write"
            ) from None
        self.read_certificates()
        self.models.end_all("the model owner revoked a party's certificate")

    def drain(self, seconds: float) -> None:
        """Have all parties take no more queries; returns once those that they have are answered.

        After `seconds` at most, and at once where `close` is called meanwhile.
        """
        self.is_draining = True
        deadline = time.monotonic() + seconds
        sessions = [session for _, session in self.models.listed()]
        for session in sessions:
            session.leave_soon()
        while not all(session.may_leave for session in sessions):
            if time.monotonic() > deadline:
                log.warning("%s: some queries are not answered after %g s", self.me.name, seconds)
                return
            if self._closed.wait(LOOK_SECONDS):
                return
        self.lanes.part(draining(is_stopped(self.me.name)), deadline)

    def close(self) -> None:
        """End all sessions, and talk to no other party any more."""
        self._closed.set()
        name = self.me.name
        self.models.leave_all(is_stopped(name) if self.is_draining else f"{name} was shut down")
        self._listener.close()
        self.lanes.close()
        if self._keep is not None:
            self._keep.close()


def _usable(session: Session | None) -> ComputeSession:
    """The session, if it is loaded; raises NotServing."""
    if session is None:
        raise NotServing("no model is shared; the model owner has to call share() first")
    if session.state == "loading":
        raise NotServing("the model is still being set up; try again in a moment")
    if session.state != "loaded":
        raise is_over(session.state, session.reason)
    assert isinstance(session, ComputeSession)
    return session


def _names(sessions: list[Session]) -> str:
    return ", ".join(f"'{session.spec.model}'" for session in sessions)


def _several(sessions: list[Session]) -> str:
    return f"{_names(sessions)} {'is' if len(sessions) == 1 else 'are'}"
