"""How the parties of a session meet again after a loss, before its next round.

Followers and the dealer dial the leader on the lane "rejoin" of the session, with a back-off, and
wait there. Once all have come the leader draws a fresh name for the round and tells all of them;
then they open that round's lanes as they opened the first ones, agree on what runs, and the dealer
draws new keys. The leader asks those who do not come: a party that has lost its share says so.

    leader to whoever waits    {"wait": "for whom"}   a sign of life
                               {"round": name}        all are there
                               {"over": why, "state": state}
    whoever waits to leader    {"over": why, "state": state}   it waits no more
"""

from __future__ import annotations

import contextlib
import secrets
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from privserve.config import PartyConfig
from privserve.errors import BadFrame, ClusterError, HalfFrame, PeerLost
from privserve.party.channel import Channel
from privserve.party.lanes import REJOIN, Listener
from privserve.party.messages import (
    Begin,
    Hello,
    Over,
    Wait,
    framed,
    hear,
    message_of,
    read_meeting,
    read_parting,
)

FIRST_SECONDS, MOST_SECONDS = 0.1, 2.0
"""Between two tries to reach the leader: at first, and at most."""
CONNECT_SECONDS = 3.0
"""To connect, and for the handshake: who hangs is tried again."""
ASK_SECONDS = 1.5
"""Between two questions to parties that do not come, and for the answer."""
LOOK_SECONDS = 0.1
LEAST_PATIENCE = 5.0
"""So long a party waits at least for the leader to say anything: its session may not know yet that
the last round is over."""


@dataclass
class Meeting:
    """What a session's meeting is about, and who is told of it."""

    session: str
    patience: float
    """Seconds for a message that has begun to come."""
    ended: threading.Event
    """Set when the session is over for good."""
    waits: Callable[[str], None]
    """Told why the session waits."""
    cause: Callable[[str], str]
    """Why it waits, for those who are named."""
    parting: Callable[[], Over | None]
    """What the others are told when the session is over; None: nothing, it is over here only."""
    draw: secrets.SystemRandom = field(default_factory=secrets.SystemRandom)


def gather(
    listener: Listener, others: Sequence[PartyConfig], meeting: Meeting
) -> str | Over | None:
    """Wait at the leader for the other parties; returns the name of the round that they begin.

    Or why there will be none; None where this party ended it. Raises BadFrame for what is none of
    the protocol.
    """
    hall = _Hall(listener, others, meeting)
    try:
        while not meeting.ended.is_set():
            hall.let_in()
            if (over := hall.listen()) is not None:
                return hall.dismiss(over)
            if not hall.missing:
                return hall.begin()
            hall.beat()
            if (over := hall.ask()) is not None:
                return hall.dismiss(over)
            listener.wait(LOOK_SECONDS)
        if (over := meeting.parting()) is not None:
            hall.dismiss(over)
        return None
    finally:
        hall.close()


