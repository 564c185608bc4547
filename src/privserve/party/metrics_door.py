"""Where a party is scraped: plain HTTP on a port of its own, `GET /metrics` and nothing else.

It is not encrypted and asks nobody who he is, so it listens on this host alone unless the operator
says otherwise: whoever reaches it learns the names of models and clients and how much each asks.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from privserve.party.json_answers import ERRORS, log_no_value
from privserve.party.metrics import registry_of
from privserve.party.plain_door import PlainDoor

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_CONNECTIONS = 16
IDLE_SECONDS = 75
"""Prometheus asks every 15 to 60 s, and keeps its connection."""


async def open_metrics(party: Party, sock: socket.socket) -> PlainDoor:
    """Serve one party's metrics on a socket that is bound."""
    registry = registry_of(party)

    async def metrics(request: Request) -> Response:
        write, kind = choose_encoder(request.headers.get("Accept", ""))
        return Response(await asyncio.to_thread(write, registry), headers={"Content-Type": kind})

    app = Starlette(routes=[Route("/metrics", metrics)], exception_handlers=ERRORS)
    return await PlainDoor.open(log_no_value(app), sock, MAX_CONNECTIONS, IDLE_SECONDS)
