"""Query lanes that an event loop reads: no thread between a query on asyncio and its answer."""

from __future__ import annotations

import asyncio
import contextlib

from privserve.lane_client import TICK_SECONDS, LaneClient


class LoopReading:
    """Which lanes the event loop reads. Belongs to one loop."""

    def __init__(self) -> None:
        self._read: dict[LaneClient, int] = {}
        """By lanes: the descriptor that the loop watches."""
        self._tick: asyncio.TimerHandle | None = None

    def take(self, lanes: LaneClient) -> None:
        """Have the running loop read these lanes from now on; where it cannot a thread does."""
        loop = asyncio.get_running_loop()
        if lanes not in self._read:
            try:
                descriptor = lanes.drive()
                loop.add_reader(descriptor, lanes.pump)
            except (AttributeError, NotImplementedError):  # no such descriptor, no such loop
                lanes.leave()
                return
            self._read[lanes] = descriptor
        if self._tick is None:
            self._tick = loop.call_later(TICK_SECONDS, self._look)

    def _look(self) -> None:
        """Look after parties that are silent and queries that are overdue, while there are any."""
        self._tick = None
        for lanes in list(self._read):
            lanes.pump(tick=True)
        if any(lanes.has_callbacks for lanes in self._read):
            self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._look)

    def end(self) -> None:
        """Leave all lanes to threads again, before they are closed."""
        for one in list(self._read):
            descriptor = self._read.pop(one, None)
            if descriptor is not None:
                with contextlib.suppress(RuntimeError):  # no loop runs any more
                    asyncio.get_running_loop().remove_reader(descriptor)
                one.leave()
        if not self._read and self._tick is not None:
            self._tick.cancel()
            self._tick = None