class _Hall:
    """Who has come to the leader so far."""

    def __init__(self, listener: Listener, others: Sequence[PartyConfig], meeting: Meeting) -> None:
        self._listener = listener
        self._others = {party.name: party for party in others}
        self._meeting = meeting
        self._here: dict[str, Channel] = {}
        self._next_beat = 0.0
        self._next_question = time.monotonic() + ASK_SECONDS
        self._asked = 0

    @property
    def missing(self) -> list[str]:
        """Who has not come."""
        return [name for name in self._others if name not in self._here]

    def let_in(self) -> None:
        """Take who has come; whoever comes anew has left the connection before."""
        for name in self._others:
            channel = self._listener.take(Hello(self._meeting.session, REJOIN, name))
            if channel is not None:
                self._leave(name)
                channel.set_timeout(self._meeting.patience)
                self._here[name] = channel

    def listen(self) -> Over | None:
        """Notice who left again; what one says that waits no more."""
        for name, channel in list(self._here.items()):
            if not (channel.has_arrived or select.select([channel.fileno()], [], [], 0)[0]):
                continue
            try:
                return hear(channel, read_parting, within=self._meeting.patience / 3)
            except HalfFrame:
                self._leave(name)
            except BadFrame:
                raise
            except PeerLost:
                self._leave(name)
        return None

    def beat(self) -> None:
        """Tell all who wait whom they wait for."""
        names = " and ".join(self.missing)
        why = self._meeting.cause(names)
        self._meeting.waits(why)
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + 1.0
        for name, channel in list(self._here.items()):
            try:
                channel.send(framed({"wait": why}))
            except PeerLost:
                self._leave(name)

    def ask(self) -> Over | None:
        """Ask one who is missing, now and then, whether it has lost its share; what it says."""
        missing = self.missing
        if time.monotonic() < self._next_question or not missing:
            return None
        self._asked += 1
        party, session = self._others[missing[self._asked % len(missing)]], self._meeting.session
        try:
            with contextlib.suppress(OSError, PeerLost):
                channel = self._listener.dial(party, session, REJOIN, ASK_SECONDS)
                try:
                    found = hear(channel, read_meeting, within=ASK_SECONDS)
                finally:
                    channel.release()
                if isinstance(found, Over):
                    return found
        finally:
            self._next_question = time.monotonic() + ASK_SECONDS
        return None

    def begin(self) -> str:
        """Tell all that the next round begins; returns its name."""
        name = secrets.token_hex(16)
        for channel in self._here.values():
            # Who is gone by now will be missed in the round.
            with contextlib.suppress(PeerLost):
                channel.send(framed({"round": name}))
        return f"{self._meeting.session}.{name}"

    def dismiss(self, over: Over) -> Over:
        """Tell all who wait that there will be no round."""
        for channel in self._here.values():
            with contextlib.suppress(PeerLost):
                channel.send(framed(message_of(over)))
        return over

    def _leave(self, name: str) -> None:
        channel = self._here.pop(name, None)
        if channel is not None:
            channel.release()

    def close(self) -> None:
        for name in list(self._here):
            self._leave(name)


def rejoin(listener: Listener, leader: PartyConfig, meeting: Meeting) -> str | Over | None:
    """Go to the leader and wait there for the next round; returns its name.

    Or why there will be none; None where this party ended it. Raises BadFrame for what is none of
    the protocol.
    """
    pause = FIRST_SECONDS
    meeting.waits(meeting.cause(leader.name))
    while not meeting.ended.is_set():
        try:
            channel = listener.dial(leader, meeting.session, REJOIN, CONNECT_SECONDS)
        except ClusterError as error:  # a broken connection is one, and so is a wrong certificate
            if not isinstance(error, PeerLost):
                meeting.waits(str(error))
        except OSError:
            meeting.waits(meeting.cause(leader.name))
        else:
            try:
                if (found := _wait_there(channel, meeting)) is not None:
                    return found
            finally:
                channel.release()
        meeting.ended.wait(pause * meeting.draw.uniform(0.5, 1.5))
        pause = min(2 * pause, MOST_SECONDS)
    return None


def _wait_there(channel: Channel, meeting: Meeting) -> str | Over | None:
    """Wait for the leader's word; None where it leaves, or says nothing for too long."""
    channel.set_timeout(meeting.patience)
    patience = max(LEAST_PATIENCE, 2 * meeting.patience)
    heard = time.monotonic()
    while not meeting.ended.is_set():
        if channel.has_arrived or select.select([channel.fileno()], [], [], LOOK_SECONDS)[0]:
            try:
                found = hear(channel, read_meeting, within=meeting.patience)
            except HalfFrame:
                return None
            except BadFrame:
                raise
            except PeerLost:
                return None
            if isinstance(found, Over):
                return found
            if isinstance(found, Begin):
                return f"{meeting.session}.{found.round}"
            assert isinstance(found, Wait)
            meeting.waits(found.reason)
            heard = time.monotonic()
        elif time.monotonic() - heard > patience:
            return None
    if (over := meeting.parting()) is not None:
        with contextlib.suppress(PeerLost):
            channel.send(framed(message_of(over)))
    return None
