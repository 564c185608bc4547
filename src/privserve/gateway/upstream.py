"""One model of the cluster behind the gateway: why it is away, and queries of any length.

The gateway outlives both. While the model is away every request for it is refused at once, with the
reason; see `upstreams` for who looks when it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from privserve.async_client import AsyncClient
from privserve.errors import (
    ClusterError,
    DeadlinePassed,
    GuessedRangeError,
    InputError,
    NotServing,
    PrivserveError,
    QueryError,
    UnknownClient,
)
from privserve.gateway.asked import Inference
from privserve.gateway.metadata import VERSION
from privserve.gateway.tensors import Numbers
from privserve.served_model import ServedModel

MAX_QUERIES = 16
"""Of one request, whose rows they share."""
READY_SECONDS = 5.0
"""Who asks whether the cluster is ready waits no longer for it."""
GRACE_SECONDS = 0.5
"""Parties refuse what took too long by themselves, and say more; this is for those that hang."""


class Upstream:
    """One model, through one client of the cluster. For one event loop."""

    def __init__(
        self,
        client: AsyncClient,
        seconds: float,
        tell: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        """seconds: that a query may take; `tell` is called with each change, for people to read,
        and `lost` whenever the model is to be looked for."""
        self._client = client
        self._seconds = seconds
        self._tell = tell
        self._note_lost = lost
        self._away = "it was not reached yet"
        """Why there is no use in asking; empty while there is."""
        self._asking: asyncio.Task[ServedModel] | None = None
        self._told = ""

    @property
    def is_away(self) -> bool:
        """Whether requests are refused at once."""
        return bool(self._away)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def ask(self) -> ServedModel:
        """Ask the parties now what they serve. Raises what they, or the network, refuse with."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)  # which others may be waiting for as well

    async def _ask(self) -> ServedModel:
        try:
            model = await self._client.read_model()
        except PrivserveError as error:
            self._lose(error)
            raise
        self._away = ""
        self._say(f"serving '{model.name}' of the cluster")
        return model

    def _asked(self, asking: asyncio.Task[ServedModel]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # whoever waited has it; nobody may have

    def _lose(self, error: PrivserveError) -> None:
        self._away = str(error)
        self._note_lost()
        self._say(f"not serving now: {error}")

    def _say(self, state: str) -> None:
        if state != self._told:
            self._told = state
            self._tell(state)

    async def model(self, name: str, version: str = "", *, now: bool = False) -> ServedModel:
        """Return the model, called `name`; raises QueryError for another version, or if it is away.

        now: ask the parties, also where it is known.
        """
        if now:
            try:
                async with asyncio.timeout(READY_SECONDS):
                    model = await self.ask()
            except TimeoutError:
                raise NotServing("the cluster did not say in time what it serves") from None
        elif self._away:
            raise NotServing(f"the cluster answers no queries now: {self._away}")
        else:
            model = self._client.model or await self.ask()
        if version not in ("", VERSION):
            raise QueryError(
                f"model '{name}' has no version {version!r}, but '{VERSION}'; or name none", 404
            )
        return model

    async def infer(self, model: ServedModel, asked: Inference) -> dict[str, Numbers]:
        """Return the outputs that are wanted, float32 by name, in the order wanted.

        Rows beyond what a query of `model` holds go in several. Raises what `Client.query_model`
        does, DeadlinePassed in time, InputError for outputs that the model has not, and QueryError
        (413) for too many rows.
        """
        names = [tensor["name"] for tensor in model.description["outputs"]]
        if unknown := set(asked.outputs) - set(names):
            raise InputError(f"the model has the outputs {names}, and no {min(unknown)!r}")
        seconds = min(self._seconds + GRACE_SECONDS, asked.timeout or self._seconds + GRACE_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                answers = await self._answers(model, asked)
        except TimeoutError:
            raise DeadlinePassed(f"no answer came within {seconds:g} s") from None
        except (ClusterError, UnknownClient) as error:
            self._lose(error)
            raise
        except QueryError as error:
            if error.status == 404:  # another model is shared by now
                self._lose(error)
            raise
        return {name: answers[name] for name in asked.outputs} if asked.outputs else answers

    async def _answers(self, model: ServedModel, asked: Inference) -> dict[str, Numbers]:
        inputs, most = asked.inputs, model.max_rows
        rows = max((len(array) for array in inputs.values() if array.ndim), default=0)
        if rows <= most:
            return await self._query(inputs, asked.logits)
        if rows > MAX_QUERIES * most:
            raise QueryError(
                f"a request holds at most {MAX_QUERIES * most} rows of this model, not {rows}", 413
            )
        if any(array.shape[:1] != (rows,) for array in inputs.values()):
            raise InputError("all inputs need the same number of rows")
        pieces = [
            asyncio.ensure_future(
                self._piece(start, {n: a[start : start + most] for n, a in inputs.items()}, asked)
            )
            for start in range(0, rows, most)
        ]
        try:
            answers = await asyncio.gather(*pieces)
        finally:
            for piece in pieces:
                piece.cancel()
        return {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}

    async def _piece(
        self, start: int, inputs: dict[str, Numbers], asked: Inference
    ) -> dict[str, Numbers]:
        try:
            return await self._query(inputs, asked.logits)
        except GuessedRangeError as error:
            layers = {start + row: names for row, names in error.layers.items()}
            raise GuessedRangeError(f"of the rows from {start} on: {error}", layers) from None

    async def _query(self, inputs: dict[str, Numbers], logits: bool) -> dict[str, Numbers]:
        answers: dict[str, Any] = await self._client.query_model(inputs, logits=logits, named=True)
        return answers
