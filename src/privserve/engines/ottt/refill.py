"""Keeping a compute party's pool of packs full, ahead of queries and out of their way.

Packs are made when few enough are left (`Pool.room`), a message of the dealer's at a time, by a
thread that runs when the cores have nothing better to do: a query that it held up would wait for
the scheduler's next tick, which is longer than the query takes. Where that is not enough, since
queries come faster or other programs keep the cores busy, a second thread makes what is needed
without such manners; and for a while all of it, where the first one got no time for a message. They
take turns, so that all parties' streams stay in step. The dealer is told who asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from privserve.engines.ottt.dealer import CREDIT
from privserve.engines.ottt.layout import PackLayout, PackPiece
from privserve.engines.ottt.ops.opening import AheadStep, received_words
from privserve.engines.ottt.pool import Pool
from privserve.engines.ottt.spare_time import step_back
from privserve.engines.ottt.stats import Stats
from privserve.mesh import Mesh
from privserve.prg import Prg

CLOSE_SECONDS = 10.0
STARVED_SECONDS = 0.1
"""A message takes a millisecond; whoever takes this long for one finds no spare time."""
RUSH_SECONDS = 10.0


class Refill:
    """Fills one pool until it is closed."""

    def __init__(
        self,
        pool: Pool,
        layout: PackLayout,
        ahead: Mapping[int, AheadStep],
        stream: Prg,
        dealer: Mesh,
        stats: Stats,
    ) -> None:
        """ahead: by index of an op; stream: this party's words of all packs, one by one."""
        self._pool = pool
        self._layout = layout
        self._ahead = ahead
        self._stream = stream
        self._dealer = dealer
        self._stats = stats
        self._leads = dealer.rank == 0
        self._making = threading.Lock()
        self._rushed_until = 0.0
        self._urgent = threading.Thread(target=self._fill_urgently, name="packs-now", daemon=True)
        self._spare = threading.Thread(target=self._fill_in_spare_time, name="packs", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._urgent.start()
        self._spare.start()

    def join(self) -> None:
        """Wait for the end, once the pool is closed."""
        self._spare.join(CLOSE_SECONDS)

    def _fill_in_spare_time(self) -> None:
        step_back()
        self._guarded(self._make_ahead)
        self._urgent.join(CLOSE_SECONDS)
        if self._leads:
            self._guarded(lambda: self._dealer.send(self._dealer.n, CREDIT.pack(0, True)))

    def _make_ahead(self) -> None:
        least, low = max(1, self._pool.slots // 4), self._pool.slots // 2
        message = self._layout.packs_per_message
        while room := self._pool.room(least, low):
            with self._making:
                begun = time.monotonic()
                self._make(min(room, message, self._pool.free()), is_urgent=False)
            if time.monotonic() - begun > STARVED_SECONDS * len(self._layout.pieces):
                self._rushed_until = time.monotonic() + RUSH_SECONDS
                self._pool.rush(True)

    def _fill_urgently(self) -> None:
        self._guarded(self._make_now)

    def _make_now(self) -> None:
        while room := self._pool.shortage():
            with self._making:  # meanwhile the other thread may have made some
                self._make(min(room, self._pool.free()), is_urgent=True)
            if self._rushed_until < time.monotonic():
                self._pool.rush(False)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as failure:
            self._pool.fail(failure)

    def _make(self, count: int, *, is_urgent: bool) -> None:
        """Make the next `count` packs, message by message."""
        if count and self._leads:
            self._dealer.send(self._dealer.n, CREDIT.pack(count, is_urgent))
        # What the dealer was asked for is taken, or it could not be told of the end.
        while count and (self._leads or not self._pool.closed):
            part = min(count, self._layout.packs_per_message)
            for piece in self._layout.pieces:
                self._fill_piece(piece, part)
            if self._leads:
                self._stats.bytes_dealt += 8 * part * self._layout.corrected_words
            self._stats.packs_dealt += part
            self._pool.publish(part)
            count -= part

    def _fill_piece(self, piece: PackPiece, count: int) -> None:
        """A piece of the next `count` packs: its words, then what can be worked out ahead."""
        packs, first = self._pool.packs, self._pool.made
        rows = [
            packs[(first + k) % self._pool.slots][piece.start : piece.start + piece.words]
            for k in range(count)
        ]
        drawn = piece.mask_words if self._leads else piece.drawn_words
        for row in rows:
            self._stream.fill(row[:drawn].data)
        for frame in piece.frames(count) if self._leads else ():
            size = count * (frame.stop - frame.start)
            dealt = self._dealer.recv(self._dealer.n)
            words = received_words(self._dealer, self._dealer.n, dealt, size)
            for row, corrected in zip(rows, words.reshape(count, -1), strict=True):
                row[piece.mask_words :][frame] = corrected
        for index in range(piece.first, piece.last):
            if index in self._ahead:
                self._ahead[index](first, count)
