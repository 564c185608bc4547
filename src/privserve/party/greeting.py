"""New query lanes, until they have said hello: handshakes that no query has to wait for."""

from __future__ import annotations

import logging
import socket
import ssl
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial

from privserve.config import PartyConfig
from privserve.errors import InputError
from privserve.party.computing import ComputeSession
from privserve.party.pending import Pending
from privserve.party.poller import Poller
from privserve.query_frames import PROTOCOL, FrameReader
from privserve.tls_stream import CHUNK_BYTES, TlsStream

log = logging.getLogger("privserve")

MAX_GREETING = 512
GREETING_SECONDS = 10.0
HELLO_BYTES = 4096


class ClientLane:
    """One client's connection, as a party holds it."""

    def __init__(self, sock: socket.socket, stream: TlsStream) -> None:
        self.sock = sock
        self.stream = stream
        self.reader = FrameReader(HELLO_BYTES)
        self.authorization = ""
        self.asked: dict[int, tuple[Pending, ComputeSession]] = {}
        self.unsent = bytearray()
        self.moved = 0
        """Bytes that came or went."""
        self.swept = -1
        self.counted = 0
        """Of what is half here, in the party's sum."""
        self.is_shaken = False
        self.is_closed = False

    @property
    def is_stuck(self) -> bool:
        """Whether something is half done, and nothing moved since the last sweep."""
        return bool(self.reader.held or self.unsent) and self.moved == self.swept


class Greeter:
    """Shakes hands on a poller of its own, and hands over who has said hello."""

    def __init__(
        self,
        me: PartyConfig,
        dropped: Counter[str],
        admit: Callable[[ClientLane, int, bytes], None],
    ) -> None:
        """me: whose certificate is shown. dropped: where those are counted who say none. admit:
        takes a lane, and the kind and the payload of its first frame; in the greeter's thread."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0
        self.context.set_alpn_protocols([PROTOCOL])
        self.context.load_cert_chain(me.cert, me.key)
        self._poller = Poller()
        self._dropped = dropped
        self._admit = admit
        self._greeted: set[ClientLane] = set()
        self._arrived = memoryview(bytearray(CHUNK_BYTES))
        self._hello = memoryview(bytearray(HELLO_BYTES))

    def welcome(self, sock: socket.socket) -> None:
        """Take a connection whose client wants to speak PROTOCOL; for any thread."""
        self._poller.call(partial(self._greet, sock))

    def _greet(self, sock: socket.socket) -> None:
        if len(self._greeted) >= MAX_GREETING:
            self._dropped["too many at once"] += 1
            sock.close()
            return
        sock.setblocking(False)
        stream = TlsStream(sock, self.context, server_side=True, arrived=self._arrived)
        lane = ClientLane(sock, stream)
        self._greeted.add(lane)
        self._poller.register(sock.fileno(), lambda events: self._hear(lane))
        self._poller.call_later(GREETING_SECONDS, partial(self._give_up, lane))
        self._hear(lane)

    def _give_up(self, lane: ClientLane) -> None:
        if lane in self._greeted:
            self._leave(lane, "no hello")

    def _hear(self, lane: ClientLane) -> None:
        if lane not in self._greeted:
            return
        try:
            self._advance(lane)
        except BlockingIOError:
            return
        except (OSError, ValueError, InputError):
            self._leave(lane, "no hello")
        except Exception as error:  # one lane, and not the thread that greets all
            log_place("a greeting", error)
            self._leave(lane, "internal error")

    def _advance(self, lane: ClientLane) -> None:
        """Go on with the handshake, or hear what comes first after it."""
        if not lane.is_shaken:
            if not lane.stream.advance():
                return
            lane.is_shaken = True
            if lane.stream.protocol != PROTOCOL:
                raise InputError("another protocol")
        got = lane.stream.read(self._hello)
        frames = list(lane.reader.frames(self._hello[:got])) if got else []
        if frames:
            self._poller.unregister(lane.sock.fileno())
            self._greeted.discard(lane)
            only = len(frames) == 1  # a client waits for the answer to its hello
            self._admit(lane, frames[0].kind, bytes(frames[0].payload) if only else b"")

    def _leave(self, lane: ClientLane, why: str) -> None:
        self._dropped[why] += 1
        self._greeted.discard(lane)
        self._poller.unregister(lane.sock.fileno())
        lane.is_closed = True
        lane.sock.close()

    def close(self) -> None:
        """Greet nobody any more."""
        self._poller.close()
        for lane in self._greeted:
            lane.sock.close()


def log_place(where: str, error: Exception) -> None:
    """Log where an error came from, and nothing of what it says: it may quote values."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", where, type(error).__name__, frames)
