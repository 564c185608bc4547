"""A party's HTTP front, made of the table in `routes`.

It moves shares between HTTP bodies and the party, and knows no protocol.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from privserve.party import openapi
from privserve.party.json_answers import ERRORS, Json, log_no_value
from privserve.party.routes import CALLS, REFUSED, Call, Handler

if TYPE_CHECKING:
    from privserve.party.party import Party


def create_app(party: Party) -> ASGIApp:
    """Return the ASGI application of `party`."""
    handlers: dict[str, dict[str, Handler]] = {}
    for call in [*CALLS, OPENAPI]:
        handlers.setdefault(call.path, {})[call.method] = call.handler
    routes = [
        Route(path, partial(_answered, party, by_method), methods=list(by_method))
        for path, by_method in handlers.items()
    ]
    routes += [
        Route(path, partial(handler, party), methods=ANY) for path, handler in REFUSED.items()
    ]
    app = Starlette(routes=routes, exception_handlers=ERRORS)
    # A redirection is made of whatever host and query were sent; no path of ours needs one.
    app.router.redirect_slashes = False
    return log_no_value(app)


ANY = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def _answered(party: Party, by_method: dict[str, Handler], request: Request) -> Response:
    """Have a request answered by the handler of its method; of HEAD, by that of GET."""
    method = "GET" if request.method == "HEAD" else request.method
    return await by_method[method](party, request)


async def openapi_document(party: Party, request: Request) -> Response:
    """Describe all calls of this front (OpenAPI 3.1)."""
    return Json(document())


OPENAPI = Call("GET", "/openapi.json", openapi_document, "Document")


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document of a party's front; JSON-able."""
    return openapi.document([*CALLS, OPENAPI])
