"""Connections to a party's HTTP front: what uvicorn leaves to be done.

uvicorn cancels the keep-alive timer of a connection that was closed, but not of one that was
reset, as every client does that closes without reading TLS' session tickets. The timer then
holds the connection, with asyncio's TLS buffer of 256 KB, for as long as an idle connection
would have been kept.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class ForgottenWhenLost(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, which nothing holds any more once its connection is lost."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the keep-alive timer, however the connection ended."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
