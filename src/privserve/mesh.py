"""What an engine sees of the channels to the other parties."""

from __future__ import annotations

from typing import Protocol

from privserve.errors import BadFrame

Payload = bytes | bytearray | memoryview
"""What goes into a frame: contiguous bytes."""


class Mesh(Protocol):
    """The authenticated channels of one party for one purpose (a lane).

    Only one thread may use a mesh at a time. Every method raises `errors.PeerLost` once a
    peer it needs is gone.
    """

    rank: int
    """0..n-1 for compute parties, n for the dealer."""
    n: int
    """The number of compute parties."""

    def send(self, peer: int, *buffers: Payload) -> None:
        """Send one frame, the concatenation of contiguous `buffers`, to party `peer`."""

    def recv(self, peer: int) -> memoryview:
        """The next frame from `peer`; valid until the next `recv` from that peer."""

    def name(self, peer: int) -> str:
        """Return what party `peer` is called, for people."""

    def limit(self, peer: int, size: int) -> None:
        """Take no frame of more than `size` bytes from `peer` from now on.

        A peer that announces a larger one is lost before anything is allocated for it.
        """

    def exchange(self, payload: Payload) -> list[memoryview | None]:
        """Send `payload` to every other compute party and return theirs, by rank.

        All compute parties call it at the same step; the entry at the own rank is None.
        Cannot deadlock, whatever the sizes.
        """

    def bad_frame(self, peer: int, why: str) -> BadFrame:
        """Return the error for a frame from `peer` that is none of the protocol, to be raised."""
