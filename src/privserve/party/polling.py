"""A session that waits at a poller: which one that is, and what is heard there.

Its thread drives the party's poller where it is the only one (see `wheel`), and else a poller of
its own. It may move from one to the other between two batches. Every poller is driven by somebody
at any time, its stand-in if nobody else does: a call at the one that was left just now is not lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from privserve.errors import PeerLost
from privserve.party.channel import Channel
from privserve.party.cores import stay_on
from privserve.party.messages import hear
from privserve.party.poller import Poller
from privserve.party.rounds import Round
from privserve.party.seat import Seat
from privserve.party.session import Session
from privserve.party.session_spec import SessionSpec

T = TypeVar("T")


class PollingSession(Session):
    """A session whose thread waits for sockets and for calls of other threads."""

    def __init__(self, seat: Seat, spec: SessionSpec, came_back: str = "") -> None:
        super().__init__(seat, spec, came_back)
        self._wheel = seat.wheel
        self._own = Poller()
        self._poller = self._own if seat.wheel is None else seat.wheel.poller
        """Where it waits; its own thread alone changes that."""
        self._cores: Sequence[int] = ()
        """Of the party: the first one is for the session that is alone."""
        self._is_to_move = False
        """Whether this session may have to wait at another poller."""

    @property
    def parts(self) -> int:
        """Into how many parts the party's memory for queries goes."""
        return 1 if self._wheel is None else self._wheel.drivers

    def move(self) -> None:
        """Look soon whether this session is to drive the party's poller; see `wheel`."""
        self._is_to_move = True
        self._rouse()

    def _rouse(self) -> None:
        """Have the session's thread look, wherever it waits."""
        self._poller.wake()

    @contextlib.contextmanager
    def _at_wheel(self) -> Iterator[None]:
        """Be one of those who might drive the party's poller."""
        if self._wheel is None:
            yield
            return
        self._wheel.join(self)
        try:
            yield
        finally:
            self._wheel.leave(self)

    def _choose_poller(self) -> None:
        """Wait from now on where this session belongs.

        Whoever calls at the poller that is left is heard: its stand-in drives it then. Whoever
        only wakes it may be missed, so that the session looks once before it waits at the next.
        """
        self._is_to_move = False
        drives = self._wheel is None or self._wheel.may_drive(self)
        if self._wheel is not None:
            self._poller = self._wheel.poller if drives else self._own
        stay_on(self._cores[:1] if drives else self._cores)

    @property
    def _stays(self) -> bool:
        """Whether the round goes on at the poller where it is."""
        return not (self._is_to_move or self._round.over.is_set())

    @contextlib.contextmanager
    def _hearing(
        self, lane: str, read: Callable[[Any], T], takes: Mapping[int, Callable[[T], None]]
    ) -> Iterator[None]:
        """Drive the poller, and give each message of these peers on a lane to its taker."""
        round_ = self._round
        channels = [round_.lanes[lane].channels[peer] for peer in takes]
        with self._poller.attached():
            try:
                for channel, take in zip(channels, takes.values(), strict=True):
                    channel.set_timeout(self._timeouts.peer)
                    heard = partial(self._heard, round_, channel, read, take)
                    self._poller.register(channel.fileno(), heard)
                yield
            finally:
                for channel in channels:
                    self._poller.unregister(channel.fileno())

    def _heard(
        self,
        round_: Round,
        channel: Channel,
        read: Callable[[Any], T],
        take: Callable[[T], None],
        events: int,
    ) -> None:
        within = self._timeouts.peer
        try:
            take(hear(channel, read, within))
            while channel.has_arrived:
                take(hear(channel, read, within))
        except PeerLost as error:
            self._poller.unregister(channel.fileno())
            round_.lost = error
            self._rouse()

    def _poll(self, seconds: float | None) -> None:
        """Wait until there may be something to do; raises PeerLost."""
        self._poller.poll(seconds)
        if self._round.lost is not None:
            raise self._round.lost

    def _release(self) -> None:
        super()._release()
        self._own.close()
