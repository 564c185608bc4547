"""A port of plain HTTP that a party may have besides its own: for metrics, or for browsers.

It is not encrypted. What goes through it is said where it is opened.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from privserve.party.connections import ForgottenWhenLost


class PlainDoor:
    """The server of one application, on the event loop that opened it."""

    def __init__(self, server: asyncio.Server, state: ServerState) -> None:
        self._server = server
        self._state = state

    @classmethod
    async def open(
        cls, app: ASGIApp, sock: socket.socket, connections: int, idle_seconds: int
    ) -> PlainDoor:
        """Listen on a socket that is bound; idle_seconds: for which a connection is kept."""
        state = ServerState()
        settings = uvicorn.Config(
            app,
            http=ForgottenWhenLost,
            log_config=None,
            access_log=False,
            ws="none",
            lifespan="off",
            timeout_keep_alive=idle_seconds,
            limit_concurrency=connections,
        )
        settings.load()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: ForgottenWhenLost(settings, state, {}), sock=sock)
        return cls(server, state)

    def close(self) -> None:
        """Take no connection any more, and break those that there are."""
        self._server.close()
        for connection in list(self._state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
