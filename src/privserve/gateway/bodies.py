"""A request's body off the wire: no longer than allowed, also once it is unpacked."""

from __future__ import annotations

import asyncio
import zlib

from starlette.types import Receive

from privserve.errors import InputError, QueryError

BODY_SECONDS = 60.0
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
"""What zlib calls either."""
ENCODINGS = ("gzip", "deflate")


class ClientGone(Exception):
    """The application left before it had its answer."""


async def read_body(
    receive: Receive, announced: int | None, encoding: str, limit: int
) -> bytes | bytearray:
    """Return the body, unpacked.

    announced: what Content-Length says; encoding: what Content-Encoding says; limit: bytes, packed
    and unpacked. Raises QueryError (408, 413, 415), InputError for what cannot be unpacked,
    ClientGone.
    """
    if announced is not None and announced > limit:
        raise _too_long(limit)
    if encoding and encoding not in ENCODINGS:
        raise QueryError(
            f"the body's encoding {encoding!r} is not known here; send {' or '.join(ENCODINGS)}, "
            "or the plain body",
            415,
        )
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read(receive, limit)
    except TimeoutError:
        raise QueryError(f"the body did not arrive within {BODY_SECONDS:g} s", 408) from None
    return _unpacked(body, limit) if encoding else body


async def _read(receive: Receive, limit: int) -> bytes | bytearray:
    whole: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part, is_last = message.get("body", b""), not message.get("more_body", False)
        if len(whole) + len(part) > limit:
            raise _too_long(limit)
        if is_last and not whole:
            return bytes(part)
        if not whole:
            whole = bytearray()
        whole += part
        if is_last:
            return whole


def _unpacked(body: bytes | bytearray, limit: int) -> bytes:
    """The body out of gzip, zlib, or the bare stream that some take "deflate" for."""
    for window in (GZIP_OR_ZLIB, -zlib.MAX_WBITS):
        unpacking = zlib.decompressobj(window)
        try:
            plain = unpacking.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(plain) > limit:
            raise _too_long(limit)
        if not unpacking.eof or unpacking.unused_data:
            break
        return plain
    raise InputError("the body is not what its Content-Encoding says, or is cut off")


def _too_long(limit: int) -> QueryError:
    return QueryError(
        f"the body is longer than the {limit} bytes that a request to this model may have; send "
        "fewer rows at a time",
        413,
    )
