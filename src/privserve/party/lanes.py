"""How parties find each other: lanes of mutually authenticated channels.

Two parties hold one connection (`channel.Channel`) per lane, a purpose such as "online" or
"deal"; each connection begins with a hello frame that names the session, the lane and the
sender, and the sender's certificate must carry that name. No frame is unpickled anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from privserve.addresses import connect
from privserve.config import ClusterConfig, PartyConfig
from privserve.errors import ClusterError, PeerLost
from privserve.party.channel import CONTROL_BYTES, Channel, Tap
from privserve.party.lane_mesh import LaneMesh
from privserve.party.messages import FAILED, Hello, Over, framed, hear, message_of, read_hello
from privserve.tls import trust
from privserve.tls_stream import TlsStream, reason_of

log = logging.getLogger("privserve")

PROTOCOL = "privserve-party/1"
"""What a connection between parties speaks (ALPN): it comes to the port that clients come to."""
REJOIN = "rejoin"
"""The lane of a session on which parties meet before its next round; see `rejoining`."""
HANDSHAKE_SECONDS = 10.0
HELLO_BYTES = 4096
ACCEPT_PAUSE_SECONDS = 0.2


def server_context(config: ClusterConfig, me: PartyConfig) -> ssl.SSLContext:
    """Return a TLS 1.3 context for the listening side of party channels.

    The peer must show a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    context.set_alpn_protocols([PROTOCOL])
    context.verify_mode = ssl.CERT_REQUIRED
    trust(context, config.ca, config.state)
    context.load_cert_chain(me.cert, me.key)
    return context


