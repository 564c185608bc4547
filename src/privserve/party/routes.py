"""Every call that a party's HTTP front takes: its path, its handler, who may make it, its statuses.

The front is made of this table, and so is the description of it that `/openapi.json` hands out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from privserve.party import about, infer, owners_calls

if TYPE_CHECKING:
    from privserve.party.party import Party

Handler = Callable[["Party", Request], Awaitable[Response]]


class Who(Enum):
    """Who may make a call."""

    ANYBODY = "anybody"
    CLIENT = "client"
    OWNER = "owner"


@dataclass(frozen=True)
class Call:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    gives: str
    """The schema of what it answers with."""
    refuses: tuple[int, ...] = ()
    """The statuses of its errors."""
    who: Who = Who.ANYBODY
    takes: str | None = None
    """The schema of its body; None: it has none."""
    status: int = 200
    """Of its answer."""

    @property
    def name(self) -> str:
        """What tells it from all others."""
        versioned = "_version" if "{version}" in self.path and "infer" not in self.path else ""
        return f"{self.handler.__name__}{versioned}"


MODEL, VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
OF_MODEL = (403, 404, 503)
TAKES_BODY = (400, 408, 413, 415)
SIGNED = (*TAKES_BODY, 401, 409)
INFER = (*TAKES_BODY, 401, 403, 404, 409, 429, 500, 503, 504)


def _of_model(suffix: str, handler: Handler, gives: str) -> list[Call]:
    """A call about the model, whose path may name the version that is meant."""
    return [Call("GET", path + suffix, handler, gives, OF_MODEL) for path in (MODEL, VERSION)]


def _stats(path: str) -> Call:
    refuses = (401, *OF_MODEL)
    handler = about.all_statistics if path == "/v2/models/stats" else about.statistics
    return Call("GET", path, handler, "Statistics", refuses, Who.CLIENT)


def _owners(
    method: str,
    path: str,
    handler: Handler,
    takes: str | None = None,
    status: int = 200,
    also: tuple[int, ...] = (),
) -> Call:
    return Call(method, path, handler, "Status", (*SIGNED, *also), Who.OWNER, takes, status)


CALLS: list[Call] = [
    Call("GET", "/v2", about.server_metadata, "Server"),
    Call("GET", "/v2/health/live", about.live, "Live"),
    Call("GET", "/v2/health/ready", about.ready, "Ready", (503,)),
    _stats("/v2/models/stats"),
    *_of_model("", about.model_metadata, "Model"),
    *_of_model("/ready", about.model_ready, "Ready"),
    *_of_model("/config", about.configuration, "Configuration"),
    _stats(f"{MODEL}/stats"),
    _stats(f"{VERSION}/stats"),
    Call("POST", f"{MODEL}/infer", infer.infer_any, "Error", OF_MODEL, status=409),
    Call("POST", f"{VERSION}/infer", infer.infer, "Answer", INFER, Who.CLIENT, "Query"),
    Call(
        "POST",
        "/v2/repository/index",
        about.repository_index,
        "Index",
        TAKES_BODY,
        takes="IndexRequest",
    ),
    _owners("POST", "/v2/repository/models/{model}/load", owners_calls.load, "Load", 202, (503,)),
    _owners("POST", "/v2/repository/models/{model}/unload", owners_calls.unload, also=(404,)),
    _owners("POST", "/privserve/switch", owners_calls.switch, also=(503,)),
    _owners("POST", "/privserve/serve", owners_calls.serve, "Serve"),
    _owners("POST", "/privserve/extend", owners_calls.extend, "Extend"),
    _owners("POST", "/privserve/stop", owners_calls.stop),
    _owners("GET", "/privserve/status", owners_calls.status),
    _owners("POST", "/privserve/clients", owners_calls.clients, "Clients"),
    _owners("POST", "/privserve/revoked", owners_calls.revoked, "Revoked"),
    Call("GET", "/privserve/revoked", about.list_revoked, "Pem"),
]

REFUSED: dict[str, Handler] = {
    "/v2/systemsharedmemory/{rest:path}": about.no_shared_memory,
    "/v2/cudasharedmemory/{rest:path}": about.no_shared_memory,
    "/v2/trace/setting": about.no_settings,
    "/v2/models/{model}/trace/setting": about.no_settings,
    "/v2/logging": about.no_settings,
}
"""Paths of Triton's extensions that no party has, with what says so whatever the method."""
