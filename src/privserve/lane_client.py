"""A client's query lanes: one connection to each compute party, and who reads them.

See `query_frames` for what goes over a lane. There is no thread between a caller and its answer:
of all threads that wait for answers one reads the lanes, for all of them, and when it has its own
it leaves that to the next. Answers that nobody waits for (callbacks) are read by a thread that is
begun when the first of them is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from privserve.calls import refusal, unreachable
from privserve.errors import ClusterError, InputError, PrivserveError, QueryError
from privserve.lane_connection import Connection, Peer, about_of
from privserve.query_frames import PROTOCOL, Kind, frame, read_json
from privserve.tls import ListContext
from privserve.tls_stream import reason_of

TICK_SECONDS = 0.2
IDLE_SECONDS = 1.0
"""A lane that was silent this long may be broken without anybody having noticed."""


class Asked:
    """What was asked of all parties, and what they answered so far."""

    def __init__(self, parties: int, callback: Callable[[Asked], None] | None) -> None:
        self.payloads: list[memoryview | None] = [None] * parties
        """By party: the payload of its answer."""
        self.error: PrivserveError | None = None
        self.is_done = False
        self.number = 0
        self.since = time.monotonic()
        self._missing = parties
        self._callback = callback
        # Held but for a moment: a thread that waits for it is woken when somebody lets it go. An
        # event costs ten times as much to make.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._ending = threading.Lock()

    @property
    def is_called_back(self) -> bool:
        """Whether nobody waits for it, but a callback."""
        return self._callback is not None

    def answered(self, party: int, payload: memoryview) -> None:
        """Note a party's answer."""
        if self.payloads[party] is None and not self.is_done:
            self.payloads[party] = payload
            self._missing -= 1
            if not self._missing:
                self.end()

    def fail(self, error: PrivserveError) -> None:
        """Note an error, which is what the whole comes to."""
        if not self.is_done:
            self.error = error
            self.end()

    def end(self) -> None:
        """Let whoever waits know, once."""
        if not self._ending.acquire(blocking=False):
            return  # it was withdrawn while its answer was read
        self.is_done = True
        self.nudge()
        if self._callback is not None:
            self._callback(self)

    def wait(self, seconds: float) -> None:
        """Wait until it is done, or until `nudge`; of no use to more than one thread."""
        self._bell.acquire(timeout=seconds)

    def nudge(self) -> None:
        """End a `wait`, or the next one."""
        with contextlib.suppress(RuntimeError):  # it was nudged already
            self._bell.release()


