"""Where a party is scraped: plain HTTP on a port of its own, `GET /metrics` and nothing else.

It is not encrypted and asks nobody who he is, so it listens on this host alone unless the operator
says otherwise: whoever reaches it learns the names of models and clients and how much each asks.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from privserve.party.connections import ForgottenWhenLost
from privserve.party.json_answers import ERRORS, log_no_value
from privserve.party.metrics import registry_of

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_CONNECTIONS = 16
IDLE_SECONDS = 75
"""Prometheus asks every 15 to 60 s, and keeps its connection."""


class MetricsDoor:
    """The server of one party's metrics, on the event loop that opened it."""

    def __init__(self, server: asyncio.Server, state: ServerState) -> None:
        self._server = server
        self._state = state

    @classmethod
    async def open(cls, party: Party, sock: socket.socket) -> MetricsDoor:
        """Listen on a socket that is bound."""
        registry, state = registry_of(party), ServerState()

        async def metrics(request: Request) -> Response:
            write, kind = choose_encoder(request.headers.get("Accept", ""))
            return Response(
                await asyncio.to_thread(write, registry), headers={"Content-Type": kind}
            )

        app = Starlette(routes=[Route("/metrics", metrics)], exception_handlers=ERRORS)
        settings = uvicorn.Config(
            log_no_value(app),
            http=ForgottenWhenLost,
            log_config=None,
            access_log=False,
            ws="none",
            lifespan="off",
            timeout_keep_alive=IDLE_SECONDS,
            limit_concurrency=MAX_CONNECTIONS,
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
