"""Signs of life: who left, who hangs, and what the others are told before the channels break.

A party that is being stopped says so first ("leaves"). From then on no compute party takes queries;
each answers what it has, says when that is done ("idle"), and only then does that party leave.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from privserve.errors import BadFrame, HalfFrame, PeerLost
from privserve.party.agreement import Agreement, gone, said
from privserve.party.channel import Channel
from privserve.party.messages import (
    FAILED,
    WAITING,
    Over,
    Sign,
    framed,
    hear,
    message_of,
    read_facts,
    read_sign,
    sign_of,
)
from privserve.party.rounds import Round

HEARTBEAT_SECONDS = 2.0
IDLE_LOOK_SECONDS = 0.02
"""Between two looks whether anything waits or runs still, while somebody leaves."""
FIRSTHAND_SECONDS = 0.5
"""For the words of a party that another one passes on, which are on their way."""


def tell(channels: Mapping[int, Channel], message: dict[str, Any]) -> str | None:
    """Send `message` to all; who turned out to be gone, if anybody."""
    lost = None
    for channel in channels.values():
        try:
            channel.send(framed(message))
        except PeerLost:
            lost = gone(channel.peer)
    return lost


class Watch:
    """One party's watch over the others, for one round."""

    def __init__(
        self, round_: Round, agreement: Agreement, patience: float, introduction: float
    ) -> None:
        """patience: seconds without a sign of life after which a party is given up; introduction:
        for it to say what it is about to run, which it may still be given."""
        self._round = round_
        self._agreement = agreement
        self._channels = round_.channels
        self._patience = patience
        self._introduction = introduction
        self._beat = min(HEARTBEAT_SECONDS, patience / 4)
        self._heard: dict[int, float] = {}
        """When each party gave its last sign; who has said what it runs."""
        self._met: dict[int, float] = {}
        """When each party was met that has not said so yet."""
        self._coming: deque[tuple[int, Channel]] = deque()
        self._meeting = threading.Lock()
        self._last: dict[str, Any] | None = None
        """What all were told last, once the watch has ended."""
        self._agreed = threading.Event()
        self.on_leaving: Callable[[str], None] = lambda peer: None
        """Told of each party that says that it is being stopped."""
        self.is_idle: Callable[[], bool] = lambda: True
        """Whether no query waits or runs here."""
        self.idle: set[int] = set()
        """Which peers have said so of themselves, since somebody leaves."""
        self._leaves = self._somebody_leaves = False
        self._said: set[Sign] = set()

    def meet(self, peer: int, channel: Channel) -> None:
        """Watch a party from now on, too, and tell it what runs here; for any thread.

        Whoever is met when the round is over is told why, and not left to find a broken channel.
        """
        with self._meeting:
            if self._last is None:
                self._coming.append((peer, channel))
            else:
                channel.set_timeout(self._patience)
                tell({peer: channel}, self._last)
        self._round.own(channel)
        self._round.rouse()

    def leave(self) -> None:
        """Tell the others that this party is being stopped; for any thread."""
        self._leaves = self._somebody_leaves = True
        self._round.rouse()

    def wait_agreed(self) -> None:
        """Wait until all parties have said that they run the same, or the round is over."""
        self._agreed.wait()

    def silent(self) -> list[str]:
        """Return who has missed a sign of life by now, though it is not given up yet."""
        now = time.monotonic()
        return [
            self._channels[peer].peer
            for peer, at in self._heard.items()
            if now - at > 2 * self._beat
        ]

    def run(self, lost: Callable[[Over], None]) -> None:
        """Watch until the round is over, and tell the others why.

        lost: called where another party is the cause, after the others were told: they shall
        learn the cause, and not the consequence.
        """
        try:
            found = self._until_over()
            if found is not None:
                # What this party found itself, and not what another one concluded from it.
                found = self._agreement.objection or found
                self._end(found)
                lost(found)
            elif self._round.told is not None:
                self._end(self._round.told)
        finally:
            self._agreed.set()

    def _end(self, why: Over) -> None:
        """Tell all why the round is over, those too who have come meanwhile or still do."""
        with self._meeting:
            self._last = message_of(why)
            self._welcome()
        self._tell(self._last)

    def _welcome(self) -> str | None:
        """Introduce this party to those who were met since; who turned out to be gone."""
        lost = None
        while self._coming:
            peer, channel = self._coming.popleft()
            channel.set_timeout(self._patience)
            channel.patience = self._patience
            self._channels[peer] = channel
            self._met[peer] = time.monotonic()
            lost = tell({peer: channel}, self._agreement.mine) or lost
        return lost

    def _until_over(self) -> Over | None:
        """Why another party ends the round; None where this one does."""
        next_beat, looked = 0.0, time.monotonic()
        while not self._round.over.is_set():
            now = time.monotonic()
            # Whoever slept itself (stopped, or starved of its core) blames nobody for that.
            self._forgive(now - looked - self._beat)
            looked = now
            lost = self._welcome()
            signs = self._news()
            if now >= next_beat:
                signs.append(Sign.ALIVE)
                next_beat = now + self._beat
            for sign in signs:
                lost = lost or self._tell(sign_of(sign))
            if lost is not None:
                # Who left may have said why before.
                return self._last_words() or Over(lost, WAITING)
            wait = self._look_again(next_beat - now)
            if (over := self._hear(wait) or self._late(now)) is not None:
                return over
        return None

    def _late(self, now: float) -> Over | None:
        """Who is late with its sign of life, or with its introduction."""
        for peer, at in self._heard.items():
            if now - at > self._patience:
                return Over(self._no_sign(peer), WAITING)
        for peer, at in self._met.items():
            if now - at > self._introduction:
                why = f"{self._channels[peer].peer} did not say within {self._introduction:g} s "
                return Over(why + "what it is about to run; is it overloaded or stopped?", WAITING)
        return self._agreement.verdict(self._patience)

    def _news(self) -> list[Sign]:
        """What this party has not told of itself yet; to nobody, before all are there."""
        news: list[Sign] = []
        if not self._agreement.is_reached:
            return news
        if self._leaves and Sign.LEAVES not in self._said:
            news.append(Sign.LEAVES)
        if self._waits_until_idle and self.is_idle():
            news.append(Sign.IDLE)
        self._said.update(news)
        return news

    @property
    def _waits_until_idle(self) -> bool:
        return self._somebody_leaves and Sign.IDLE not in self._said

    def _look_again(self, seconds: float) -> float:
        return min(seconds, IDLE_LOOK_SECONDS) if self._waits_until_idle else seconds

    def _tell(self, message: dict[str, Any]) -> str | None:
        return tell(self._channels, message)

    def _no_sign(self, peer: int) -> str:
        """Say who was silent for too long; whoever hears nobody may be cut off itself."""
        others = [self._channels[rank].peer for rank in sorted(self._channels)]
        if len(others) > 1 and len(self.silent()) == len(others):
            return (
                f"{self._agreement.me} has heard nothing of {' and '.join(others)} for "
                f"{self._patience:g} s: it may be cut off itself"
            )
        return f"{self._channels[peer].peer} gave no sign of life for {self._patience:g} s"

    def _forgive(self, slept: float) -> None:
        if slept > self._beat:
            self._heard = {peer: at + slept for peer, at in self._heard.items()}
            self._met = {peer: at + slept for peer, at in self._met.items()}

    def _last_words(self) -> Over | None:
        """Why the round is over, if any party said so; reads what has come."""
        for peer, channel in self._channels.items():
            with contextlib.suppress(PeerLost):
                while select.select([channel.fileno()], [], [], 0)[0]:
                    if peer in self._met:
                        self._introduced(peer)
                    elif isinstance(found := self._sign(channel), Over):
                        return found
        return self._agreement.objection

    def _sign(self, channel: Channel) -> Over | Sign:
        """Read one sign of life, or the news that the round is over.

        No peer may keep the watcher from the others, who would give this party up.
        """
        found = hear(channel, read_sign, within=self._patience / 3)
        if isinstance(found, Sign):
            return found
        return self._firsthand(found.by, channel) or said(channel.peer, found)

    def _firsthand(self, party: str, told_by: Channel) -> Over | None:
        """What a party says itself of the end, of which another one has told already."""
        for peer, channel in self._channels.items():
            if channel.peer != party or channel is told_by:
                continue
            until = time.monotonic() + min(FIRSTHAND_SECONDS, self._patience / 3)
            with contextlib.suppress(PeerLost):
                while select.select([channel.fileno()], [], [], max(0, until - time.monotonic()))[
                    0
                ]:
                    read = read_facts if peer in self._met else read_sign
                    found = hear(channel, read, within=max(0.01, until - time.monotonic()))
                    if isinstance(found, Over):
                        return said(party, found)
        return None

    def _hear(self, timeout: float) -> Over | None:
        """Read what comes within `timeout`; why the round is over, if somebody says so."""
        by_descriptor = {channel.fileno(): peer for peer, channel in self._channels.items()}
        watched = [*by_descriptor, self._round.wake.fileno()]
        readable, _, _ = select.select(watched, [], [], max(timeout, 0))
        for descriptor in readable:
            peer = by_descriptor.get(descriptor)
            if peer is None:
                self._round.calm()
                continue
            if peer in self._met:
                self._introduced(peer)
                continue
            try:
                found = self._sign(self._channels[peer])
            except HalfFrame as error:
                return Over(str(error), WAITING)
            except BadFrame as error:
                return Over(str(error), FAILED)
            except PeerLost:
                return Over(gone(self._channels[peer].peer), WAITING)
            self._heard[peer] = time.monotonic()
            if isinstance(found, Over):
                return found
            self._take(peer, found)
        return None

    def _take(self, peer: int, sign: Sign) -> None:
        if sign is Sign.IDLE:
            self.idle.add(peer)
        elif sign is Sign.LEAVES:
            self.on_leaving(self._channels[peer].peer)
            self._somebody_leaves = True  # from here on idle is idle for good

    def _introduced(self, peer: int) -> None:
        """Hear what a party is about to run, before it gives any sign of life."""
        self._agreement.hears(self._channels[peer], self._patience / 3)
        del self._met[peer]
        self._heard[peer] = time.monotonic()
        if self._agreement.is_reached:
            self._agreed.set()