class LaneClient:
    """Asks all compute parties at once over their lanes. Thread-safe."""

    def __init__(self, peers: Sequence[Peer], context: ListContext, seconds: float) -> None:
        """context: whom to trust; `seconds` are for connecting to each party."""
        self._peers = peers
        self._seconds = self.connect_seconds = seconds
        self.silent_seconds: float | None = None
        """A lane is given up of whose party nothing was heard for so long, while it is asked; None:
        the query's own time is waited for."""
        self.model = ""
        """Which the parties are to tell of; empty: the only one there is."""
        self._context = context
        context.set_alpn_protocols([PROTOCOL, "http/1.1"])
        self._connections: list[Connection | None] = [None] * len(peers)
        self._connecting = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._bell, self._ring = socket.socketpair()
        for end in (self._bell, self._ring):
            end.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._numbers = itertools.count(1)
        self._asked: dict[int, Asked] = {}
        self._waiting: dict[Asked, None] = {}
        self._reading = threading.Lock()
        self._callbacks = threading.Semaphore(0)
        self._reader: threading.Thread | None = None
        self._is_driven = False
        """Whether somebody calls `pump` whenever something comes, so that no thread is needed."""
        self._is_closed = False
        self._expired = 0.0

    def about(self) -> list[dict[str, Any]]:
        """Return what each party says of itself and of `model`; connects where need be."""
        model = self.model
        fresh = self._connect()
        if len(fresh) == len(self._peers):
            return [fresh[rank] for rank in range(len(self._peers))]
        wanted = json.dumps(about_of(model)).encode() if model else b""
        asked = self.begin(Kind.ABOUT, [wanted] * len(self._peers))
        return [read_json(payload) for payload in self.finish(asked, self.connect_seconds)]

    def _connect(self) -> dict[int, dict[str, Any]]:
        """Open the lanes that are not; what the parties said on those."""
        said = {}
        with self._connecting:
            if self._is_closed:
                raise ClusterError("this client is closed")
            for rank, peer in enumerate(self._peers):
                connection = self._connections[rank]
                if connection is not None and not connection.is_lost:
                    continue
                connection = Connection(peer, rank, self._context, self.connect_seconds, self.model)
                self._connections[rank] = connection
                self._selector.register(connection.stream.sock, selectors.EVENT_READ, connection)
                said[rank] = connection.facts
        return said

    def reconnect(self) -> None:
        """Give all lanes up, and with them what is asked; new ones are opened when need be."""
        for connection in self._connections:
            if connection is not None:
                self._lose(connection, ClusterError("the lanes were made anew; ask again"))

    def begin(
        self,
        kind: Kind,
        payloads: Sequence[bytes],
        callback: Callable[[Asked], None] | None = None,
    ) -> Asked:
        """Send each party a frame, with its payload; `finish` or the callback has the answers.

        The callback is called by whoever reads the last answer, and must be quick.
        """
        self.renew()
        asked = Asked(len(self._peers), callback)
        asked.number = number = next(self._numbers)
        self._asked[number] = asked
        if callback is not None:
            self._read_callbacks()
        for connection, payload in zip(self._connections, payloads, strict=True):
            assert connection is not None
            try:
                connection.send(frame(kind, number, payload))
            except (OSError, ValueError) as error:
                self._lose(connection, error)
                break
        return asked

    @property
    def is_fresh(self) -> bool:
        """Whether a query could be sent now without a look at the lanes, or a new one."""
        now = time.monotonic()
        return all(
            c is not None and not c.is_lost and now - c.heard <= IDLE_SECONDS
            for c in self._connections
        )

    def renew(self) -> None:
        """See to it that there is a lane to each party; may take as long as connecting does."""
        now = time.monotonic()
        for connection in self._connections:
            if connection is None or connection.is_lost:
                self._connect_again()
                return
            if now - connection.heard > IDLE_SECONDS and self._reading.acquire(blocking=False):
                try:  # what broke while nobody asked has been told to the socket by now
                    self._pump(0)
                finally:
                    self._leave_reading()
                if connection.is_lost:
                    self._connect_again()
                    return
                connection.heard = now

    def _connect_again(self) -> None:
        """Open the lanes that are not; raises as a party does that serves the model no more."""
        for rank, facts in self._connect().items():
            if "error" in facts:
                raise refusal(facts["error"], self._peers[rank].name)

    def finish(self, asked: Asked, seconds: float) -> list[memoryview]:
        """Return the payloads of all parties' answers; raises what a party refused with.

        Raises ClusterError naming who did not answer in time.
        """
        deadline = time.monotonic() + seconds
        try:
            self._await(asked, deadline)
        finally:
            self._waiting.pop(asked, None)
            self._asked.pop(asked.number, None)
            if self._waiting and not self._reading.locked():
                self._leave_to_another()
            if not asked.is_done or isinstance(asked.error, ClusterError):
                self._cancel(asked)
        if asked.error is not None:
            raise asked.error
        return [payload for payload in asked.payloads if payload is not None]

    def _await(self, asked: Asked, deadline: float) -> None:
        self._waiting[asked] = None  # before the role is asked for: it is left to who waits
        while not asked.is_done:
            if (left := deadline - time.monotonic()) <= 0:
                raise self._late(asked)
            if self._reading.acquire(blocking=False):
                try:
                    while not asked.is_done and left > 0:
                        self._pump(left if self.silent_seconds is None else min(left, TICK_SECONDS))
                        self._probe()
                        left = deadline - time.monotonic()
                finally:
                    self._reading.release()
            else:
                asked.wait(left)

    def _late(self, asked: Asked) -> ClusterError:
        """What to say of who did not answer in time; who was silent all the while is given up."""
        missing = [rank for rank, got in enumerate(asked.payloads) if got is None]
        for connection in (self._connections[rank] for rank in missing):
            if connection is not None and connection.heard < asked.since:
                self._lose(connection, TimeoutError("it was silent for too long"))
        peer = self._peers[missing[0]]
        return unreachable(peer.name, peer.address, TimeoutError())

    def withdraw(self, asked: Asked) -> None:
        """Let the parties know that nobody wants this answer, and end it with an error."""
        if self._asked.pop(asked.number, None) is not None:
            self._cancel(asked)
            asked.fail(QueryError("the query was cancelled"))

    def _leave_reading(self) -> None:
        self._reading.release()
        self._leave_to_another()

    def _leave_to_another(self) -> None:
        """Wake one of those who wait, so that somebody reads."""
        with contextlib.suppress(StopIteration, RuntimeError):
            next(iter(self._waiting)).nudge()

    def _cancel(self, asked: Asked) -> None:
        """Tell the parties that nobody waits for this any more."""
        for connection in self._connections:
            if connection is not None and not connection.is_lost:
                with contextlib.suppress(OSError, ValueError):
                    connection.send(frame(Kind.CANCEL, asked.number))

    # -- reading -----------------------------------------------------------------------------

    def _pump(self, seconds: float) -> None:
        """Read what comes within `seconds`, for everybody; whoever holds `_reading`."""
        for key, _ in self._selector.select(seconds):
            connection: Connection | None = key.data
            if connection is None:
                with contextlib.suppress(OSError):
                    self._bell.recv(64)
                continue
            try:
                frames = connection.read()
            except (OSError, ValueError, PrivserveError) as error:
                self._lose(connection, error)
                continue
            for kind, number, payload in frames:
                self._take(connection, kind, number, payload)

    def _probe(self) -> None:
        """Ask for a sign of life of parties that were silent for long; give up who gives none.

        For whoever holds `_reading`, and has just read what had come.
        """
        if self.silent_seconds is None:
            return
        now, half = time.monotonic(), self.silent_seconds / 2
        for connection in self._connections:
            if connection is None or connection.is_lost or now - connection.heard < half:
                continue
            if connection.probed < connection.heard:
                connection.probed = now
                try:
                    connection.send(frame(Kind.PING, 0))
                except (OSError, ValueError) as error:
                    self._lose(connection, error)
            elif now - connection.probed > half:
                self._lose(connection, TimeoutError("it gives no sign of life"))

    def _take(self, connection: Connection, kind: int, number: int, payload: memoryview) -> None:
        if kind == Kind.PING:
            with contextlib.suppress(OSError, ValueError):
                connection.send(frame(Kind.PONG, number))
            return
        asked = self._asked.get(number)
        if kind == Kind.ERROR:
            error = refusal(_fields(payload), connection.peer.name)
            if number == 0:
                self._lose(connection, error)
            elif asked is not None:
                self._asked.pop(number, None)
                asked.fail(error)
        elif asked is not None and kind in (Kind.ANSWER, Kind.WELCOME):
            asked.answered(connection.rank, payload)
            if asked.is_done:
                self._asked.pop(number, None)

    def _lose(self, connection: Connection, error: Exception) -> None:
        """Give a lane up, and with it all that was asked over it."""
        if connection.is_lost:
            return
        connection.is_lost = True
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.stream.sock)
        connection.close()
        peer = connection.peer
        if not isinstance(error, PrivserveError):
            error = ClusterError(
                f"the connection to {peer.name} at {peer.address} broke ({reason_of(error)}) "
                "before the answer came"
            )
        for asked in list(self._asked.values()):
            if asked.payloads[connection.rank] is None:
                self._asked.pop(asked.number, None)
                asked.fail(error)
        # Whoever reads may be waiting for one of these.
        with contextlib.suppress(OSError):
            self._ring.send(b"x")

    # -- read by an event loop ---------------------------------------------------------------

    def drive(self) -> int:
        """Leave it to the caller to call `pump`; returns the descriptor that says when.

        It can be read when something has come for any lane, also for those that are opened later.
        """
        self._is_driven = True
        return self._selector.fileno()

    def leave(self) -> None:
        """Have a thread read again what nobody waits for: the caller does it no more."""
        self._is_driven = False
        if self.has_callbacks:
            self._read_callbacks()

    @property
    def has_callbacks(self) -> bool:
        """Whether answers are to come that nobody waits for."""
        return any(asked.is_called_back for asked in list(self._asked.values()))

    def pump(self, *, tick: bool = False) -> None:
        """Read what has come, without waiting; nothing where a thread does so by now.

        tick: see also to parties that are silent and queries that are overdue.
        """
        if self._is_closed or not self._reading.acquire(blocking=False):
            return
        try:
            self._pump(0)
            if tick:
                self._probe()
                self._expire()
        finally:
            self._leave_reading()

    def _read_callbacks(self) -> None:
        """See to it that answers are read which nobody waits for."""
        if self._is_driven:
            return
        with self._connecting:
            if self._reader is None:
                self._reader = threading.Thread(
                    target=self._read_on, name="privserve-answers", daemon=True
                )
                self._reader.start()
        self._callbacks.release()

    def _read_on(self) -> None:
        while True:
            self._callbacks.acquire()
            if self._is_closed:
                return
            with self._reading:
                while not self._is_closed and not self._is_driven and self.has_callbacks:
                    self._pump(TICK_SECONDS)
                    self._probe()
                    self._expire()
            self._leave_to_another()

    def _expire(self) -> None:
        """Fail what is to be called back with and was not answered in time; now and then."""
        now = time.monotonic()
        if now < self._expired + TICK_SECONDS:
            return
        self._expired = now
        for asked in list(self._asked.values()):
            if asked.is_called_back and now > asked.since + self._seconds:
                self._asked.pop(asked.number, None)
                self._cancel(asked)
                asked.fail(self._late(asked))

    def close(self) -> None:
        """Close all lanes; what is asked fails."""
        with self._connecting:
            if self._is_closed:
                return
            self._is_closed = True
        self._callbacks.release()
        for connection in self._connections:
            if connection is not None:
                self._lose(connection, ClusterError("this client is closed"))
        with self._reading:  # nobody waits any more
            self._selector.close()
            self._bell.close()
            self._ring.close()


def _fields(payload: memoryview) -> Mapping[str, Any]:
    try:
        return read_json(payload)
    except InputError:
        return {}
