"""The models of one party: which sessions there are, and which of them has a model's name.

Of the sessions of one name one is *current*: clients are told of it. Another one may be *coming*:
it is set up while the current one goes on serving, until the owner switches. The one before is
*draining* then: it answers what it has, and is unloaded. A current session that is over stays
listed with its reason until its name is given to another one; of those the last MAX_MODELS do.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from privserve.engines import ALONE, is_alone
from privserve.errors import NotServing, QueryError, StaleSession
from privserve.party.keep import Keep
from privserve.party.session import Session
from privserve.party.session_spec import SessionSpec
from privserve.shared_models import STOPPED

MAX_MODELS = 16
"""Sessions that a party has at a time; each has its threads, lanes and memory."""
MAX_PAST = 16
"""Sessions that are over and not listed any more, whose owners may still ask how they ended."""
SUPERSEDED = "the model owner shares another model under this name"


class Place(StrEnum):
    """What a session is to its model's name."""

    CURRENT = "current"
    COMING = "coming"
    DRAINING = "draining"


class Listed(NamedTuple):
    """A session and its place."""

    place: Place
    session: Session


class Models:
    """The sessions of a party. Thread-safe; whoever only looks waits for nobody."""

    def __init__(
        self, party: str, begin: Callable[[SessionSpec, str], Session], keep: Keep | None = None
    ) -> None:
        """begin: makes a session of this party, not started yet; of one that was kept it is told
        why it is begun again. keep: where sessions are kept."""
        self._party, self._keep = party, keep
        self._begin = begin
        self._changing = threading.Lock()
        """Held for as long as sessions take to end: for those only who change something."""
        self._current: dict[str, Session] = {}
        self._coming: dict[str, Session] = {}
        self._draining: list[Session] = []
        self._past: OrderedDict[str, Session] = OrderedDict()
        self._by_id: dict[str, Session] = {}

    # -- looking --------------------------------------------------------------------------

    def listed(self) -> list[Listed]:
        """Return all sessions, of the current ones the last shared last."""
        return [
            *(Listed(Place.CURRENT, session) for session in list(self._current.values())),
            *(Listed(Place.COMING, session) for session in list(self._coming.values())),
            *(Listed(Place.DRAINING, session) for session in list(self._draining)),
        ]

    def find(self, session_id: str) -> Session | None:
        """Return the session of this id, also one that is over."""
        return self._by_id.get(session_id) or self._past.get(session_id)

    def known(self) -> list[Session]:
        """Return all sessions that are remembered, also those that are listed no more."""
        found = {s.spec.id: s for s in list(self._by_id.values())}
        # Whoever leaves those is here before.
        return list({**found, **{s.spec.id: s for s in list(self._past.values())}}.values())

    def current(self, model: str) -> Session | None:
        """Return the session that has this name."""
        return self._current.get(model)

    def loaded(self) -> list[Session]:
        """Return the current sessions that are set up."""
        return [s for s in list(self._current.values()) if s.state == "loaded"]

    def only(self) -> Session | None:
        """Return the one model's session that can be meant where none is named.

        Where all are over that is the last one; None where there is none, or several.
        """
        current = list(self._current.values())
        alive = [session for session in current if session.is_alive]
        if not alive:
            return current[-1] if current else next(iter(list(self._coming.values())), None)
        return alive[0] if len(alive) == 1 else None

    def is_asked(self, session: Session) -> bool:
        """Whether clients may know a session, so that their queries may name it."""
        return self._current.get(session.spec.model) is session or session in self._draining

    def place(self, session: Session) -> Place | None:
        """Return what the session is to its name; None: nothing any more."""
        return next((place for place, other in self.listed() if other is session), None)

    # -- changing -------------------------------------------------------------------------

    def load(self, spec: SessionSpec) -> None:
        """Begin a session, beside the one that has its model's name if that is alive.

        Raises QueryError where the party has no room for it.
        """
        with self._changing:
            self._forget()
            superseded = self._coming.get(spec.model)
            self._check_room(spec, superseded)
            if superseded is not None:
                del self._coming[spec.model]
                self._retire(superseded, SUPERSEDED)
            if self._keep is not None:
                self._keep.save(spec)
            session = self._begin(spec, "")
            before = self._current.get(spec.model)
            if before is not None and before.is_alive:
                self._coming[spec.model] = session
            else:
                if before is not None:
                    self._retire(before, SUPERSEDED)
                self._name(session)
            self._by_id[spec.id] = session
            session.start()

    def restore(self) -> None:
        """Begin the sessions again that were kept when this party's process ended."""
        if self._keep is None:
            return
        with self._changing:
            for spec, is_current in self._keep.sessions():
                session = self._begin(spec, f"{self._party} was started again")
                if is_current:
                    self._current = {**self._current, spec.model: session}
                else:
                    self._coming[spec.model] = session
                self._by_id[spec.id] = session
                session.start()

    def _check_room(self, spec: SessionSpec, superseded: Session | None) -> None:
        if self.find(spec.id) is not None:
            raise QueryError("this session was here before; share the model anew", 409)
        alive = [s for _, s in self.listed() if s.is_alive and s is not superseded]
        if len(alive) >= MAX_MODELS:
            raise QueryError(
                f"{self._party} holds {len(alive)} models, and no more; stop one first: "
                "python -m privserve.models stop NAME",
                409,
            )
        if spec.engine in ALONE:
            for other in alive:
                if other.spec.engine == spec.engine:
                    raise QueryError(is_alone(spec.engine, other.spec.model), 409)
            for _, session in self.listed():  # one that is over may be about to leave still
                if session.spec.engine == spec.engine and session is not superseded:
                    session.end(SUPERSEDED)

    def switch(self, session_id: str) -> None:
        """Give a session that is set up its model's name; the one that has it drains.

        Nothing happens where it has that already. Raises QueryError where it is not set up.
        """
        with self._changing:
            session = self._by_id.get(session_id)
            if session is None:
                raise StaleSession("this session is over; share the model anew")
            model = session.spec.model
            before = self._current.get(model)
            if before is session:
                return
            if self._coming.get(model) is not session:
                raise QueryError(f"another session has taken the name '{model}' since", 409)
            if session.state != "loaded":
                raise NotServing(f"the model is not set up: {session.reason or session.state}", 409)
            self._name(session)  # at once for whoever looks
            del self._coming[model]
            if before is None:
                return
            if before.is_alive:
                self._draining.append(before)
                before.drain()
                if self._keep is not None:
                    self._keep.drop(before.spec.id)
            else:
                self._retire(before, SUPERSEDED)

    def unload(self, model: str, session_id: str = "") -> None:
        """End the sessions of a name, or this one of them. Raises QueryError for one not there."""
        with self._changing:
            self._forget()
            named = [s for _, s in self.listed() if s.spec.model == model]
            if session_id:
                named = [session for session in named if session.spec.id == session_id]
            elif not named:
                there = ", ".join(f"'{name}'" for name in self._current) or "none"
                raise QueryError(f"there is no model '{model}' here; there are: {there}", 404)
            for session in named:
                self._unload(session)

    def _unload(self, session: Session) -> None:
        model = session.spec.model
        if self._current.get(model) is session:
            session.end(STOPPED)  # if another party's end was not faster
            return
        if self._coming.get(model) is session:
            del self._coming[model]
        if session in self._draining:
            self._draining.remove(session)
        self._retire(session, SUPERSEDED if session.is_replaced else STOPPED)

    def end_all(self, reason: str) -> None:
        """End every session."""
        with self._changing:
            for _, session in self.listed():
                session.end(reason)

    def leave_all(self, reason: str) -> None:
        """End every session here only; the other parties wait for this one to come back."""
        with self._changing:
            for _, session in self.listed():
                session.leave(reason)

    def _name(self, session: Session) -> None:
        """Make a session the current one of its name, and the last in the list."""
        before = self._current
        current = {name: other for name, other in before.items() if name != session.spec.model}
        self._current = {**current, session.spec.model: session}
        if self._keep is not None:
            self._keep.name(session.spec.model, session.spec.id)

    def _retire(self, session: Session, reason: str) -> None:
        """End a session and list it no more."""
        session.end(reason)
        self._past[session.spec.id] = session
        self._by_id.pop(session.spec.id, None)
        while len(self._past) > MAX_PAST:
            self._past.popitem(last=False)

    def _forget(self) -> None:
        """List no more what drains and is over, nor too many names whose session is over."""
        for session in [s for s in self._draining if not s.is_alive]:
            self._draining.remove(session)
            self._retire(session, SUPERSEDED)
        over = [s for s in self._current.values() if not s.is_alive]
        for session in over[: max(0, len(over) - MAX_MODELS)]:
            del self._current[session.spec.model]
            self._retire(session, SUPERSEDED)
