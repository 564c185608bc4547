"""Query lanes that an event loop reads: answers without a thread, and what threads still do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import Digits

import privserve as ps
from privserve import lane_client
from privserve.lane_client import LaneClient


def one(digits: Digits, i: int) -> np.ndarray:
    return digits.images[i % len(digits.images)][None]


def lanes_of(client: ps.AsyncClient) -> LaneClient:
    way = client._client._cells[0].way
    assert isinstance(way, LaneClient)
    return way


def test_no_thread_is_between_a_query_and_its_answer(digits: Digits) -> None:
    async def ask() -> set[str]:
        async with ps.AsyncClient(digits.cluster, timeout=30) as client:
            await client.query_model(one(digits, 0))  # opens the lanes, in a thread
            before = set(threading.enumerate())
            for i in range(3):
                answer = await client.query_model(one(digits, i))
                assert answer.argmax() == digits.labels[i]
            assert lanes_of(client)._is_driven
            return {thread.name for thread in set(threading.enumerate()) - before}

    with digits.serving():
        assert asyncio.run(ask()) == set()


def test_threads_that_ask_over_the_same_lanes_get_their_answers_too(digits: Digits) -> None:
    async def ask() -> None:
        async with ps.AsyncClient(digits.cluster, timeout=30) as client:
            await client.query_model(one(digits, 0))
            loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(4)
            threads = [
                loop.run_in_executor(pool, client._client.query_model, one(digits, i))
                for i in range(60)
            ]
            here = [client.query_model(one(digits, i)) for i in range(60)]
            found = await asyncio.gather(*threads, *here)
            pool.shutdown()
            expected = [digits.labels[i % len(digits.images)] for i in range(60)]
            assert [answer.argmax() for answer in found] == expected * 2

    with digits.serving():
        asyncio.run(ask())


def test_a_query_without_an_answer_in_time_fails_though_nothing_comes(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_client, "IDLE_SECONDS", 60.0)

    async def ask() -> None:
        async with ps.AsyncClient(digits.cluster, timeout=1.5) as client:
            await client.query_model(one(digits, 0))
            await client.query_model(one(digits, 0))
            pids = [digits.cluster.process_ids[name] for name in ("alice", "bob")]
            for pid in pids:
                os.kill(pid, 19)  # SIGSTOP: nobody can say that a query's time is up
            try:
                with pytest.raises(ps.ClusterError, match=r"alice at .* did not answer in time"):
                    async with asyncio.timeout(20):
                        await client.query_model(one(digits, 0))
            finally:
                for pid in pids:
                    os.kill(pid, 18)

    with digits.serving():
        asyncio.run(ask())


class NoReaders(asyncio.SelectorEventLoop):
    """As loops are that watch no descriptors."""

    def add_reader(self, fd: object, callback: object, *args: object) -> None:
        if getattr(callback, "__name__", "") == "pump":
            raise NotImplementedError
        super().add_reader(fd, callback, *args)  # type: ignore[arg-type]


def test_where_the_loop_cannot_read_a_thread_does(digits: Digits) -> None:
    async def ask() -> None:
        async with ps.AsyncClient(digits.cluster, timeout=30) as client:
            for i in range(3):
                answer = await client.query_model(one(digits, i))
                assert answer.argmax() == digits.labels[i]
            assert not lanes_of(client)._is_driven

    with digits.serving(), asyncio.Runner(loop_factory=NoReaders) as runner:
        runner.run(ask())


def test_a_lane_that_breaks_while_the_loop_reads_is_opened_anew(digits: Digits) -> None:
    async def ask() -> None:
        async with ps.AsyncClient(digits.cluster, timeout=30) as client:
            await client.query_model(one(digits, 0))
            for turn in range(3):
                await client.query_model(one(digits, turn))
                connection = lanes_of(client)._connections[turn % 2]
                assert connection is not None
                connection.stream.sock.shutdown(2)
                for _ in range(100):  # it is noticed by whoever sends or reads next
                    if connection.is_lost:
                        break
                    with contextlib.suppress(ps.ClusterError):
                        await client.query_model(one(digits, turn))
                assert connection.is_lost
                answer = await client.query_model(one(digits, turn))
                assert answer.argmax() == digits.labels[turn]

    with digits.serving():
        asyncio.run(ask())
