"""Clients' query lanes at one party: who is greeted, and what each may hold and send.

See `query_frames` for what goes over a lane. New connections shake hands on a poller of their own,
so that no query waits for that; from then on a lane is read, and its answers are written, by
whoever drives the party's poller, which is the session's thread while it serves.

A lane that says what is no frame, that does not take its answers or leaves half a frame lying is
closed, and counted.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from privserve.errors import InputError, NotServing, PrivserveError
from privserve.party.greeting import HELLO_BYTES, ClientLane, Greeter, log_place
from privserve.party.metadata import model_facts, party_facts
from privserve.party.outcome import Outcome
from privserve.party.pending import MAX_PENDING_BYTES, MAX_PENDING_PER_CLIENT
from privserve.party.poller import READABLE, WRITABLE, Poller
from privserve.party.query_format import session_of
from privserve.query_frames import (
    ANSWER_HEAD,
    Frame,
    Kind,
    frame,
    json_frame,
    read_json,
)
from privserve.tls_stream import CHUNK_BYTES

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_LANES = 8192
SWEEP_SECONDS = 20.0
"""Who has left half a frame lying, or answers, from one sweep to the next is closed."""
TURN_BYTES = 1 << 20
"""Of one lane, after which the others are read."""
FLUSH_LOOK_SECONDS = 0.005
MAX_UNSENT_BYTES = 64 << 20
"""Of answers that a client does not take."""


class QueryLanes:
    """All query lanes of a party."""

    def __init__(self, party: Party, poller: Poller) -> None:
        """poller: what lanes are read by once they are greeted."""
        self._party = party
        self._poller = poller
        self._dropped: Counter[str] = Counter()
        self._greeter = Greeter(party.me, self._dropped, self._hand_over)
        self.context = self._greeter.context
        self.welcome = self._greeter.welcome
        self._lanes: dict[ClientLane, None] = {}
        """In the order of their last sign of life, so that the longest idle one goes first."""
        self._mail: list[tuple[ClientLane, bytes]] = []
        self._has_mail = False
        self._lock = threading.Lock()
        self._is_closed = False
        self._parted: PrivserveError | None = None
        """Why lanes that are opened now are told to go, once this party is about to end."""
        self._held = 0
        self._plain = memoryview(bytearray(CHUNK_BYTES))
        self._arrived = memoryview(bytearray(CHUNK_BYTES))
        poller.call(self._sweep)

    def status(self) -> dict[str, Any]:
        """Return how many lanes are open, and how many were closed for what."""
        return {"open": len(self._lanes), "dropped": dict(self._dropped)}

    def _hand_over(self, lane: ClientLane, kind: int, hello: bytes) -> None:
        """Have whoever drives the party's poller go on with a lane that said hello."""
        self._poller.call(partial(self._guarded, self._admit, lane, kind, hello))

    # -- what whoever drives the party's poller does ---------------------------------------

    def _admit(self, lane: ClientLane, kind: int, hello: bytes) -> None:
        """Read a client's hello, and answer it."""
        lane.stream.arrived = self._arrived  # the others' too, which one thread reads
        self._lanes[lane] = None
        self._poller.register(
            lane.sock.fileno(), lambda events: self._guarded(self._ready, lane, events)
        )
        try:
            if self._parted is not None:
                raise self._parted
            if kind != Kind.HELLO:
                raise InputError("a lane begins with a hello, and waits for the answer")
            said = read_json(memoryview(hello))
            lane.authorization = str(said.get("authorization") or "")
            self._party.admit(lane.authorization)
        except PrivserveError as error:
            self._refuse(lane, error)
            return
        self._tell(lane, 0, said)
        if lane.stream.has_arrived:  # right behind the hello: the socket will not tell
            self._poller.call(partial(self._guarded, self._ready, lane, READABLE))
        if len(self._lanes) > MAX_LANES:
            idle = next((other for other in self._lanes if not other.asked), lane)
            self._drop(idle, "too many")

    def _tell(self, lane: ClientLane, number: int, said: Mapping[str, Any]) -> None:
        """Tell the client what is served, and let it send queries of the size that this takes.

        said: which model it wants to know of, under "model"; nothing: the only one there is.
        """
        mine = self._party.may_ask(lane.authorization)
        facts = party_facts(self._party)
        if mine:
            facts["models"] = [session.spec.model for session in mine]
        facts["revoked"] = self._party.revoked().decode()
        try:
            model = said.get("model")
            if model is not None and not isinstance(model, str):
                raise InputError("'model' must be a model's name")
            chosen = self._party.chosen(model, lane.authorization)
            facts["model"] = model_facts(chosen.spec)
        except PrivserveError as error:
            facts["error"] = _said(error)
        self._post(lane, json_frame(Kind.WELCOME, number, facts))
        lane.reader.limit = max(HELLO_BYTES, self._party.largest_query(lane.authorization))

    def _guarded(self, act: Callable[..., None], *given: Any) -> None:
        """Act; what is not foreseen costs one lane, and not the thread that serves all."""
        try:
            act(*given)
        except Exception as error:
            log_place("a query lane", error)
            if isinstance(given[0], ClientLane):
                self._drop(given[0], "internal error")

    def _ready(self, lane: ClientLane, events: int) -> None:
        if lane.is_closed:
            return
        if events & WRITABLE:
            self._flush(lane)
        if events & ~WRITABLE and not lane.is_closed:
            self._read(lane)

    def _read(self, lane: ClientLane) -> None:
        stream, plain, total = lane.stream, self._plain, 0
        try:
            while got := stream.read(plain):
                total += got
                for taken in lane.reader.frames(plain[:got]):
                    self._take(lane, taken)
                    if lane.is_closed:
                        return
                if not stream.has_arrived:
                    break
                if total > TURN_BYTES:
                    self._poller.call(partial(self._guarded, self._ready, lane, READABLE))
                    break
        except InputError as error:
            self._refuse(lane, error)
            return
        except (OSError, ValueError):
            self._drop(lane, "")
            return
        lane.moved += total
        self._lanes[lane] = self._lanes.pop(lane, None)
        self._count(lane, lane.reader.held)
        if self._held > MAX_PENDING_BYTES and lane.reader.held:
            self._refuse(lane, NotServing("this party holds too many halves of queries; try again"))

    def _count(self, lane: ClientLane, held: int) -> None:
        self._held += held - lane.counted
        lane.counted = held

    def _take(self, lane: ClientLane, taken: Frame) -> None:
        """Do what a client's frame says; raises InputError for one that no client sends."""
        kind, number, payload = taken
        if kind == Kind.QUERY:
            self._query(lane, number, payload)
        elif kind == Kind.CANCEL:
            if number in lane.asked:
                query, session = lane.asked[number]
                session.withdraw(query)
        elif kind == Kind.PING:
            self._post(lane, frame(Kind.PONG, number))
        elif kind == Kind.ABOUT:
            self._tell(lane, number, read_json(payload) if payload else {})
        elif kind != Kind.PONG:
            raise InputError(f"a client sends no frame of the kind {kind}")

    def _query(self, lane: ClientLane, number: int, payload: memoryview) -> None:
        if number in lane.asked:
            raise InputError("a query's number is in use")
        counts, query = self._party.unplaced, None
        try:
            if len(lane.asked) >= MAX_PENDING_PER_CLIENT:
                raise NotServing("too many queries wait for their answers on this lane")
            session = self._party.queried(session_of(payload))
            counts = session.statistics
            client = session.accounts.admit(lane.authorization)
            query = session.query_format.read(payload, client)
            lane.asked[number] = (query, session)
            session.submit(query)
        except PrivserveError as error:
            lane.asked.pop(number, None)
            counts.refused(error, query)
            self._post(lane, json_frame(Kind.ERROR, number, _said(error)))
            return
        query.future.add_done_callback(partial(self._answered, lane, number))

    def _answered(self, lane: ClientLane, number: int, future: Outcome) -> None:
        """Send what became of a query; in whichever thread that happened."""
        lane.asked.pop(number, None)
        error = future.exception()
        if error is None:
            outputs = future.result()
            parts = [ANSWER_HEAD.pack(len(outputs[0])), *(out.tobytes() for out in outputs)]
            answer = frame(Kind.ANSWER, number, b"".join(parts))
        else:
            answer = json_frame(Kind.ERROR, number, _said(error))
        self._post(lane, answer)

    # -- sending ---------------------------------------------------------------------------

    def _post(self, lane: ClientLane, data: bytes) -> None:
        """Have a frame sent together with what else there is to send soon; for any thread."""
        with self._lock:
            self._mail.append((lane, data))
            if self._has_mail:
                return
            self._has_mail = True
        self._poller.call(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            mail, self._mail, self._has_mail = self._mail, [], False
        parcels: dict[ClientLane, list[bytes]] = {}
        for lane, data in mail:
            parcels.setdefault(lane, []).append(data)
        for lane, parts in parcels.items():
            self._guarded(self._send, lane, parts[0] if len(parts) == 1 else b"".join(parts))

    def _send(self, lane: ClientLane, data: bytes) -> None:
        if lane.is_closed:
            return
        view = memoryview(data)
        try:
            for start in range(0, len(view), CHUNK_BYTES):
                encrypted = lane.stream.encrypt(view[start : start + CHUNK_BYTES])
                sent = 0 if lane.unsent else _send_some(lane.sock, encrypted)
                lane.moved += sent
                if sent < len(encrypted):
                    lane.unsent += memoryview(encrypted)[sent:]
        except (OSError, ValueError):
            self._drop(lane, "")
            return
        if len(lane.unsent) > MAX_UNSENT_BYTES:
            self._drop(lane, "does not take its answers")
        elif lane.unsent:
            self._poller.want(lane.sock.fileno(), READABLE | WRITABLE)

    def _flush(self, lane: ClientLane) -> None:
        try:
            sent = _send_some(lane.sock, lane.unsent[:CHUNK_BYTES])
        except OSError:
            self._drop(lane, "")
            return
        lane.moved += sent
        del lane.unsent[:sent]
        if not lane.unsent:
            self._poller.want(lane.sock.fileno(), READABLE)

    def part(self, why: PrivserveError, deadline: float) -> None:
        """Let clients have what is posted by now, then tell them why no more will come.

        Returns when they have that too, or the time is up.
        """
        self._flush_all(deadline)
        self._parted = why
        told = json_frame(Kind.ERROR, 0, _said(why))
        for lane in list(self._lanes):
            self._post(lane, told)
        self._flush_all(deadline)

    def _flush_all(self, deadline: float) -> None:
        posted = threading.Event()
        self._poller.call(posted.set)  # behind what delivers it
        posted.wait(max(0.0, deadline - time.monotonic()))
        for lane in list(self._lanes):
            while _owes(lane) and time.monotonic() < deadline:
                time.sleep(FLUSH_LOOK_SECONDS)

    # -- ends ------------------------------------------------------------------------------

    def _refuse(self, lane: ClientLane, error: PrivserveError) -> None:
        """Say why, and close the lane."""
        self._send(lane, json_frame(Kind.ERROR, 0, _said(error)))
        self._drop(lane, error.code)

    def _drop(self, lane: ClientLane, why: str) -> None:
        """Close a lane; its queries are withdrawn. why: what it is counted as, "" for nothing."""
        if lane.is_closed:
            return
        lane.is_closed = True
        if why:
            self._dropped[why] += 1
        self._lanes.pop(lane, None)
        self._count(lane, 0)
        self._poller.unregister(lane.sock.fileno())
        lane.sock.close()
        for query, session in list(lane.asked.values()):
            session.withdraw(query)
        lane.asked.clear()

    def _sweep(self) -> None:
        """Close who is stuck; again and again."""
        for lane in list(self._lanes):
            if lane.is_stuck:
                self._drop(lane, "stuck")
            lane.swept = lane.moved
        self._poller.call_later(SWEEP_SECONDS, self._sweep)

    def close(self) -> None:
        """Close all lanes, once no session drives the poller any more; idempotent."""
        with self._lock:
            closed, self._is_closed = self._is_closed, True
        if closed:
            return
        self._greeter.close()
        self._poller.close()
        for lane in list(self._lanes):
            lane.sock.close()


def _said(error: BaseException) -> dict[str, Any]:
    """An error as a client is told of it."""
    if isinstance(error, PrivserveError):
        return {"error": str(error), "code": error.code, "status": error.status}
    return {"error": "internal error; see the party's log", "code": "internal", "status": 500}


def _owes(lane: ClientLane) -> bool:
    """Whether a client's host has not confirmed all that was sent to it."""
    if lane.is_closed:
        return False
    if lane.unsent:
        return True
    try:
        (left,) = struct.unpack("i", fcntl.ioctl(lane.sock, termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):
        return False  # it was closed meanwhile
    return bool(left)


def _send_some(sock: socket.socket, data: bytes | bytearray) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0
