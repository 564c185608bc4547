"""The life of a session: the time for which a model is shared among parties that are all alive.

A session opens its lanes to every other party, does its role's work (see `roles`) and lasts until
its owner ends it or a party is lost. Whatever ends it, its channels, shares, seeds and packs are
thrown away with it; the next session begins with fresh ones.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from privserve.config import ClusterConfig, PartyConfig, Timeouts
from privserve.credentials import Limits
from privserve.description import Description
from privserve.engines import load_engine
from privserve.errors import (
    BadFrame,
    ClusterError,
    NotServing,
    PeerLost,
    PrivserveError,
    QueryError,
    StaleSession,
)
from privserve.fixedpoint import RingArray
from privserve.party.accounts import Accounts
from privserve.party.agreement import compare, facts
from privserve.party.channel import Channel
from privserve.party.lanes import LaneMesh, Listener
from privserve.party.messages import Over, framed, hear, read_facts, read_sign
from privserve.party.wheel import Wheel

log = logging.getLogger("privserve")

ORDERS = "orders"  # leader to followers: what runs, what is refused
ARRIVALS = "arrivals"  # followers to leader: which queries have come in
WATCH = "watch"  # everyone to everyone: signs of life, and why a session ends

HEARTBEAT_SECONDS = 2.0
CAUSE_SECONDS = 5.0
"""At most this long a broken channel waits for the watcher to say why: an instant, but for load."""
REPLACED = "the model was shared anew since this query was encoded; read its description again"
MAX_REASON = 2000
"""Characters: it goes into logs and answers, and a peer may have written it."""


@dataclass(frozen=True)
class SessionSpec:
    """What the model owner hands to one party."""

    id: str
    model: str
    engine: str
    description: Description
    shares: Mapping[str, RingArray] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    everybody: Limits | None = None
    """What those may ask, together, who are no clients; None: nothing."""


@dataclass(frozen=True)
class Seat:
    """A party's place in its cluster: what all its sessions have in common."""

    config: ClusterConfig
    me: PartyConfig
    listener: Listener
    timeouts: Timeouts
    accounts: Accounts | None = None
    wheel: Wheel | None = None
    """Of what reads the party's query lanes; None: each session has a poller of its own."""

    @property
    def rank(self) -> int:
        """0..n-1 for compute parties, n for the dealer."""
        return self.config.rank(self.me.name)


