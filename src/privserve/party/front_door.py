"""A party's port: who connects speaks HTTP, the query lane's protocol, or that of the parties.

TLS says which (ALPN), in the clear and in the very first message. It is looked at and left where
it is, so that either side makes the connection as if it had accepted it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Mapping

log = logging.getLogger("privserve")

BACKLOG = 1024
PER_TURN = 64
"""Accepted before others get their turn."""
FIRST_SECONDS = 20.0
"""For the first message of a connection."""
MAX_SILENT = 4096
"""Connections whose first message has not come; further ones are turned away."""
PAUSE_SECONDS = 0.2
RECORD = 5
"""Bytes of a TLS record's head; the last two are its length."""

Take = Callable[[socket.socket], None]


def offer(protocol: str) -> bytes:
    """Return how a client hello names a protocol."""
    return bytes([len(protocol)]) + protocol.encode()


class FrontDoor:
    """Accepts connections and gives each to whom it is for; belongs to one event loop."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        http: Callable[[], asyncio.BaseProtocol],
        others: Mapping[str, Take],
    ) -> None:
        """sock: bound. http: makes the protocol of a connection that speaks HTTP over `context`;
        others: by protocol (ALPN), what takes a socket that speaks it."""
        self._sock = sock
        self._context = context
        self._http = http
        self._others = {offer(protocol): take for protocol, take in others.items()}
        self._loop = asyncio.get_running_loop()
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        self._making: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock, self._accept)

    def _accept(self) -> None:
        for _ in range(PER_TURN):
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:  # no descriptor is free, say
                log.warning("cannot accept a connection: %s", error)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(PAUSE_SECONDS, self._accept_again)
                return
            connection.setblocking(False)
            if len(self._silent) >= MAX_SILENT:
                connection.close()
                continue
            self._silent[connection] = self._loop.call_later(
                FIRST_SECONDS, self._turn_away, connection
            )
            self._loop.add_reader(connection, self._look, connection)

    def _accept_again(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    def _look(self, connection: socket.socket) -> None:
        """See what the first message of a connection offers, once all of it is there."""
        try:
            first = connection.recv(1 << 14, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._turn_away(connection)
            return
        if not first:
            self._turn_away(connection)
            return
        wanted = RECORD
        if len(first) >= RECORD and first[0] == 0x16:  # a handshake; what else is no TLS at all
            wanted += int.from_bytes(first[3:RECORD], "big")
        if len(first) < min(wanted, 1 << 14):
            # Not before the rest is there: what was looked at would wake this again and again.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(wanted, 1 << 14))
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        self._forget(connection)
        for offered, take in self._others.items():
            if offered in first:
                take(connection)
                return
        making = self._loop.create_task(self._make(connection))
        self._making.add(making)
        making.add_done_callback(self._making.discard)

    async def _make(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError):  # it left, or is no TLS client
            await self._loop.connect_accepted_socket(
                self._http, connection, ssl=self._context, ssl_handshake_timeout=FIRST_SECONDS
            )

    def _forget(self, connection: socket.socket) -> None:
        self._loop.remove_reader(connection)
        self._silent.pop(connection).cancel()

    def _turn_away(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()

    def close(self) -> None:
        """Accept no more, and turn away who has said nothing yet."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()
        for connection in list(self._silent):
            self._turn_away(connection)
