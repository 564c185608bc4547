"""Connections to a party's HTTP front: what uvicorn leaves to be done.

It waits for ever for a request's head. Whoever connects has HEAD_SECONDS for each.

uvicorn cancels the keep-alive timer of a connection that was closed, but not of one that was
reset, as every client does that closes without reading TLS' session tickets. The timer then
holds the connection, with asyncio's TLS buffer of 256 KB, for as long as an idle connection
would have been kept.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0


class ForgottenWhenLost(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which nothing holds any more once its connection is lost.

    Nor does it hold one whose request does not come.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request's head."""
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        """Wait for the rest of a request's head."""
        super().on_message_begin()
        self._wait()

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
