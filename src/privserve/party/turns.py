"""Whose rows run next: clients take turns, and a large query runs in pieces.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) with a quantum of QUANTUM rows: each
client that waits gets as many rows of a batch in turn, for as long as there is room. A client with
a thousand rows fills what the others leave, and holds none of them up for more than a batch.

How many rows a batch has is one of few numbers: an engine binds a program for each number of rows
that it meets, and keeps a handful of those.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from privserve.party.pending import Pending

QUANTUM = 32
EXACT = 6
"""Up to here a batch has as many rows as there are; beyond, 2^k or 3/2 of that, or the most."""


class Admission(Enum):
    """What is to be done with a query whose turn it is."""

    RUN = "its rows are taken"
    LATER = "its client waits for what it has in this batch"
    REFUSED = "it does not wait any more"


class Piece(NamedTuple):
    """Rows of a query that run together."""

    query: Pending
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.stop - self.start


def batch_size(rows: int, most: int) -> int:
    """Return how many of these rows run in the next batch, which has `most` at most."""
    rows = min(rows, most)
    if rows <= EXACT or rows == most:
        return rows
    power: int = 1 << (rows.bit_length() - 1)
    return power + power // 2 if rows >= power + power // 2 else power


class Turns:
    """Queries that are complete, by client and in their order."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Pending]] = OrderedDict()
        """Whose turn it is comes first."""
        self.rows = 0
        """How many rows wait in all."""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, query: Pending) -> None:
        """Have a query wait behind its client's others."""
        self._lines.setdefault(query.client, deque()).append(query)
        self.rows += query.rows - query.taken

    def discard(self, query: Pending) -> None:
        """Have a query wait no more; nothing happens where it does not."""
        line = self._lines.get(query.client, ())
        if query in line:
            self.rows -= query.rows - query.taken
            self._lines[query.client].remove(query)
            self._leave(query.client)

    def take(self, most: int, admit: Callable[[Pending], Admission]) -> list[Piece]:
        """Return the rows of the next batch, `most` at most; none where nothing may run.

        admit: what is to be done with a query none of whose rows were taken yet. One that it
        refuses it has to `discard`.
        """
        left, waiting = batch_size(self.rows, most), deque(self._lines)
        taken: dict[str, tuple[Pending, int]] = {}
        while left and waiting:
            client = waiting.popleft()
            got = self._turn(client, min(left, QUANTUM), admit, taken)
            left -= got
            if got and client in self._lines:
                self._lines.move_to_end(client)
                waiting.append(client)
        return [Piece(query, start, query.taken) for query, start in taken.values()]

    def _turn(
        self,
        client: str,
        most: int,
        admit: Callable[[Pending], Admission],
        taken: dict[str, tuple[Pending, int]],
    ) -> int:
        """Take a client's next rows, `most` at most; how many that are."""
        left = most
        while left and client in self._lines:
            query = self._lines[client][0]
            if not query.taken:
                admission = admit(query)
                if admission is Admission.LATER:
                    break
                if admission is Admission.REFUSED:
                    continue
            taken.setdefault(query.id, (query, query.taken))
            rows = min(left, query.rows - query.taken)
            query.taken += rows
            self.rows -= rows
            left -= rows
            if query.taken == query.rows:
                self._lines[client].popleft()
                self._leave(client)
        return most - left

    def _leave(self, client: str) -> None:
        if not self._lines[client]:
            del self._lines[client]
