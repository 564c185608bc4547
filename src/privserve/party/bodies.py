"""Requests' bodies: read within bounds of bytes and time, decompressed within them, and parsed."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request

from privserve.errors import InputError, QueryError
from privserve.party.json_answers import UnsupportedMedia

BODY_SECONDS = 60.0
THREAD_BYTES = 64 << 10
"""What is larger is read, and written, outside the event loop."""
MEDIA_TYPES = ("application/json", "application/octet-stream")
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""What zlib calls the content encodings that a body may have; "deflate" is the format of zlib."""
SPARE_BYTES = 64
"""What is compressed may be longer than before by these, and by a thousandth."""


@dataclass(frozen=True)
class Body:
    """What came, as it came."""

    data: bytearray
    limit: int
    """Of the bytes that it may have when it is decompressed."""
    encoding: str = ""
    """A key of WINDOW_BITS; empty where the body is not compressed."""

    @property
    def is_large(self) -> bool:
        """Whether it is to be read outside the event loop."""
        return bool(self.encoding) or len(self.data) > THREAD_BYTES

    def plain(self) -> bytes | bytearray:
        """Return the body decompressed; QueryError 413 where it is longer than it may be.

        No more than `limit` bytes are ever made of it, whatever it would be in full.
        """
        if not self.encoding:
            return self.data
        machine = zlib.decompressobj(WINDOW_BITS[self.encoding])
        try:
            plain = machine.decompress(self.data, self.limit + 1)
        except zlib.error:
            raise InputError(f"the body is not what its encoding, {self.encoding}, says") from None
        if len(plain) > self.limit:
            raise _too_long(self.limit)
        if not machine.eof or machine.unused_data:
            raise InputError(f"the body is not one whole of its encoding, {self.encoding}")
        return plain


async def read_body(
    request: Request, limit: int, seconds: float = BODY_SECONDS, *, is_packed: bool = False
) -> Body:
    """Read a body of at most `limit` bytes within `seconds`.

    is_packed: it may be compressed; it has at most `limit` bytes when it is not. Raises QueryError
    413 and 408, UnsupportedMedia.
    """
    encoding = _encoding(request, WINDOW_BITS if is_packed else ())
    if limit:
        _check_media_type(request)
    most = limit + (limit >> 10) + SPARE_BYTES if encoding else limit
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_long(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise _too_long(limit)
    except TimeoutError:
        raise QueryError(f"the body did not arrive within {seconds:g} s", 408) from None
    except ClientDisconnect:
        raise QueryError("the client left before its request was complete", 400) from None
    return Body(body, limit, encoding)


def _too_long(limit: int) -> QueryError:
    return QueryError(f"the body is longer than the {limit} bytes that this call takes", 413)


def _encoding(request: Request, known: Collection[str]) -> str:
    """The body's content encoding, one of `known`, or "" for none; raises UnsupportedMedia."""
    named = ",".join(request.headers.getlist("Content-Encoding")).strip().lower()
    if named in ("", "identity"):
        return ""
    if named in known:
        return named
    takes = "gzip, deflate" if known else "identity"
    raise UnsupportedMedia(
        f"a body of this call may not be encoded as {named[:100]!r}; known here: {takes}",
        {"Accept-Encoding": takes},
    )


def _check_media_type(request: Request) -> None:
    """Raise UnsupportedMedia for what names itself something else than a message."""
    named = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if named and named not in MEDIA_TYPES:
        takes = ", ".join(MEDIA_TYPES)
        raise UnsupportedMedia(
            f"a body of this call may not be of the type {named[:100]!r}; known here: {takes}",
            {"Accept": takes},
        )


def json_object(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object of a body, an empty one of an empty body; raises InputError."""
    try:
        message = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InputError("the body is not a JSON object")
    return message
