"""What the frame of a query has to hold, for one session."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from privserve.description import Description
from privserve.errors import InputError, StaleSession
from privserve.party.metadata import max_rows
from privserve.party.pending import Pending
from privserve.party.reasons import REPLACED
from privserve.query_frames import QUERY_HEAD

SESSION = slice(16, 32)
"""Where QUERY_HEAD has a session's id."""


@dataclass(frozen=True)
class QueryFormat:
    """What a query's frame has to hold, for one session."""

    session: bytes
    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    """Words per row of each input."""
    max_rows: int

    @classmethod
    def of(cls, session: str, description: Description) -> QueryFormat:
        """The format of a session's queries."""
        shapes = tuple(tuple(tensor["shape"]) for tensor in description["inputs"])
        sizes = tuple(math.prod(shape) for shape in shapes)
        return cls(bytes.fromhex(session), shapes, sizes, max_rows(description))

    @property
    def largest(self) -> int:
        """The bytes of the largest query."""
        return QUERY_HEAD.size + 8 * self.max_rows * sum(self.sizes)

    def read(self, payload: memoryview, client: str) -> Pending:
        """Return a frame's query; its shares are copies.

        Raises InputError, or StaleSession where it was encoded for another session.
        """
        if len(payload) < QUERY_HEAD.size:
            raise InputError("the frame is too short for a query")
        query_id, session, rows, milliseconds, masks = QUERY_HEAD.unpack_from(payload)
        if session != self.session:
            raise StaleSession(REPLACED)
        if masks:
            raise InputError("this party deals no masks ahead")
        if not 1 <= rows <= self.max_rows:
            raise InputError(f"a query holds 1 to {self.max_rows} rows")
        wanted = 8 * rows * sum(self.sizes)
        if len(payload) != QUERY_HEAD.size + wanted:
            raise InputError(f"a query of {rows} rows has {wanted} bytes of shares")
        words = np.frombuffer(bytes(payload[QUERY_HEAD.size :]), "<i8")
        inputs, start = [], 0
        for shape, size in zip(self.shapes, self.sizes, strict=True):
            inputs.append(words[start : start + rows * size].reshape(rows, *shape))
            start += rows * size
        deadline = time.monotonic() + milliseconds / 1000 if milliseconds else None
        return Pending(query_id.hex(), inputs, rows, client, deadline)


def session_of(payload: memoryview) -> str:
    """Return the id of the session that a query's frame names; raises InputError."""
    if len(payload) < QUERY_HEAD.size:
        raise InputError("the frame is too short for a query")
    return bytes(payload[SESSION]).hex()