class Session(ABC):
    """One party's side of a session. Subclasses know the party's role."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        self.spec = spec
        self.state = "loading"
        self.reason = ""
        self.ready = threading.Event()
        self._log = logging.LoggerAdapter(log, {"session": spec.id, "model": spec.model})
        self._config = seat.config
        self._me = seat.me
        self._listener = seat.listener
        self._timeouts = seat.timeouts
        self._n = len(seat.config.compute)
        self._lanes: dict[str, LaneMesh] = {}
        self.memory: int | None = None
        """About how many bytes the model takes here, the engine included; None: not known yet."""
        self.engine_memory = 0
        """Of these, what the engine takes once for all its sessions."""
        self.is_replaced = False
        """Whether another session has its model's name."""
        self._ended = threading.Event()
        self._end_lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()
        self._threads = [threading.Thread(target=self._main, name="session", daemon=True)]

    def start(self) -> None:
        """Begin in the background; `state` becomes "loaded" or "failed"."""
        self._threads[0].start()

    def end(self, reason: str) -> None:
        """End the session for all parties, and wait until it has."""
        self._finish("ended", reason)
        for thread in list(self._threads):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(10)

    @property
    def lanes(self) -> Mapping[str, LaneMesh]:
        """Its channels to the others, by lane; their counts stay when it is over."""
        return self._lanes

    def status(self) -> dict[str, Any]:
        """Return all that its owner is told of the session, JSON-able."""
        return self.facts()

    def facts(self) -> dict[str, Any]:
        """Return public facts about the session, JSON-able and short."""
        return {
            "session": self.spec.id,
            "model": self.spec.model,
            "engine": self.spec.engine,
            "state": self.state,
            "reason": self.reason,
            "memory": self.memory,
            "replaced": self.is_replaced,
        }

    @property
    def is_alive(self) -> bool:
        """Whether it is set up, or being set up."""
        return self.state in ("loading", "loaded")

    def drain(self) -> None:
        """Let another session have the model's name: what was taken is answered, no more is."""
        self.is_replaced = True

    # -- life ---------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            engine = load_engine(self.spec.engine)
            lanes = [WATCH, ORDERS, ARRIVALS, *engine.LANES]
            limits = engine.frame_limits(self.spec.description, **self.spec.options)
            each, dealer = engine.memory(self.spec.description, self._n, **self.spec.options)
            self.engine_memory = engine.PROCESS_BYTES
            self.memory = dealer if self._config.role(self._me.name) == "dealer" else each
            self._lanes = self._listener.open_lanes(
                self.spec.id, lanes, self._timeouts.connect, self._ended, limits, WATCH
            )
            for lane in self._lanes.values():
                lane.set_patience(self._timeouts.peer)
            if self._ended.is_set():
                raise PeerLost(self.reason)
            self._agree()
            self._spawn(self._watch, "watch")
            self._serve()
            self._ended.wait(CAUSE_SECONDS)  # the dealer's work ends when party 0 leaves
            self._finish("failed", f"{self._config.parties[0].name} left without saying why")
        except Exception as error:
            self._fail(error)
        finally:
            self._release()

    def _fail(self, error: Exception) -> None:
        """Finish the session because of what one of its threads met."""
        if isinstance(error, PeerLost) and not isinstance(error, BadFrame):
            # The watcher knows who left first and why; this thread only saw a broken pipe.
            self._ended.wait(CAUSE_SECONDS if self._is_watched else 0)
        if isinstance(error, PrivserveError):
            self._finish("failed", str(error))
        elif isinstance(error, MemoryError):
            self._finish(
                "failed",
                f"{self._me.name} ran out of memory; ask fewer rows at a time, or give it more",
            )
        else:
            # Frames only: an exception's message may quote the values of arrays.
            frames = "".join(traceback.format_tb(error.__traceback__))
            name = type(error).__name__
            self._log.error("%s: %s in the session\n%s", self._me.name, name, frames)
            self._finish(
                "failed", f"{self._me.name} hit an internal error ({type(error).__name__})"
            )

    def _agree(self) -> None:
        """Compare with every other party what is about to run; see `agreement`."""
        spec, channels = self.spec, self._lanes[WATCH].channels
        mine = facts(spec.engine, spec.description, spec.options)
        for channel in channels.values():
            channel.set_timeout(self._timeouts.peer)
        if (lost := self._tell(channels, mine)) is not None:
            raise PeerLost(lost)
        try:
            heard = self._hear_facts(channels)
            for peer, theirs in heard.items():
                compare(self._me.name, mine, peer, theirs)
        except PrivserveError as error:
            self._tell(channels, {"over": str(error), "state": "failed"})
            raise

    def _hear_facts(self, channels: Mapping[int, Channel]) -> dict[str, Mapping[str, str | int]]:
        """What every other party is about to run, by its name.

        All are heard before anybody is judged: whoever leaves with something unread would make
        the others lose what it said.
        """
        heard: dict[str, Mapping[str, str | int]] = {}
        wrong: PrivserveError | None = None
        for channel in channels.values():
            try:
                found = hear(channel, read_facts, within=self._timeouts.peer)
            except PeerLost as error:
                wrong = wrong or error
                continue
            if isinstance(found, Over):
                wrong = wrong or ClusterError(found.reason)
            else:
                heard[channel.peer] = found
        if wrong is not None:
            raise wrong
        return heard

    @property
    def _is_watched(self) -> bool:
        return any(thread.name == "watch" for thread in self._threads)

    @abstractmethod
    def _serve(self) -> None:
        """Set up and do the role's work until the session is over."""

    @abstractmethod
    def _rouse(self) -> None:
        """Have the session's thread look, where it waits for calls of other threads."""

    @abstractmethod
    def _refuse_all(self, error: QueryError) -> None:
        """Answer everything that waits with `error`."""

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        """Run `target` in a thread of its own; what it raises ends the session."""

        def run() -> None:
            try:
                target()
            except Exception as error:
                self._fail(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _loaded(self) -> None:
        with self._end_lock:
            if self._ended.is_set():  # another party failed while this one was setting up
                raise PeerLost(self.reason)
            self.state = "loaded"
        self.ready.set()
        model, engine = self.spec.model, self.spec.engine
        self._log.info("%s: model '%s' is loaded (%s)", self._me.name, model, engine)

    def _finish(self, state: str, reason: str) -> None:
        """Record why the session is over and break every channel; the first reason counts."""
        reason = printable(reason)
        with self._end_lock:
            if self._ended.is_set():
                return
            self.state, self.reason = state, reason
            self._ended.set()
        self._log.info("%s: session over: %s", self._me.name, reason)
        self.ready.set()
        self._rouse()
        with contextlib.suppress(OSError):
            self._woken.send(b"x")
        self._say_goodbye()
        for lane in self._lanes.values():
            lane.close()
        self._refuse_all(self._over())

    def _say_goodbye(self) -> None:
        """Let the watcher tell the others why, before the channels break."""
        watcher = next((t for t in self._threads if t.name == "watch"), None)
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join(2)

    def _over(self) -> QueryError:
        if self.is_replaced:  # its clients are to find the other one by themselves
            return StaleSession(REPLACED)
        return NotServing(f"{self.reason}; the model owner has to share the model again")

    def _release(self) -> None:
        """Free the sockets, once no thread uses them any more."""
        self._say_goodbye()
        for lane in self._lanes.values():
            lane.close()
        for thread in self._threads[1:]:
            thread.join(5)
        for lane in self._lanes.values():
            lane.release()
        self.spec = replace(self.spec, shares={})  # where set-up failed they are here still
        self._wake.close()
        self._woken.close()

    # -- signs of life --------------------------------------------------------------------

    def _watch(self) -> None:
        """Notice who leaves and who hangs; tell the others why before leaving."""
        channels = self._lanes[WATCH].channels
        heard = dict.fromkeys(channels, time.monotonic())
        for channel in channels.values():
            channel.set_timeout(self._timeouts.peer)
        next_beat = 0.0
        lost: str | None = None
        state = "failed"
        while lost is None and not self._ended.is_set():
            now = time.monotonic()
            if now >= next_beat:
                lost = self._tell(channels, {"alive": True})
                next_beat = now + min(HEARTBEAT_SECONDS, self._timeouts.peer / 4)
                if lost is not None:  # who left may have said why before
                    lost, state = self._last_words(channels) or (lost, state)
            if lost is None:
                lost, state = self._hear(channels, heard, next_beat - now)
            silent = [channels[p].peer for p, at in heard.items() if now - at > self._timeouts.peer]
            if lost is None and silent:
                lost = f"{silent[0]} gave no sign of life for {self._timeouts.peer:g} s"
        # Before the channels break: the others shall learn the cause, not the consequence.
        if lost is None:
            self._tell(channels, {"over": self.reason, "state": self.state})
        else:
            self._tell(channels, {"over": lost, "state": state})
            self._finish(state, lost)

    def _tell(self, channels: dict[int, Channel], message: dict[str, Any]) -> str | None:
        """Send `message` to all; who turned out to be gone, if anybody."""
        lost = None
        for channel in channels.values():
            try:
                channel.send(framed(message))
            except PeerLost:
                lost = gone(channel.peer)
        return lost

    def _last_words(self, channels: dict[int, Channel]) -> tuple[str, str] | None:
        """Why the session is over and its state, if any party said so; reads what has come."""
        for channel in channels.values():
            with contextlib.suppress(PeerLost):
                while select.select([channel.fileno()], [], [], 0)[0]:
                    if (over := self._sign(channel)) is not None:
                        return over.reason, over.state
        return None

    def _sign(self, channel: Channel) -> Over | None:
        """Read one sign of life, or the news that the session is over.

        No peer may keep the watcher from the others, who would give this party up.
        """
        return hear(channel, read_sign, within=self._timeouts.peer / 3)

    def _hear(
        self, channels: dict[int, Channel], heard: dict[int, float], timeout: float
    ) -> tuple[str | None, str]:
        """Read what came within `timeout`; (why the session is over or None, its state)."""
        by_descriptor = {channel.fileno(): peer for peer, channel in channels.items()}
        watched = [*by_descriptor, self._wake.fileno()]
        readable, _, _ = select.select(watched, [], [], max(timeout, 0))
        for descriptor in readable:
            peer = by_descriptor.get(descriptor)
            if peer is None:
                continue
            try:
                over = self._sign(channels[peer])
            except BadFrame as error:
                return str(error), "failed"
            except PeerLost:
                return gone(channels[peer].peer), "failed"
            heard[peer] = time.monotonic()
            if over is not None:
                return over.reason, over.state
        return None, "failed"


def printable(text: str) -> str:
    """Return the text on one line, of a bounded length: a peer may have written it."""
    kept = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(kept)[:MAX_REASON]


def gone(party: str) -> str:
    """Say that a party left without a word."""
    return f"{party} is gone (its process ended or its host cannot be reached)"
