"""The model owner's calls to a party: each is signed, and its body read once that was checked."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from privserve import oip
from privserve.credentials import Entry, checked_limits, read_entries
from privserve.description import read_description
from privserve.engines import read_options
from privserve.errors import InputError, StaleSession
from privserve.owner_calls import Permission
from privserve.party.bodies import BODY_SECONDS, json_object, read_body
from privserve.party.json_answers import Json
from privserve.party.queries import MAX_ID
from privserve.party.session import SessionSpec

if TYPE_CHECKING:
    from privserve.party.party import Party

MAX_MODEL_BYTES = 8 << 30
MAX_CLIENTS_BYTES = 8 << 20
MAX_SERVE_BYTES = 64 << 10
MODEL_SECONDS = 3600.0
"""A model may come over a slow line."""


async def load(party: Party, request: Request) -> Response:
    """Begin a session with a share of a model; the dealer gets the description only."""
    body = await _signed_body(party, request, MAX_MODEL_BYTES, MODEL_SECONDS)
    length, model = request.headers.get(oip.HEADER_LENGTH), request.path_params["model"]
    await asyncio.to_thread(_load, party, body, length, model)
    return Json(party.status(), 202)


async def unload(party: Party, request: Request) -> Response:
    """End the session; the shares are forgotten."""
    await _signed_body(party, request, 0)
    await asyncio.to_thread(party.unload)
    return Json(party.status())


async def serve(party: Party, request: Request) -> Response:
    """Answer the next `num_requests` queries; null is no limit. Leader only."""
    message = json_object(await _signed_body(party, request, MAX_SERVE_BYTES))
    count = message.get("num_requests")
    if count is not None and (type(count) is not int or count < 1):
        raise InputError("'num_requests' must be a positive whole number or null")
    party.leader().queue.serve(count)
    return Json(party.status())


async def stop(party: Party, request: Request) -> Response:
    """Refuse further queries; the model stays shared. Leader only."""
    await _signed_body(party, request, 0)
    party.leader().queue.stop()
    return Json(party.status())


async def status(party: Party, request: Request) -> Response:
    """Describe the state of party and session, and what the queries cost."""
    await _signed_body(party, request, 0)
    return Json(party.status())


async def clients(party: Party, request: Request) -> Response:
    """Know other clients from now on; queries that wait are judged when their turn comes."""
    body = await _signed_body(party, request, MAX_CLIENTS_BYTES)
    party.accounts.know(await asyncio.to_thread(_entries, body))
    return Json(party.status())


async def revoked(party: Party, request: Request) -> Response:
    """Take the authority's list of revoked certificates, from the next connection on."""
    message = json_object(await _signed_body(party, request, MAX_CLIENTS_BYTES))
    listed = _text(message, "revoked", MAX_CLIENTS_BYTES, lines=True)
    await asyncio.to_thread(party.take_revoked, listed)
    return Json(party.status())


def _permission(party: Party, request: Request) -> Permission:
    """What the owner signed of this call, its session compared; raises OwnerOnly."""
    target = request.scope["raw_path"].decode("latin-1")
    if query := request.scope["query_string"]:
        target += f"?{query.decode('latin-1')}"
    header = request.headers.get("Authorization", "")
    permission = party.owner.check(header, request.method, target)
    session = party.session
    if permission.session and (session is None or session.spec.id != permission.session):
        raise StaleSession("another model was shared here since; this call is about that one")
    return permission


async def _signed_body(
    party: Party, request: Request, limit: int, seconds: float = BODY_SECONDS
) -> bytearray:
    """The body of a call that the owner signed; read only after the signature was checked."""
    permission = _permission(party, request)
    body = (await read_body(request, limit, seconds)).data
    permission.check(await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest()))
    return body


def _load(party: Party, body: bytearray, length: str | None, model: str) -> None:
    """Read the body of a call that loads `model`, all of it, before anything is changed."""
    message, shares = oip.parse_message(body, length, "inputs")
    if party.role == "dealer" and shares:
        raise InputError("the dealer must never be sent a share")
    spec = SessionSpec(
        id=_text(message, "session", MAX_ID),
        model=model,
        engine=_text(message, "engine", MAX_ID),
        options=read_options(message.get("options")),
        description=read_description(message.get("description")),
        shares=shares,
    )
    if not model.isprintable():
        raise InputError("a model's name must be printable")
    entries, everybody = read_entries(message.get("clients")), message.get("everybody")
    anonymous = None if everybody is None else checked_limits(_object(message, "everybody"))
    party.accounts.know(entries)
    party.accounts.let_everybody_in(anonymous)
    party.load(spec)


def _entries(body: bytearray) -> list[Entry]:
    return read_entries(json_object(body).get("clients"))


def _text(message: dict[str, Any], key: str, most: int, *, lines: bool = False) -> str:
    """A text of 1 to `most` printable characters; or, of several `lines`, of ASCII ones."""
    value = message.get(key)
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= most
        or not (value.isascii() if lines else value.isprintable())
    ):
        raise InputError(f"'{key}' must be a text of at most {most} printable characters")
    return value


def _object(message: dict[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict):
        raise InputError(f"'{key}' must be an object")
    return value
