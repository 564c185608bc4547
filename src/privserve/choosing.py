"""Which cell a client asks, and where it goes when that one fails.

Of two cells at random the one with fewer queries of this client is asked: that spreads load nearly
as evenly as looking at all of them (Mitzenmacher, IEEE TPDS 2001), and nobody has to be asked for
it. A query that fails goes on to the cells that it has not been at, split anew.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from privserve.client_cell import ClientCell
from privserve.errors import (
    ClusterError,
    DeadlinePassed,
    InputError,
    LimitReached,
    PrivserveError,
    QueryError,
)

_DRAW = secrets.SystemRandom()

ELSEWHERE = (401, 404, 409, 429)
"""What a cell refuses with that another one may answer: an unknown client or model, an older
session, a limit; and whatever is above 499."""


def is_elsewhere(error: PrivserveError) -> bool:
    """Whether another cell may answer what one has failed with this."""
    if isinstance(error, InputError | DeadlinePassed):
        return False
    if isinstance(error, QueryError):
        return error.status in ELSEWHERE or error.status >= 500
    return isinstance(error, ClusterError)


def _says(error: PrivserveError) -> int:
    if isinstance(error, LimitReached):
        return 1
    return 2 if isinstance(error, QueryError) else 0


class Trip:
    """One query's way through the cells."""

    def __init__(self, cells: Sequence[ClientCell], seconds: float) -> None:
        """seconds: that it may take in all."""
        self._left = list(cells)
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._error: PrivserveError | None = None

    @property
    def seconds(self) -> float:
        """How much time is left."""
        if self._error is None:
            return self._seconds
        return max(0.001, self._deadline - time.monotonic())

    def next(self) -> ClientCell:
        """Return the cell to ask now, of those that were not asked yet."""
        if len(self._left) == 1:
            return self._left[0]
        now = time.monotonic()
        well = [cell for cell in self._left if cell.avoided_until <= now]
        if not well:
            return min(self._left, key=lambda cell: cell.avoided_until)
        two = _DRAW.sample(well, min(2, len(well)))
        cell = min(two, key=lambda cell: cell.pending)
        cell.tried()
        return cell

    def failed(self, cell: ClientCell, error: PrivserveError) -> PrivserveError | None:
        """Note that a cell failed; returns what the query comes to, None: it goes on elsewhere.

        Of several errors a refusal says more than that somebody was not there; and what may pass
        more than a limit, which another cell may not have reached.
        """
        if not is_elsewhere(error):
            return error
        cell.fared(well=False)
        self._left.remove(cell)
        if self._error is None or _says(error) >= _says(self._error):
            self._error = error
        is_late = time.monotonic() >= self._deadline
        return self._error if is_late or not self._left else None
