"""Large frames in both directions at once."""

from __future__ import annotations

import select
from collections.abc import Iterable, Sequence

from privserve.mesh import Payload
from privserve.party.channel import HEADER, SILENT, Channel, chunks_of, frame_of, wait_for


def exchange_duplex(channels: Iterable[Channel], payload: Payload) -> list[memoryview]:
    """Send `payload` on every channel while reading one frame from each, in order.

    Reads and writes are interleaved as the sockets allow, so that two parties who send
    large frames to each other at the same time both get through.
    """
    frame = frame_of([payload])
    jobs = [_Duplex(channel, frame) for channel in channels]
    waiting = list(jobs)
    while waiting:
        for job in waiting:
            job.advance()
        waiting = [job for job in waiting if not job.done]
        if waiting and not any(job.progressed for job in waiting):
            wanted = {job.channel: job.wants for job in waiting}
            first, begun = waiting[0].channel, [job.channel for job in waiting if job.is_reading]
            bounds = [b for b in (first.timeout, *(c.patience for c in begun)) if b is not None]
            if not wait_for(wanted, min(bounds, default=None)):
                if begun:
                    raise begun[0].half()
                raise first.lost(SILENT)
    return [job.result() for job in jobs]


class _Duplex:
    """One channel's progress through a full-duplex exchange."""

    def __init__(self, channel: Channel, frame: Sequence[Payload]) -> None:
        self.channel = channel
        self.progressed = True
        self.wants = 0
        self._frame = frame
        self._later = iter(chunks_of(frame))
        self._out = memoryview(b"")
        self._sent = False
        self._got = 0
        self._size = -1

    @property
    def done(self) -> bool:
        return self._sent and self._got == self._size

    @property
    def is_reading(self) -> bool:
        """Whether the peer's frame has begun to come, and not ended."""
        return self._got > 0 and self._got != self._size

    def advance(self) -> None:
        """Write and read as much as the socket takes and gives without waiting."""
        self.wants, self.progressed = 0, False
        if not self._sent:
            self._write()
        if self._got != self._size:
            self._read()

    def _write(self) -> None:
        if not self._out:
            chunk = next(self._later, None)
            if chunk is None:
                self.channel.count_sent(self._frame)
                self._sent = self.progressed = True
                return
            self._out = memoryview(self.channel.encrypt(chunk))
        sent = self.channel.try_send(self._out)
        self._out = self._out[sent:]
        self.progressed |= sent > 0
        if not sent:
            self.wants |= select.POLLOUT

    def _read(self) -> None:
        buffer = self.channel.buffer
        end = HEADER.size if self._size < 0 else self._size
        if not (got := self.channel.try_read(buffer[self._got : end])):
            self.wants |= select.POLLIN
            return
        self.progressed = True
        self._got += got
        if self._size < 0 and self._got == HEADER.size:
            self._size = HEADER.size + self.channel.parse_header(buffer)
            if self._size > len(buffer):
                self.channel.enlarge(self._size, self._got)

    def result(self) -> memoryview:
        view = self.channel.buffer[HEADER.size : self._size]
        self.channel.count_received(view)
        return view
