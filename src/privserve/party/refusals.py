"""What the leader tells the followers of queries that will not run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from privserve.errors import BY_CODE, QueryError

MAX_ID = 128
"""Characters of a query's id."""
MAX_REFUSALS = 256
"""That one order tells of: it has to fit into a frame, however long the ids are."""
MAX_REMEMBERED = 4096


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


class Refused:
    """What the leader refused: kept for shares that come late, and until followers are told."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Refusal] = OrderedDict()
        self._untold: list[Refusal] = []

    def add(self, refusal: Refusal) -> None:
        """Keep a refusal; the oldest is forgotten where there are too many."""
        self._known[refusal.id] = refusal
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        self._untold.append(refusal)

    def find(self, query_id: str) -> Refusal | None:
        """Return why a query was refused, if it was."""
        return self._known.get(query_id)

    def tell_again(self, refusal: Refusal) -> None:
        """Have the followers told once more: one of them had a share only now."""
        self._untold.append(refusal)

    def take(self) -> list[Refusal]:
        """Return what followers have not been told, as much as an order holds."""
        taken, self._untold = self._untold[:MAX_REFUSALS], self._untold[MAX_REFUSALS:]
        return taken

    @property
    def is_told(self) -> bool:
        """Whether followers were told of all."""
        return not self._untold

    def tell_nobody(self) -> None:
        """Forget what followers were not told: they have lost those queries too."""
        self._untold.clear()
