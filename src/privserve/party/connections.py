"""Connections to a party's HTTP front: what uvicorn leaves to be done.

It waits for ever for a request's head, for what follows an answer, and takes heads and trailers
of any length. Whoever connects has HEAD_SECONDS for each head, and for the rest of a request that
was answered already; HEAD_BYTES for what is not body; and MAX_PIPELINED requests under way.

uvicorn cancels the keep-alive timer of a connection that was closed, but not of one that was
reset, as every client does that closes without reading TLS' session tickets. The timer then
holds the connection, with asyncio's TLS buffer of 256 KB, for as long as an idle connection
would have been kept.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
HEAD_BYTES = 64 << 10
"""Of a request's head, its trailer and its chunks' frames, before there is any body to show."""
LEAST_SHARE = 8
"""A body may come in chunks of a byte, each with five around it; no smaller ones."""
MAX_PIPELINED = 16


class ForgottenWhenLost(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which nothing holds any more once its connection is lost.

    Nor does it hold one whose request does not come.
    """

    _waiting: asyncio.TimerHandle | None = None
    _received = 0
    """Bytes since the request began, but for those that came along with its beginning."""
    _body = 0
    """Of these, what is body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request's head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is too much of what is no body."""
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._received - self._body > HEAD_BYTES + self._body * LEAST_SHARE:
            self.send_400_response("The request's head is too long.")
        elif len(self.pipeline) > MAX_PIPELINED:
            self.send_400_response("Too many requests at once on this connection.")
        elif self._waiting is None and (self.cycle is None or self.cycle.response_complete):
            # It goes on after its answer: what comes has disarmed the timer of an idle connection.
            self._wait()

    def on_message_begin(self) -> None:
        """Wait for the rest of a request's head."""
        super().on_message_begin()
        self._received = self._body = 0
        self._wait()

    def on_body(self, body: bytes) -> None:
        """Count it."""
        self._body += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._wait_no_more()
        self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers, however the connection ended."""
        super().connection_lost(exc)
        self._wait_no_more()
        self._unset_keepalive_if_required()
