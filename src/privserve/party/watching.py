"""Signs of life: who left, who hangs, and what the others are told before the channels break."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

from privserve.errors import BadFrame, HalfFrame, PeerLost
from privserve.party.channel import Channel
from privserve.party.messages import FAILED, WAITING, Over, framed, hear, message_of, read_sign
from privserve.party.rounds import Round

HEARTBEAT_SECONDS = 2.0


def tell(channels: Mapping[int, Channel], message: dict[str, Any]) -> str | None:
    """Send `message` to all; who turned out to be gone, if anybody."""
    lost = None
    for channel in channels.values():
        try:
            channel.send(framed(message))
        except PeerLost:
            lost = gone(channel.peer)
    return lost


def gone(party: str) -> str:
    """Say that a party left without a word."""
    return f"{party} is gone (its process ended or its host cannot be reached)"


class Watch:
    """One party's watch over the others, for one round."""

    def __init__(self, round_: Round, patience: float) -> None:
        """patience: seconds without a sign of life after which a party is given up."""
        self._round = round_
        self._channels = round_.channels
        self._patience = patience
        self._beat = min(HEARTBEAT_SECONDS, patience / 4)
        self._heard = dict.fromkeys(self._channels, time.monotonic())
        for channel in self._channels.values():
            channel.set_timeout(patience)

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
        found = self._until_over()
        if found is not None:
            self._tell(message_of(found))
            lost(found)
        elif self._round.told is not None:
            self._tell(message_of(self._round.told))

    def _until_over(self) -> Over | None:
        """Why another party ends the round; None where this one does."""
        next_beat, looked = 0.0, time.monotonic()
        while not self._round.over.is_set():
            now = time.monotonic()
            # Whoever slept itself (stopped, or starved of its core) blames nobody for that.
            self._forgive(now - looked - self._beat)
            looked = now
            if now >= next_beat:
                if (lost := self._tell({"alive": True})) is not None:
                    # Who left may have said why before.
                    return self._last_words() or Over(lost, WAITING)
                next_beat = now + self._beat
            if (over := self._hear(next_beat - now)) is not None:
                return over
            for peer, at in self._heard.items():
                if now - at > self._patience:
                    return Over(self._no_sign(peer), WAITING)
        return None

    def _tell(self, message: dict[str, Any]) -> str | None:
        return tell(self._channels, message)

    def _no_sign(self, peer: int) -> str:
        name = self._channels[peer].peer
        return f"{name} gave no sign of life for {self._patience:g} s"

    def _forgive(self, slept: float) -> None:
        if slept > self._beat:
            self._heard = {peer: at + slept for peer, at in self._heard.items()}

    def _last_words(self) -> Over | None:
        """Why the round is over, if any party said so; reads what has come."""
        for channel in self._channels.values():
            with contextlib.suppress(PeerLost):
                while select.select([channel.fileno()], [], [], 0)[0]:
                    if (over := self._sign(channel)) is not None:
                        return over
        return None

    def _sign(self, channel: Channel) -> Over | None:
        """Read one sign of life, or the news that the round is over.

        No peer may keep the watcher from the others, who would give this party up.
        """
        return hear(channel, read_sign, within=self._patience / 3)

    def _hear(self, timeout: float) -> Over | None:
        """Read what comes within `timeout`; why the round is over, if somebody says so."""
        by_descriptor = {channel.fileno(): peer for peer, channel in self._channels.items()}
        watched = [*by_descriptor, self._round.wake.fileno()]
        readable, _, _ = select.select(watched, [], [], max(timeout, 0))
        for descriptor in readable:
            peer = by_descriptor.get(descriptor)
            if peer is None:
                continue
            try:
                over = self._sign(self._channels[peer])
            except HalfFrame as error:
                return Over(str(error), WAITING)
            except BadFrame as error:
                return Over(str(error), FAILED)
            except PeerLost:
                return Over(gone(self._channels[peer].peer), WAITING)
            self._heard[peer] = time.monotonic()
            if over is not None:
                return over
        return None
