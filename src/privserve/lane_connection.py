"""A client's query lane to one compute party: frames over TLS, and who the party is."""

from __future__ import annotations

import selectors
import threading
import time
from dataclasses import dataclass
from typing import Any

from privserve.addresses import connect
from privserve.calls import refusal, unreachable
from privserve.errors import InputError
from privserve.query_frames import PROTOCOL, FrameReader, Kind, json_frame, read_json
from privserve.tls import ListContext
from privserve.tls_stream import CHUNK_BYTES, TlsStream

MAX_ANSWER_BYTES = 1 << 31


class SpeaksHttpOnly(Exception):
    """A party, or what stands before it, does not know query lanes."""


@dataclass(frozen=True)
class Peer:
    """A compute party as a client knows it."""

    name: str
    addresses: tuple[str, ...]
    identity: str
    """What its certificate has to say, whatever its address."""
    authorization: str
    """What shows this client to it, and to it alone; may be empty."""

    @property
    def address(self) -> str:
        """The first of its addresses, which people are told."""
        return self.addresses[0]


def about_of(model: str) -> dict[str, str]:
    """Return how a client says which model it wants to know of; empty: the only one there is."""
    return {"model": model} if model else {}


class Connection:
    """The lane to one party."""

    def __init__(
        self, peer: Peer, rank: int, context: ListContext, seconds: float, model: str = ""
    ) -> None:
        """Connect and say hello. model: which the party is to tell of.

        Raises ClusterError, SpeaksHttpOnly, or what the party says.
        """
        self.peer = peer
        self.rank = rank
        self.lock = threading.Lock()
        """Of the stream: one thread may send while another reads."""
        self.is_lost = False
        self.heard = time.monotonic()
        self.probed = 0.0
        """When it was asked for a sign of life."""
        self._seconds = seconds
        self._plain = memoryview(bytearray(1 << 16))
        self.reader = FrameReader(MAX_ANSWER_BYTES)
        try:
            raw = connect(peer.addresses, seconds)
        except OSError as error:
            raise unreachable(peer.name, peer.address, error) from None
        try:
            self.stream = TlsStream(raw, context, server_hostname=peer.identity)
            self.stream.handshake(seconds)
            context.refuse_revoked(self.stream.certificate())
            if self.stream.protocol != PROTOCOL:
                raise SpeaksHttpOnly
            said = {"authorization": peer.authorization, **about_of(model)}
            hello = json_frame(Kind.HELLO, 0, said)
            raw.settimeout(seconds)
            raw.sendall(self.stream.encrypt(hello))
            self.facts = self._welcome(seconds)
        except (OSError, ValueError) as error:
            raw.close()
            raise unreachable(peer.name, peer.address, error) from None
        except BaseException:
            raw.close()
            raise
        raw.setblocking(False)

    def _welcome(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            self.stream.sock.settimeout(max(0.01, deadline - time.monotonic()))
            got = self.stream.read(self._plain)
            for kind, _, payload in self.reader.frames(self._plain[:got]):
                fields = read_json(payload)
                if kind == Kind.ERROR:
                    raise refusal(fields, self.peer.name)
                if kind != Kind.WELCOME:
                    raise InputError("it does not begin with a welcome")
                return fields

    def send(self, data: bytes) -> None:
        """Send frames; raises OSError, TimeoutError where the party takes nothing any more."""
        view = memoryview(data)
        with self.lock:
            for start in range(0, len(view), CHUNK_BYTES):
                encrypted = self.stream.encrypt(view[start : start + CHUNK_BYTES])
                sent = self._send_some(encrypted)
                while sent < len(encrypted):
                    self._wait_for_room()
                    sent += self._send_some(memoryview(encrypted)[sent:])

    def _send_some(self, encrypted: bytes | memoryview) -> int:
        try:
            return self.stream.sock.send(encrypted)
        except BlockingIOError:
            return 0

    def _wait_for_room(self) -> None:
        with selectors.DefaultSelector() as room:
            room.register(self.stream.sock, selectors.EVENT_WRITE)
            if not room.select(self._seconds):
                raise TimeoutError("it takes nothing any more")

    def read(self) -> list[tuple[int, int, memoryview]]:
        """Return the frames that have come; raises OSError, InputError."""
        frames = []
        with self.lock:
            while got := self.stream.read(self._plain):
                for kind, number, payload in self.reader.frames(self._plain[:got]):
                    frames.append((kind, number, memoryview(bytes(payload))))
                if not self.stream.has_arrived:
                    break
        self.heard = time.monotonic()
        return frames

    def close(self) -> None:
        """Close the connection."""
        self.is_lost = True
        with self.lock:
            self.stream.sock.close()
