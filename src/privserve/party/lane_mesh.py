"""One lane as an engine sees it: a channel to each other party; see `mesh.Mesh`."""

from __future__ import annotations

from typing import Any

from privserve.errors import BadFrame
from privserve.mesh import Payload
from privserve.party.channel import Channel, frame_of
from privserve.party.duplex import exchange_duplex

# A frame of this size always fits the socket buffers, so that a plain send never waits for
# a peer who is itself sending; larger ones go through the full-duplex loop.
DIRECT_BYTES = 64 * 1024
# In an exchange the peer's frame is usually a few microseconds away: asking for it for a
# while costs less than being put to sleep and woken up.
SPIN_SECONDS = 100e-6


class LaneMesh:
    """All channels of one party for one lane; satisfies `mesh.Mesh`."""

    def __init__(self, rank: int, n: int, channels: dict[int, Channel]) -> None:
        self.rank = rank
        self.n = n
        self.channels = channels
        self._peers = [peer for peer in range(n) if peer != rank and peer in channels]

    def send(self, peer: int, *buffers: Payload) -> None:
        """Send one frame to party `peer`."""
        self.channels[peer].send(*buffers)

    def recv(self, peer: int) -> memoryview:
        """Return the next frame from party `peer`; valid until the next one is received."""
        return self.channels[peer].recv()

    def name(self, peer: int) -> str:
        """Return what party `peer` is called."""
        return self.channels[peer].peer

    def limit(self, peer: int, size: int) -> None:
        """Cut `peer` off from now on where it announces a frame of more than `size` bytes."""
        self.channels[peer].limit = size

    def exchange(self, payload: Payload) -> list[memoryview | None]:
        """Return everyone's payloads by rank (None at the own rank); see `mesh.Mesh`."""
        received: list[Any] = [None] * self.n
        if memoryview(payload).nbytes <= DIRECT_BYTES:
            parts = frame_of((payload,))
            for peer in self._peers:
                self.channels[peer].send_frame(parts)
            for peer in self._peers:
                received[peer] = self.channels[peer].recv(SPIN_SECONDS)
            return received
        frames = exchange_duplex((self.channels[p] for p in self._peers), payload)
        for peer, frame in zip(self._peers, frames, strict=True):
            received[peer] = frame
        return received

    def bad_frame(self, peer: int, why: str) -> BadFrame:
        """Return the error for a frame from `peer` that is none of the protocol."""
        return self.channels[peer].bad(why)

    def set_patience(self, seconds: float) -> None:
        """Bound every later wait for the rest of a frame that has begun."""
        for channel in self.channels.values():
            channel.patience = seconds

    def set_timeout(self, seconds: float | None) -> None:
        """Bound every later wait on this lane."""
        for channel in self.channels.values():
            channel.set_timeout(seconds)

    def close(self) -> None:
        """Break all connections of this lane."""
        for channel in self.channels.values():
            channel.close()

    def release(self) -> None:
        """Free the descriptors; only once no thread uses the lane."""
        for channel in self.channels.values():
            channel.release()
