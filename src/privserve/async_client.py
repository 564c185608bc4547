"""The client for programs on asyncio: `await client.query_model(x)`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privserve.client import BackgroundQuery, Client
from privserve.client_cell import IN_FLIGHT
from privserve.config import ClusterConfig
from privserve.inputs import Inputs
from privserve.lane_client import LaneClient
from privserve.loop_reading import LoopReading
from privserve.served_model import ServedModel

if TYPE_CHECKING:
    from privserve.cluster import Cluster


class AsyncClient:
    """As `Client`, for one event loop; also an asynchronous context manager."""

    def __init__(
        self,
        cluster: str | Path | ClusterConfig | Cluster | Sequence[str] = ".privserve/cluster.toml",
        *,
        ca: str | Path | None = None,
        key: str | Path | None = None,
        timeout: float = 60.0,
        model: str | None = None,
    ) -> None:
        """See `Client`."""
        self._client = Client(cluster, ca=ca, key=key, timeout=timeout, model=model)
        self._in_flight = asyncio.Semaphore(IN_FLIGHT)
        self._reading = LoopReading()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        self._reading.end()
        await asyncio.to_thread(self._client.close)

    @property
    def model(self) -> ServedModel | None:
        """What the parties said last that they serve; None before, and where that is over."""
        return self._client.model

    async def read_model(self) -> ServedModel:
        """Ask the parties now what they serve; raises as `Client.read_model` does."""
        return await asyncio.to_thread(self._client.read_model, again=True)

    async def models(self, *, served: bool = False) -> list[str]:
        """Return the names of the models; see `Client.models`."""
        return await asyncio.to_thread(self._client.models, served=served)

    async def query_model(self, x: Inputs, *, logits: bool = False, named: bool = False) -> Any:
        """Return the model's prediction for `x`; see `Client.query_model`.

        Many may be awaited at a time, of which some wait here. One that is cancelled is withdrawn:
        the parties leave it away where they have not begun with it.
        """
        async with self._in_flight:
            trip = self._client.trip()
            cell = trip.next()
            if cell.is_connected:
                if isinstance(cell.way, LaneClient):
                    self._reading.take(cell.way)
                query = BackgroundQuery(self._client, x, logits, named, trip, cell)
            else:  # not in the event loop: to read the model and to open lanes may take long
                query = await asyncio.to_thread(
                    BackgroundQuery, self._client, x, logits, named, trip, cell
                )
            return await asyncio.wrap_future(query.future)
