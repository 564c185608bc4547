"""The query lane on the wire: frames between a client and one compute party.

A lane is one TLS 1.3 connection to the party's HTTP port, which speaks PROTOCOL instead of HTTP
(ALPN). It stays, and carries many queries at a time in frames with the fields of the Open
Inference Protocol: an id, the model's version, tensors, an error. A frame is

    bytes of the payload (4) | kind (1) | 0 (3) | number (8) | payload        little-endian

The number is the client's, of the query that a frame is about; 0 where it is about none. Payloads:

    HELLO     client: JSON {"authorization", "model"}, first of all; "model" may be left out
    WELCOME   party: JSON, what it says of itself (as `/v2`, with the "models" that this client may
              ask) and of the wanted "model" (as `/v2/models/{model}`), or the "error" that says why
              not; of the only model there is where none is named
    ABOUT     client: nothing, or JSON {"model"}; the party answers with WELCOME, of this number
    QUERY     client: QUERY_HEAD, then this party's shares of all inputs, in the model's order
    ANSWER    party: ANSWER_HEAD, then its shares of all outputs, and of the guards' flags if any
    ERROR     party: JSON {"error", "code", "status"}; of number 0: the connection ends
    CANCEL    client: nothing; nobody waits for this query's answer any more
    PING      either: nothing; PONG, of this number, is the answer

Shares are int64, little-endian. MASKS are kept for first layers whose masks a client has fetched
ahead, and named by `masks` in QUERY_HEAD, which is 0 for now.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from privserve.errors import InputError

PROTOCOL = "privserve-query/1"
HEADER = struct.Struct("<IB3xQ")
QUERY_HEAD = struct.Struct("<16s16sIIQ")
"""id; session; rows; milliseconds in which an answer is of use, 0: always; masks."""
ANSWER_HEAD = struct.Struct("<Q")
"""rows"""
JSON_BYTES = 1 << 20
"""Of a payload that is JSON."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    WELCOME = 2
    ABOUT = 3
    QUERY = 4
    ANSWER = 5
    ERROR = 6
    CANCEL = 7
    PING = 8
    PONG = 9
    MASKS = 10


class Frame(NamedTuple):
    """One frame; its payload is valid until the next is read."""

    kind: int
    number: int
    payload: memoryview


def frame(kind: Kind, number: int, payload: bytes | memoryview = b"") -> bytes:
    """Return a frame's bytes."""
    return b"".join((HEADER.pack(len(payload), kind, number), payload))


def json_frame(kind: Kind, number: int, fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a frame whose payload is JSON."""
    return frame(kind, number, json.dumps(fields).encode())


def read_json(payload: memoryview) -> dict[str, Any]:
    """Return a payload's JSON object; raises InputError."""
    try:
        fields = json.loads(bytes(payload))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InputError("a frame's payload is not a JSON object")
    return fields


class FrameReader:
    """Cuts what one connection gives into frames."""

    def __init__(self, limit: int) -> None:
        """limit: the bytes of the largest payload that is taken."""
        self.limit = limit
        self._part = bytearray()
        self._size = HEADER.size

    @property
    def held(self) -> int:
        """How many bytes of a frame are here whose rest has not come."""
        return len(self._part)

    def frames(self, data: memoryview) -> Iterator[Frame]:
        """Yield the frames that `data` completes; raises InputError for one that is too long.

        What is left of `data` is kept.
        """
        while data:
            if self._part:
                missing = self._size - len(self._part)
                self._part += data[:missing]
                data = data[missing:]
                if len(self._part) < self._size:
                    return
                if self._size == HEADER.size:
                    self._size += self._announced(self._part)
                    if len(self._part) < self._size:
                        continue
                whole, self._part = memoryview(self._part), bytearray()
                self._size = HEADER.size
                yield _read(whole)
            elif len(data) < HEADER.size:
                self._part += data
                return
            else:
                size = HEADER.size + self._announced(data)
                if len(data) < size:
                    self._part += data
                    self._size = size
                    return
                whole, data = data[:size], data[size:]
                yield _read(whole)

    def _announced(self, header: bytearray | memoryview) -> int:
        size: int = HEADER.unpack_from(header)[0]
        if size > self.limit:
            raise InputError(
                f"a frame of {size} bytes was announced, more than the {self.limit} that are taken"
            )
        return size


def _read(whole: memoryview) -> Frame:
    _, kind, number = HEADER.unpack_from(whole)
    return Frame(kind, number, whole[HEADER.size :])