def client_context(config: ClusterConfig, me: PartyConfig) -> ssl.SSLContext:
    """Return a TLS 1.3 context for the dialling side, with this party's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([PROTOCOL])
    trust(context, config.ca, config.state)
    context.load_cert_chain(me.cert, me.key)
    return context


@dataclass(frozen=True)
class _Wait:
    """How long a party waits for another, and whether it still should."""

    deadline: float
    cancelled: threading.Event
    stop: threading.Event = field(default_factory=threading.Event)
    """Set once another one was waited for in vain."""

    @property
    def over(self) -> bool:
        given_up = self.cancelled.is_set() or self.stop.is_set()
        return given_up or time.monotonic() >= self.deadline

    def at_most(self, seconds: float) -> float:
        return max(0.01, min(seconds, self.deadline - time.monotonic()))


def _turn_away(channel: Channel, told: str, over: Over) -> None:
    """Release the channel of a round that will not be; if its lane is `told`, say why before."""
    if channel.lane == told and over.reason:
        with contextlib.suppress(PeerLost):
            channel.send(framed(message_of(over)))
    channel.release()


class _Arrived(NamedTuple):
    """A connection that no session has claimed yet, and when it came."""

    channel: Channel
    at: float


class Listener:
    """Accepts party channels and hands each to the session that waits for it."""

    MAX_UNCLAIMED = 256
    """In equal parts for the other parties, of at least LEAST_UNCLAIMED."""
    LEAST_UNCLAIMED = 32
    """Room for the lanes of several sessions that are set up at a time."""
    MAX_GIVEN_UP = 64
    UNCLAIMED_SECONDS = 60.0
    """How long a connection that its peer closed may still tell a session so."""
    MAX_WELCOMING = 128
    """Connections that have not said yet who they are."""

    def __init__(
        self,
        config: ClusterConfig,
        me: PartyConfig,
        sock: socket.socket | None = None,
        tap: Tap | None = None,
    ) -> None:
        """sock: bound, and only for parties; the listener owns it from now on. None where others
        accept connections, see `welcome`."""
        self._config = config
        self._me = me
        self._sock = sock
        self._tap = tap
        self._server = server_context(config, me)
        self._client = client_context(config, me)
        self._arrived: dict[Hello, _Arrived] = {}
        self._given_up: dict[str, tuple[str, Over]] = {}
        """By session: the lane on which whoever comes late is told why, and why."""
        self.meets: Callable[[Hello], str | None] = lambda hello: None
        """Why whoever comes to a session's next round (the lane REJOIN) is turned away; None: it is
        not."""
        self._changed = threading.Condition()
        self._closed = False
        self._welcoming = threading.BoundedSemaphore(self.MAX_WELCOMING)
        if sock is not None:
            sock.listen(64)
            threading.Thread(
                target=self._accept, args=(sock,), name="peer-accept", daemon=True
            ).start()

    def read_certificates(self) -> None:
        """Go by the certificate files as they are now, from the next connection on."""
        for context in (self._server, self._client):
            trust(context, self._config.ca, self._config.state)
            context.load_cert_chain(self._me.cert, self._me.key)

    def _accept(self, sock: socket.socket) -> None:
        while not self._closed:
            try:
                raw, _ = sock.accept()
            except OSError as error:
                if self._closed or error.errno in (errno.EBADF, errno.EINVAL):
                    return
                # A connection that broke before it was taken, or no descriptor is free: the
                # party must go on listening, or no later session could begin.
                log.warning("%s cannot accept a party's connection: %s", self._me.name, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, timeout=ACCEPT_PAUSE_SECONDS)
                continue
            self.welcome(raw)

    def welcome(self, raw: socket.socket) -> None:
        """Find out who made this connection, and hold it for its session; for any thread."""
        if self._closed or not self._welcoming.acquire(blocking=False):
            raw.close()  # whoever it is may try again; 10 s later the silent ones are gone
            return
        threading.Thread(target=self._greet, args=(raw,), daemon=True).start()

    def _greet(self, raw: socket.socket) -> None:
        try:
            self._welcome(raw)
        finally:
            self._welcoming.release()

    def _welcome(self, raw: socket.socket) -> None:
        try:
            stream = TlsStream(raw, self._server, server_side=True)
            stream.handshake(HANDSHAKE_SECONDS)
            names = stream.certified_names()
            channel = Channel(stream, "an unknown peer", "hello", limit=HELLO_BYTES)
            hello = hear(channel, read_hello, within=HANDSHAKE_SECONDS)
        except (OSError, PeerLost, ValueError):
            raw.close()  # not one of our parties, or gone: it learns nothing by asking
            return
        peers = {p.name for p in self._config.parties} - {self._me.name}
        if hello.sender not in peers or self._config.identity(hello.sender) not in names:
            raw.close()
            return
        self._keep(hello, Channel(stream, hello.sender, hello.lane, self._tap))

    def _keep(self, hello: Hello, channel: Channel) -> None:
        """Hold a connection for the session that will claim it."""
        with self._changed:
            if self._closed:
                channel.release()
                return
            if hello.session in self._given_up and hello.lane != REJOIN:
                _turn_away(channel, *self._given_up[hello.session])
                return
            if hello.lane == REJOIN and (why := self.meets(hello)) is not None:
                _turn_away(channel, REJOIN, Over(why, FAILED))
                return
            self._forget_closed()
            # Sessions that failed on this side leave theirs behind; the sender's oldest go, so
            # that no party can push out what the others sent.
            theirs = [known for known in self._arrived if known.sender == hello.sender]
            others = len(self._config.parties) - 1
            most = max(self.MAX_UNCLAIMED // others, self.LEAST_UNCLAIMED)
            oldest = theirs[: max(0, len(theirs) + 1 - most)]
            for known in [hello] if hello in self._arrived else oldest:
                self._arrived.pop(known).channel.release()
            self._arrived[hello] = _Arrived(channel, time.monotonic())
            self._changed.notify_all()

    def _forget_closed(self) -> None:
        """Release connections that nobody claims and whose other end is closed. Under the lock.

        Not at once: the session that they are for may find out from them that its peer is gone.
        """
        poll, unclaimed = select.poll(), {}
        for hello, (channel, at) in self._arrived.items():
            if time.monotonic() - at > self.UNCLAIMED_SECONDS:
                unclaimed[channel.fileno()] = hello
                poll.register(channel, select.POLLRDHUP)
        for descriptor, _ in poll.poll(0):
            self._arrived.pop(unclaimed[descriptor]).channel.release()

    def _claim(self, wanted: Collection[Hello], wait: _Wait) -> tuple[Hello, Channel]:
        """Wait for one of these connections, whichever comes first."""
        with self._changed:
            while True:
                for hello in wanted:
                    if hello in self._arrived:
                        return hello, self._arrived.pop(hello).channel
                if wait.over or self._closed:
                    missing = " and ".join(dict.fromkeys(hello.sender for hello in wanted))
                    raise ClusterError(
                        f"{missing} did not connect to {self._me.name} in time; check that each "
                        f"runs and reaches {self._me.address}"
                    )
                self._changed.wait(0.1)

    def take(self, hello: Hello) -> Channel | None:
        """Return the connection that says so of itself, if it has come; waits for nothing."""
        with self._changed:
            arrived = self._arrived.pop(hello, None)
        return None if arrived is None else arrived.channel

    def wait(self, seconds: float) -> None:
        """Wait until a connection may have come, for at most this long."""
        with self._changed:
            self._changed.wait(seconds)

    def _dial(self, peer: PartyConfig, session: str, lane: str, wait: _Wait) -> Channel:
        reason = "no answer"
        while True:
            if wait.over or self._closed:
                raise ClusterError(
                    f"{self._me.name} cannot reach {peer.name} at {peer.address}: {reason}; check "
                    "that it runs and that the address in cluster.toml is right"
                )
            try:
                return self.dial(peer, session, lane, wait.at_most(HANDSHAKE_SECONDS))
            except (OSError, PeerLost) as error:
                reason = str(error) if isinstance(error, PeerLost) else reason_of(error)
                with self._changed:
                    self._changed.wait(0.05)

    def dial(
        self, peer: PartyConfig, session: str, lane: str, seconds: float = HANDSHAKE_SECONDS
    ) -> Channel:
        """Make one connection to a party, and say what it is for.

        seconds: for the connection, and as many for the handshake. Raises OSError or PeerLost where
        that fails, and ClusterError for a certificate that is not the party's.
        """
        raw = connect(peer.addresses, seconds)
        try:
            stream = TlsStream(raw, self._client, server_hostname=self._config.identity(peer.name))
            stream.handshake(seconds)
            hello = {"session": session, "lane": lane, "from": self._me.name}
            Channel(stream, peer.name, lane).send(framed(hello))
            return Channel(stream, peer.name, lane, self._tap)
        except ssl.SSLCertVerificationError as error:
            raw.close()
            raise ClusterError(
                f"{peer.name} at {peer.address} shows a certificate that this cluster's "
                f"authority did not sign for it ({error.verify_message}); use the files of "
                "one and the same cluster on all hosts"
            ) from None
        except (OSError, PeerLost):
            raw.close()
            raise

    def open_lanes(
        self,
        session: str,
        lanes: Sequence[str],
        timeout: float,
        cancelled: threading.Event | None = None,
        limits: Mapping[str, int] | None = None,
        met: Callable[[int, Channel], None] | None = None,
    ) -> dict[str, LaneMesh]:
        """Connect this party with all others on every lane of one session.

        Collective: every party calls it with the same arguments. Of two parties the later
        one in cluster.toml dials; none waits for one before it is there for the others. limits: by
        lane, the bytes of its largest frame, where that is more than CONTROL_BYTES. met: takes each
        channel as soon as it is open, and owns it from then on; called in any thread. Raises
        ClusterError naming who is missing after `timeout` seconds, or when `cancelled` is set
        meanwhile; who comes later waits until `give_up` turns it away.
        """
        wait = _Wait(time.monotonic() + timeout, cancelled or threading.Event())
        with self._changed:
            self._forget_closed()
        parties = self._config.parties
        rank = self._config.rank(self._me.name)
        opened: dict[str, dict[int, Channel]] = {lane: {} for lane in lanes}
        failed: list[Exception] = []

        def take(index: int, lane: str, channel: Channel) -> None:
            channel.limit = max((limits or {}).get(lane, 0), CONTROL_BYTES)
            opened[lane][index] = channel
            if met is not None:
                met(index, channel)

        def dial(index: int) -> None:
            try:
                for lane in lanes:
                    take(index, lane, self._dial(parties[index], session, lane, wait))
            except Exception as error:
                failed.append(error)
                wait.stop.set()

        dialling = [threading.Thread(target=dial, args=(i,), daemon=True) for i in range(rank)]
        for thread in dialling:
            thread.start()
        try:
            ranks = {party.name: index for index, party in enumerate(parties)}
            later = parties[rank + 1 :]
            wanted = dict.fromkeys(Hello(session, lane, p.name) for p in later for lane in lanes)
            while wanted:
                hello, channel = self._claim(wanted, wait)
                del wanted[hello]
                take(ranks[hello.sender], hello.lane, channel)
        except Exception as error:
            failed.append(error)
            wait.stop.set()
        for thread in dialling:
            thread.join()
        if failed:
            if met is None:
                for channel in (c for lane in opened.values() for c in lane.values()):
                    channel.release()
            raise failed[0]
        return {lane: LaneMesh(rank, len(parties) - 1, opened[lane]) for lane in lanes}

    def give_up(self, session: str, told: str, over: Over) -> None:
        """Turn away whoever has come for the lanes of a session, or still comes.

        Who comes on the lane `told` learns why. Not on the lane REJOIN: there the next round's
        name is learned.
        """
        with self._changed:
            self._given_up[session] = told, over
            if len(self._given_up) > self.MAX_GIVEN_UP:
                self._given_up.pop(next(iter(self._given_up)))
            arrived = [h for h in self._arrived if h.session == session and h.lane != REJOIN]
            unclaimed = [self._arrived.pop(hello).channel for hello in arrived]
        for channel in unclaimed:
            _turn_away(channel, told, over)

    def close(self) -> None:
        """Stop accepting and free the port."""
        with self._changed:
            self._closed = True
            for arrived in self._arrived.values():
                arrived.channel.release()
            self._arrived.clear()
            self._changed.notify_all()
        if self._sock is None:
            return
        # Wakes the accepting thread; Linux calls it an error on a listening socket.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
