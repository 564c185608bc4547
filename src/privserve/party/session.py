"""One session: the time for which a model is shared among parties that are all alive.

A session opens its lanes to every other party, sets the engine up and runs until its owner
ends it or a party is lost. Whatever ends it, its channels, shares, seeds and packs are
thrown away with it; the next session begins with fresh ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from privserve.config import ClusterConfig, PartyConfig, Timeouts
from privserve.description import Description
from privserve.engines import Compute, load_engine
from privserve.errors import NotServing, PeerLost, PrivserveError, QueryError, TooManyRows
from privserve.fixedpoint import RingArray
from privserve.party.channel import Channel
from privserve.party.cores import stay_on_own_core
from privserve.party.lanes import LaneMesh, Listener
from privserve.party.queries import LeaderQueue, Pending, PendingQueries, Refusal

log = logging.getLogger("privserve")

ORDERS = "orders"  # leader to followers: what runs, what is refused
ARRIVALS = "arrivals"  # followers to leader: which queries have come in
WATCH = "watch"  # everyone to everyone: signs of life, and why a session ends

HEARTBEAT_SECONDS = 2.0
RECENT_RUNS = 1000


@dataclass(frozen=True)
class SessionSpec:
    """What the model owner hands to one party."""

    id: str
    model: str
    engine: str
    description: Description
    shares: Mapping[str, RingArray] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seat:
    """A party's place in its cluster: what all its sessions have in common."""

    config: ClusterConfig
    me: PartyConfig
    listener: Listener
    timeouts: Timeouts

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
        self._config = seat.config
        self._me = seat.me
        self._listener = seat.listener
        self._timeouts = seat.timeouts
        self._n = len(seat.config.compute)
        self._lanes: dict[str, LaneMesh] = {}
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

    def status(self) -> dict[str, Any]:
        """Public facts about the session, JSON-able."""
        return {
            "session": self.spec.id,
            "model": self.spec.model,
            "engine": self.spec.engine,
            "state": self.state,
            "reason": self.reason,
        }

    # -- life ---------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            engine = load_engine(self.spec.engine)
            lanes = [WATCH, ORDERS, ARRIVALS, *engine.LANES]
            limits = engine.frame_limits(self.spec.description, **self.spec.options)
            self._lanes = self._listener.open_lanes(
                self.spec.id, lanes, self._timeouts.connect, self._ended, limits
            )
            if self._ended.is_set():
                raise PeerLost(self.reason)
            self._spawn(self._watch, "watch")
            self._serve()
        except PeerLost as error:
            # The watcher knows who left first and why; this thread only saw a broken pipe.
            self._ended.wait(0.5)
            self._finish("failed", str(error))
        except PrivserveError as error:
            self._finish("failed", str(error))
        except MemoryError:
            self._finish(
                "failed",
                f"{self._me.name} ran out of memory; ask fewer rows at a time, or give it more",
            )
        except Exception as error:
            # Frames only: an exception's message may quote the values of arrays.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s: %s in the session\n%s", self._me.name, type(error).__name__, frames)
            self._finish(
                "failed", f"{self._me.name} hit an internal error ({type(error).__name__})"
            )
        finally:
            self._release()

    @abstractmethod
    def _serve(self) -> None:
        """Set up and do the role's work until the session is over."""

    @abstractmethod
    def _refuse_all(self, error: QueryError) -> None:
        """Answer everything that waits with `error`."""

    def _spawn(self, target: Any, name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _loaded(self) -> None:
        with self._end_lock:
            if self._ended.is_set():  # another party failed while this one was setting up
                raise PeerLost(self.reason)
            self.state = "loaded"
        self.ready.set()
        log.info("%s: model '%s' is loaded (%s)", self._me.name, self.spec.model, self.spec.engine)

    def _finish(self, state: str, reason: str) -> None:
        """Record why the session is over and break every channel; the first reason counts."""
        with self._end_lock:
            if self._ended.is_set():
                return
            self.state, self.reason = state, reason
            self._ended.set()
        log.info("%s: session over: %s", self._me.name, reason)
        self.ready.set()
        # The watcher says goodbye to the others before the channels break.
        with contextlib.suppress(OSError):
            self._woken.send(b"x")
        watcher = next((t for t in self._threads if t.name == "watch"), None)
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join(2)
        for lane in self._lanes.values():
            lane.close()
        self._refuse_all(self._over())

    def _over(self) -> QueryError:
        return NotServing(f"{self.reason}; the model owner has to share the model again")

    def _release(self) -> None:
        """Free the sockets, once no thread uses them any more."""
        for lane in self._lanes.values():
            lane.close()
        for thread in self._threads[1:]:
            thread.join(5)
        for lane in self._lanes.values():
            lane.release()
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
                next_beat = now + HEARTBEAT_SECONDS
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
                channel.send(json.dumps(message).encode())
            except PeerLost:
                lost = _gone(channel.peer)
        return lost

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
                message = json.loads(bytes(channels[peer].recv()))
            except PeerLost:
                return _gone(channels[peer].peer), "failed"
            heard[peer] = time.monotonic()
            if "over" in message:
                return str(message["over"]), str(message["state"])
        return None, "failed"


def _gone(party: str) -> str:
    return f"{party} is gone (its process ended or its host cannot be reached)"


class DealerSession(Session):
    """The dealer's side: hand out randomness until the others leave."""

    def _serve(self) -> None:
        engine = load_engine(self.spec.engine)
        lanes = {lane: self._lanes[lane] for lane in engine.LANES}
        self._loaded()
        engine.deal(self.spec.description, lanes, **self.spec.options)

    def _refuse_all(self, error: QueryError) -> None:
        """Nothing ever waits at the dealer."""


class ComputeSession(Session):
    """What leader and followers have in common: the engine and its counters."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        self._compute: Compute | None = None
        self._runs: deque[tuple[int, float]] = deque(maxlen=RECENT_RUNS)
        self._queries = 0
        self._rows = 0
        self._counting = threading.Lock()
        """Of the three above, which the session's thread writes and `status` reads."""

    @abstractmethod
    def submit(self, query: Pending) -> None:
        """Take this party's share of a query; its future gets the answer's shares."""

    def _set_up(self) -> None:
        engine = load_engine(self.spec.engine)
        lanes = {lane: self._lanes[lane] for lane in engine.LANES}
        self._compute = engine.Compute(
            self.spec.description, self.spec.shares, lanes, **self.spec.options
        )
        # After the engine has begun its own threads, which would inherit it.
        stay_on_own_core(self._config, self._config.rank(self._me.name))
        # The engine has arranged its own copies; a large network's shares need not stay.
        self.spec = replace(self.spec, shares={})
        self._before = self._counters()
        self._loaded()

    def _counters(self) -> tuple[int, int, int]:
        """(frames and bytes sent to compute parties, bytes received from the dealer)."""
        frames = sent = dealt = 0
        for lane in load_engine(self.spec.engine).LANES:
            for peer, channel in self._lanes[lane].channels.items():
                if peer == self._n:
                    dealt += channel.bytes_received
                else:
                    frames += channel.frames_sent
                    sent += channel.bytes_sent
        return frames, sent, dealt

    def _run(self, batch: list[Pending]) -> bool:
        """Evaluate a batch and answer its queries; whether they were, at all parties alike."""
        assert self._compute is not None
        arrays = list(zip(*(query.inputs for query in batch), strict=True))
        inputs = [a[0] if len(a) == 1 else np.concatenate(a) for a in arrays]
        started = time.perf_counter()
        try:
            outputs = self._compute.run(inputs)
        except TooManyRows as error:
            for query in batch:
                query.future.set_exception(error)
            return False
        except BaseException as error:
            # The batch left the queue, so only this thread can tell its clients; the reason
            # that they get is the one that the watcher finds.
            self._ended.wait(0.5 if isinstance(error, PeerLost) else 0)
            for query in batch:
                why = self.reason or f"{self._me.name} lost the session during this query"
                query.future.set_exception(NotServing(f"{why}; the query was not answered"))
            raise
        with self._counting:
            self._runs.append((len(inputs[0]), time.perf_counter() - started))
            self._queries += len(batch)
            self._rows += len(inputs[0])
        start = 0
        for query in batch:
            stop = start + query.rows
            query.future.set_result([output[start:stop] for output in outputs])
            start = stop
        return True

    def status(self) -> dict[str, Any]:
        """The session's state, with what its queries cost so far."""
        facts = super().status()
        compute = self._compute  # the session's thread forgets it in the end
        with self._counting:
            queries, rows, runs = self._queries, self._rows, list(self._runs)
        if compute is not None and queries:
            frames, sent, dealt = (
                after - before for after, before in zip(self._counters(), self._before, strict=True)
            )
            facts["cost"] = {
                "queries": queries,
                "rows": rows,
                "bytes_online": sent,
                "bytes_dealt": dealt,
                "frames": frames,
                "recent": [[rows, seconds] for rows, seconds in runs],
                "exchanges": compute.stats.exchanges,
            }
        return facts

    def _release(self) -> None:
        super()._release()
        if self._compute is not None:
            self._compute.close()
            self._compute = None


class LeaderSession(ComputeSession):
    """Party 0: decides which queries run, in which order."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        rows = int(spec.options.get("max_batch", 128))
        self.queue = LeaderQueue(self._n, rows, seat.timeouts.share)

    def submit(self, query: Pending) -> None:
        """Queue the leader's share of a query."""
        if self._ended.is_set():
            raise self._over()
        self.queue.submit(query)
        if self._ended.is_set():
            self._refuse_all(self._over())

    def status(self) -> dict[str, Any]:
        """The session's state, with the leader's counts."""
        return {
            **super().status(),
            "serving": self.queue.serving,
            "limit": self.queue.limit,
            "answered": self.queue.answered,
            "waiting": len(self.queue.pending),
        }

    def _serve(self) -> None:
        self._set_up()
        for peer in range(1, self._n):
            self._spawn(lambda peer=peer: self._listen(peer), f"arrivals-{peer}")
        while not self._ended.is_set():
            with self.queue.changed:
                wait = self.queue.expire()
                refusals = self.queue.take_refusals()
                batch = self.queue.next_batch()
                if not refusals and not batch:
                    self.queue.changed.wait(wait)
                    continue
            order = {
                "run": [query.id for query in batch],
                "refuse": [[r.id, r.code, r.status, r.reason] for r in refusals],
            }
            frame = json.dumps(order).encode()
            for peer in range(1, self._n):
                self._lanes[ORDERS].send(peer, frame)
            if batch:
                self.queue.finished(batch if self._run(batch) else [])

    def _listen(self, peer: int) -> None:
        """Take one follower's arrival notes."""
        with contextlib.suppress(PeerLost):
            while True:
                query_id, rows = json.loads(bytes(self._lanes[ARRIVALS].recv(peer)))
                self.queue.announced(peer, query_id, rows)

    def _refuse_all(self, error: QueryError) -> None:
        with self.queue.changed:
            self.queue.pending.fail_all(error)
            self.queue.changed.notify_all()


class FollowerSession(ComputeSession):
    """Every other compute party: announces its shares and does what the leader orders."""

    def __init__(self, seat: Seat, spec: SessionSpec) -> None:
        super().__init__(seat, spec)
        self._pending = PendingQueries()
        self._lock = threading.Lock()

    def submit(self, query: Pending) -> None:
        """Hold this party's share of a query and tell the leader."""
        with self._lock:
            if self._ended.is_set():
                raise self._over()
            self._pending.add(query)
            try:
                self._lanes[ARRIVALS].send(0, json.dumps([query.id, query.rows]).encode())
            except PeerLost:
                self._pending.take(query.id)
                raise NotServing(_gone(self._config.parties[0].name)) from None

    def _serve(self) -> None:
        self._set_up()
        while True:
            order = json.loads(bytes(self._lanes[ORDERS].recv(0)))
            with self._lock:
                for fields in order["refuse"]:
                    refusal = Refusal(*fields)
                    refused = self._pending.take(refusal.id)
                    if refused is not None:
                        refused.future.set_exception(refusal.error())
                batch = [self._pending.take(query_id) for query_id in order["run"]]
            queries = [query for query in batch if query is not None]
            if len(queries) != len(batch):
                raise PeerLost("the leader ordered a query that was never announced to it")
            if queries:
                self._run(queries)

    def _refuse_all(self, error: QueryError) -> None:
        with self._lock:
            self._pending.fail_all(error)


def open_session(seat: Seat, spec: SessionSpec) -> Session:
    """The session of this seat's role, not started yet."""
    if seat.rank == 0:
        return LeaderSession(seat, spec)
    is_dealer = seat.rank == len(seat.config.compute)
    return DealerSession(seat, spec) if is_dealer else FollowerSession(seat, spec)
