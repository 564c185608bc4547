"""TLS 1.3 over one socket, in memory.

Python's `SSLSocket` writes and reads one TLS record of 16 KB per system call, two for reading.
Here OpenSSL works in memory (`ssl.SSLObject`) and the socket moves whole chunks: a few kilobytes
are one system call each way, a megabyte a few.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from privserve.mesh import Payload

# This much is encrypted before it is sent, and read before it is decrypted: it stays cached.
CHUNK_BYTES = 256 * 1024


class TlsStream:
    """TLS 1.3 over a socket that does not block: bytes in, bytes out."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        arrived: memoryview | None = None,
    ) -> None:
        """arrived: room for what the socket gives at once, of CHUNK_BYTES, which streams that one
        thread reads in turn may have in common; its own when None."""
        self.sock = sock
        self._received, self._encrypted = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._received,
            self._encrypted,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self.arrived = memoryview(bytearray(CHUNK_BYTES)) if arrived is None else arrived
        """See `arrived` of __init__."""

    @property
    def protocol(self) -> str | None:
        """What both sides agreed to speak (ALPN), once the handshake is done."""
        return self._tls.selected_alpn_protocol()

    @property
    def has_arrived(self) -> bool:
        """Whether bytes were taken from the socket that `read` has not given out yet."""
        return bool(self._received.pending or self._tls.pending())

    def handshake(self, seconds: float) -> None:
        """Raises OSError (ssl.SSLError among them) when the peer is not who it should be."""
        deadline = time.monotonic() + seconds
        while True:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError("the handshake took too long")
            # A blocking socket here; nothing else happens on it.
            self.sock.settimeout(left)
            if self._shake():
                return
            self._take()

    def advance(self) -> bool:
        """Go on with a server's handshake after something came; whether it is done.

        For a socket that does not block. Raises as `handshake` does.
        """
        self._take()
        return self._shake()

    def _take(self) -> None:
        if not (got := self.sock.recv_into(self.arrived)):
            raise ConnectionResetError("the connection is closed")
        self._received.write(self.arrived[:got])

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            if self._encrypted.pending:  # an alert too: the peer should know why
                self.sock.sendall(self._encrypted.read())
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.sock.setblocking(False)
        return True

    def certificate(self) -> dict[str, Any]:
        """Return the peer's verified certificate, as `ssl` decodes it."""
        return self._tls.getpeercert() or {}

    def certified_names(self) -> set[str]:
        """Return the DNS names in the peer's verified certificate."""
        entries = self.certificate().get("subjectAltName", ())
        return {str(entry[1]) for entry in entries if entry[0] == "DNS"}

    def encrypt(self, plain: Payload) -> bytes:
        """Encrypt `plain`, at most a chunk; returns what has to be sent for it."""
        done = self._tls.write(plain)
        while done < len(plain):  # OpenSSL may be told to stop after each record
            done += self._tls.write(memoryview(plain)[done:])
        return self._encrypted.read()

    def read(self, view: memoryview) -> int:
        """Decrypt into `view` what has arrived, asking the socket once; 0 if nothing has.

        Raises ConnectionResetError at the connection's end, OSError for what TLS rejects.
        """
        # Asked first: an exception for "nothing yet" costs as much as decrypting.
        if self._received.pending or self._tls.pending():
            try:
                return self._tls.read(len(view), view)  # type: ignore[return-value]
            except ssl.SSLWantReadError:  # a part of a record
                pass
        try:
            got = self.sock.recv_into(self.arrived)
        except BlockingIOError:
            return 0
        if not got:
            raise ConnectionResetError("it closed the connection")
        self._received.write(self.arrived[:got])
        try:
            return self._tls.read(len(view), view)  # type: ignore[return-value]
        except ssl.SSLWantReadError:
            return 0


def reason_of(error: Exception) -> str:
    """Say why a connection broke, in a few words."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS error"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, ConnectionResetError):
        return str(error)
    return "the connection is closed"
