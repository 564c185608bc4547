"""The client for programs on asyncio: `await client.query_model(x)`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privserve.client import IN_FLIGHT, BackgroundQuery, Client
from privserve.config import ClusterConfig
from privserve.inputs import Inputs

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
    ) -> None:
        """See `Client`."""
        self._client = Client(cluster, ca=ca, key=key, timeout=timeout)
        self._in_flight = asyncio.Semaphore(IN_FLIGHT)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.to_thread(self._client.close)

    async def query_model(self, x: Inputs, *, logits: bool = False, named: bool = False) -> Any:
        """Return the model's prediction for `x`; see `Client.query_model`.

        Many may be awaited at a time, of which some wait here. One that is cancelled is answered
        to nobody.
        """
        async with self._in_flight:
            if not self._client.knows_model:  # which takes a connection to each party
                await asyncio.to_thread(self._client.read_model)
            query = BackgroundQuery(self._client, x, logits, named)
            return await asyncio.wrap_future(query.future)
