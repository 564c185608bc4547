"""What the leader tells the followers of queries that will not run."""

from __future__ import annotations

from dataclasses import dataclass

from privserve.errors import BY_CODE, QueryError

MAX_ID = 128
"""Characters of a query's id."""
MAX_REFUSALS = 256
"""That one order tells of: it has to fit into a frame, however long the ids are."""


@dataclass(frozen=True)
class Refusal:
    """What the leader tells the followers of a query that will not run."""

    id: str
    code: str
    """Of the error's class."""
    status: int
    reason: str

    def error(self) -> QueryError:
        """Return the exception for the waiting client."""
        return BY_CODE.get(self.code, QueryError)(self.reason, self.status)
