"""The client for programs on asyncio: `await client.query_model(x)`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privserve.client import IN_FLIGHT, BackgroundQuery, Client
from privserve.config import ClusterConfig
from privserve.inputs import Inputs
from privserve.lane_client import LaneClient
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

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.to_thread(self._client.close)

    @property
    def model(self) -> ServedModel | None:
        """What the parties said last that they serve; None before, and where that is over."""
        return self._client._model

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
            if not self._is_connected():
                await asyncio.to_thread(self._connect)
            query = BackgroundQuery(self._client, x, logits, named)
            return await asyncio.wrap_future(query.future)

    def _is_connected(self) -> bool:
        """Whether a query can be sent from the event loop without keeping it waiting."""
        way = self._client._way
        is_ready = way is not None and (not isinstance(way, LaneClient) or way.is_fresh)
        return is_ready and self._client._model is not None

    def _connect(self) -> None:
        """Read the model and open lanes, where need be; not in the event loop: it may take long."""
        self._client.read_model()
        if isinstance(self._client._way, LaneClient):
            self._client._way.renew()
