"""The cluster behind the gateway: which models it has, each through a client of its own.

While the cluster is away, or a model of it, what concerns it is refused at once with the reason,
and the parties are asked again and again until it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from privserve.async_client import AsyncClient
from privserve.errors import NotServing, PrivserveError, QueryError
from privserve.gateway.asked import Inference
from privserve.gateway.tensors import Numbers
from privserve.gateway.upstream import READY_SECONDS, Upstream
from privserve.served_model import ServedModel

RETRY_SECONDS = 1.0


class Upstreams:
    """All models of the cluster. For one event loop."""

    def __init__(
        self,
        connect: Callable[[str | None], AsyncClient],
        seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        """connect: makes a client for the model of a name; for None one that asks which there are.

        seconds: that a query may take; `tell` is called with each change, for people to read.
        """
        self._connect = connect
        self._index = connect(None)
        self._seconds = seconds
        self._tell = tell
        self._by_name: dict[str, Upstream] = {}
        self._away = "it was not reached yet"
        """Why there is no use in asking for a model; empty while there is."""
        self._is_lost = asyncio.Event()
        self._is_lost.set()
        self._asking: asyncio.Task[list[str]] | None = None
        self._told = ""

    async def watch(self) -> None:
        """Look for what is lost, for as long as the gateway runs."""
        while True:
            await self._is_lost.wait()
            self._is_lost.clear()
            try:
                for name in await self.names():
                    upstream = self._of(name)
                    if upstream.is_away:
                        await upstream.ask()
            except PrivserveError:
                self._is_lost.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def names(self) -> list[str]:
        """Ask the parties now which models there are; raises why there is none."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._names())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)  # which others may be waiting for as well

    def _asked(self, asking: asyncio.Task[list[str]]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # whoever waited has it; nobody may have

    async def _names(self) -> list[str]:
        try:
            names = await self._index.models()
            for name in set(self._by_name) - set(names):
                await self._by_name.pop(name).close()
            if not names:
                names = [(await self._index.read_model()).name]  # it says why there is none
        except PrivserveError as error:
            self._away = str(error)
            self._is_lost.set()
            self._say(f"not serving now: {error}")
            raise
        self._away = self._told = ""
        return names

    def _say(self, state: str) -> None:
        if state != self._told:
            self._told = state
            self._tell(state)

    def _of(self, name: str) -> Upstream:
        if name not in self._by_name:
            client = self._connect(name)
            self._by_name[name] = Upstream(client, self._seconds, self._tell, self._is_lost.set)
        return self._by_name[name]

    async def served(self) -> list[str]:
        """Ask the parties now which models are being served; none where they do not say in time."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.names()
                return await self._index.models(served=True)
        except (PrivserveError, TimeoutError):
            return []

    async def model(self, name: str, version: str = "", *, now: bool = False) -> ServedModel:
        """Return a model; raises QueryError where there is none of this name, or it is away.

        now: ask the parties, also where it is known.
        """
        if self._away and not now:
            raise NotServing(f"the cluster answers no queries now: {self._away}")
        is_new = name not in self._by_name
        if now or is_new:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    names = await self.names()
            except TimeoutError:
                raise NotServing("the cluster did not say in time what it serves") from None
            if name not in names:
                there = ", ".join(f"'{other}'" for other in names)
                raise QueryError(f"there is no model {name!r} here, but {there}", 404)
        return await self._of(name).model(name, version, now=now or is_new)

    async def check_served(self, name: str) -> None:
        """Raise NotServing where the parties do not say that a model is being served now."""
        if name not in await self.served():
            raise NotServing(f"model '{name}' is shared, but its owner does not serve it now")

    async def infer(self, model: ServedModel, asked: Inference) -> dict[str, Numbers]:
        """Return a model's answer; see `Upstream.infer`."""
        return await self._of(model.name).infer(model, asked)

    async def close(self) -> None:
        """Close all connections."""
        await self._index.close()
        for upstream in self._by_name.values():
            await upstream.close()
