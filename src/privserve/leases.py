"""How a limit of rows is split over cells, exactly: each cell is leased rows, in pieces.

A *lease* is how many rows a cell's session may answer at most, since it is served. The owner's
program makes it larger before it is used up, and takes rows back that a cell has no use for where
another one lacks them. Of all rows each is in one place: answered in a session that is over,
leased, or in the *pool*. What may have been answered counts as answered: a lease that is made
larger counts from before the cell is told, one that is made smaller until the cell has said so,
and that of a session which is over is given back as far as it provably was not used.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

FIRST_ROWS = 64
PIECE_REPORTS = 8
"""A cell is leased about what it answers between this many reports."""


@dataclass(frozen=True)
class Heard:
    """What a cell's leader says of its lease."""

    rows: int
    """How many it has, as the leader knows."""
    answered: int
    """Rows, since it is served."""
    begun: int
    """Rows of queries of which some run."""
    spare: int
    """Rows that it may answer beyond those that wait for it; where more wait, below 0."""
    short: int
    """Rows that the first query lacks, where nothing runs since it waits for them; else 0."""


@dataclass(frozen=True)
class Order:
    """What a cell's leader is to be told."""

    rows: int
    """Its lease."""
    final: bool
    """Whether there is no more: what does not fit is refused."""
    number: int
    """Of two orders the one with the larger number counts, whichever comes last."""


@dataclass
class _Cell:
    lease: int = 0
    answered: int = 0
    spare: int = 0
    short: int = 0
    begun: int = 0
    pace: int = 0
    """Rows that it answered between two reports, lately."""
    number: int = 0
    is_open: bool = False
    """Whether it has a session that is served."""
    is_final: bool = False

    @property
    def idle(self) -> int:
        """Rows of its lease of which none of the queries there has any use now."""
        if self.spare > 0:
            return self.spare
        return max(0, self.lease - self.answered - self.begun) if self.short else 0


@dataclass
class Leases:
    """A limit of rows, and who may answer how many of them. Thread-safe."""

    limit: int
    cells: int
    over: int = 0
    """Rows of sessions that are over, which were answered or may have been."""
    _cells: list[_Cell] = field(init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._cells = [_Cell() for _ in range(self.cells)]

    @property
    def pool(self) -> int:
        """Rows that no cell may answer yet."""
        return self.limit - self.over - sum(cell.lease for cell in self._cells)

    @property
    def total(self) -> int:
        """Rows that were answered, or may have been in sessions that are over."""
        with self._lock:
            return self.over + sum(cell.answered for cell in self._cells)

    @property
    def is_reached(self) -> bool:
        """Whether all rows are answered."""
        return self.total >= self.limit

    def begin(self, number: int) -> int:
        """Return how many rows a session of this cell may answer at first; 0: there are none."""
        with self._lock:
            cell = self._cells[number]
            if not cell.is_open and self.pool:
                cell.lease = self._piece(cell)
                cell.is_open, cell.is_final, cell.number = True, False, 0
                cell.answered = cell.begun = cell.short = cell.pace = 0
                cell.spare = cell.lease
            return cell.lease

    def _piece(self, cell: _Cell) -> int:
        """What a cell needs for some reports, but a part of the pool that leaves others some.

        What a cell has when it dies may be lost, so that it is no more than that.
        """
        most = max(1, self.pool // (2 * self.cells))
        return min(self.pool, most, max(FIRST_ROWS, PIECE_REPORTS * cell.pace))

    def settle(self, number: int, answered: int | None) -> int:
        """End a cell's session, which answered this many rows at most; None: that is not known.

        Returns how many rows count as answered of which nobody knows.
        """
        with self._lock:
            cell = self._cells[number]
            known = max(cell.answered, cell.lease if answered is None else answered)
            known = min(cell.lease, known)
            unknown = known - cell.answered if answered is None else 0
            self.over += known
            self._cells[number] = _Cell()
            return unknown

    def report(self, number: int, heard: Heard) -> Order | None:
        """Take what a cell's leader says; returns what it is to be told, if anything.

        `confirm` with its answer has to follow, before anything else is asked of this leader.
        """
        with self._lock:
            cell = self._cells[number]
            if not cell.is_open:
                return None
            # A leader that says more than it may does not make others answer less.
            before, most = cell.answered, min(heard.answered, cell.lease)
            cell.answered = max(before, most)
            cell.pace = max(cell.pace // 2, cell.answered - before)
            cell.begun, cell.spare, cell.short = heard.begun, heard.spare, heard.short
            if self.is_reached:
                return None if cell.is_final else self._order(cell, cell.lease, final=True)
            if heard.rows != cell.lease:  # it did not get the last order
                return self._order(cell, cell.lease)
            if self.pool:
                return self._topped_up(cell)
            if rows := self._given_back(number):
                return self._order(cell, cell.lease - rows)
            if cell.short and not cell.is_final and self._is_last(number):
                return self._order(cell, cell.lease, final=True)
            return None

    def _topped_up(self, cell: _Cell) -> Order | None:
        left, wanted = cell.lease - cell.answered, max(cell.short, -cell.spare, 0)
        piece = self._piece(cell)
        piece = piece if 2 * left <= piece else 0
        rows = min(self.pool, max(piece, wanted))
        if not rows:
            return None
        cell.lease += rows  # from now on, whether or not it hears of it
        return self._order(cell, cell.lease)

    def _given_back(self, number: int) -> int:
        """Rows that another cell lacks, and this one has and does not use."""
        cell = self._cells[number]
        for other, lacking in enumerate(self._cells):
            if lacking.short and other != number and not (cell.short and number < other):
                return min(cell.idle, lacking.short)
        return 0

    def _is_last(self, number: int) -> bool:
        """Whether a cell that lacks rows can have none: every other one has used up its own."""
        others = [cell for other, cell in enumerate(self._cells) if other != number]
        return not any(cell.begun or cell.idle or cell.spare > 0 for cell in others) and all(
            cell.lease - cell.answered == 0 or cell.short for cell in others
        )

    def _order(self, cell: _Cell, rows: int, *, final: bool = False) -> Order:
        cell.number += 1
        return Order(rows, final, cell.number)

    def confirm(self, number: int, order: Order, rows: int) -> None:
        """Note that a leader has taken an order, and the lease that it says to have now."""
        with self._lock:
            cell = self._cells[number]
            cell.is_final = order.final
            if order.rows <= rows <= cell.lease:  # what it has begun it keeps
                cell.lease = max(rows, cell.answered)


@dataclass(frozen=True)
class Lease:
    """One cell's part of a limit."""

    leases: Leases
    number: int

    @property
    def is_over(self) -> bool:
        """Whether the whole limit is reached."""
        return self.leases.is_reached

    def begin(self) -> int:
        """See `Leases.begin`."""
        return self.leases.begin(self.number)

    def settle(self, answered: int | None) -> int:
        """See `Leases.settle`."""
        return self.leases.settle(self.number, answered)

    def report(self, heard: Heard) -> Order | None:
        """See `Leases.report`."""
        return self.leases.report(self.number, heard)

    def confirm(self, order: Order, rows: int) -> None:
        """See `Leases.confirm`."""
        self.leases.confirm(self.number, order, rows)
