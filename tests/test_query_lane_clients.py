"""Clients on query lanes: threads, background queries, streams, asyncio; what breaks and heals."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from serving import SMALL, Digits, free_workers, serving, small_model, wait_until

import privserve as ps
from privserve import lane_client, lane_connection
from privserve.client import IN_FLIGHT
from privserve.http_client import HttpClient
from privserve.lane_client import LaneClient


def predicted(digits: Digits, rows: slice) -> np.ndarray:
    return digits.model.converted.predict(digits.images[rows])


def one(digits: Digits, i: int) -> np.ndarray:
    return digits.images[i % len(digits.images)][None]


def test_a_client_speaks_over_lanes_where_parties_know_them(
    digits: Digits, client: ps.Client
) -> None:
    with digits.serving():
        client.query_model(digits.images[:1])
    assert isinstance(client._cells[0].way, LaneClient)


def test_a_client_falls_back_to_http_where_that_is_all_that_gets_through(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_connection, "PROTOCOL", "something-else/1")
    with digits.serving(), ps.Client(digits.cluster, timeout=30) as client:
        answer = client.query_model(digits.images[:2])
        future = client.query_model_async(digits.images[:2])
        np.testing.assert_allclose(future.result(30), answer, atol=1e-2)
        assert isinstance(client._cells[0].way, HttpClient)
    np.testing.assert_allclose(answer, predicted(digits, slice(2)), atol=2e-2)


def test_a_client_speaks_http_where_it_is_told_to(digits: Digits) -> None:
    with digits.serving(), ps.Client(digits.cluster, timeout=30, http=True) as client:
        assert client.query_model(digits.images[:1]).argmax() == digits.labels[0]
        assert isinstance(client._cells[0].way, HttpClient)


def test_many_threads_share_a_client_and_get_their_own_answers(
    digits: Digits, client: ps.Client
) -> None:
    expected = predicted(digits, slice(None))
    with digits.serving(), ThreadPoolExecutor(200) as pool:
        futures = [pool.submit(client.query_model, one(digits, i)) for i in range(600)]
        for i, future in enumerate(futures):
            row = expected[i % len(expected)]
            np.testing.assert_allclose(future.result(60)[0], row, atol=2e-2)


def test_a_stream_yields_answers_in_order_and_takes_queries_as_it_goes(
    digits: Digits, client: ps.Client
) -> None:
    taken: list[int] = []

    def queries() -> Iterator[np.ndarray]:
        for i in range(100):
            taken.append(i)
            yield one(digits, i)

    expected = predicted(digits, slice(None))
    with digits.serving():
        for i, answer in enumerate(client.stream(queries(), in_flight=8)):
            np.testing.assert_allclose(answer[0], expected[i % len(expected)], atol=2e-2)
            assert len(taken) <= i + 8
    assert len(taken) == 100


def test_a_stream_raises_what_its_first_bad_query_raises(digits: Digits, client: ps.Client) -> None:
    queries = [one(digits, 0), np.full((1, 28, 28, 1), 99.0), one(digits, 1)]
    with digits.serving():
        stream = client.stream(queries)
        assert next(stream).shape == (1, 10)
        with pytest.raises(ps.RangeError):
            next(stream)
        with pytest.raises(ps.ConfigError, match="at least one"):
            next(client.stream(queries, in_flight=0))


def test_join_returns_what_was_begun_in_order(digits: Digits, client: ps.Client) -> None:
    expected = predicted(digits, slice(3))
    with digits.serving():
        for i in range(3):
            client.query_model_async(one(digits, i))
        client.query_model_async(np.zeros((1, 3)))
        for i in range(3):
            np.testing.assert_allclose(client.query_model_join(30)[0], expected[i], atol=2e-2)
        with pytest.raises(ps.InputError):
            client.query_model_join(30)
    with pytest.raises(ps.QueryError, match="no query was begun"):
        client.query_model_join()


def test_a_future_that_is_cancelled_harms_no_other(digits: Digits, client: ps.Client) -> None:
    with digits.serving():
        futures = [client.query_model_async(one(digits, i)) for i in range(40)]
        for future in futures[::2]:
            future.cancel()
        for i, future in enumerate(futures):
            try:
                assert future.result(30).shape == (1, 10)
            except CancelledError:
                assert i % 2 == 0


def test_asyncio_programs_await_many_at_a_time(digits: Digits) -> None:
    async def ask() -> list[np.ndarray]:
        async with ps.AsyncClient(digits.cluster, timeout=30) as client:
            return await asyncio.gather(*(client.query_model(one(digits, i)) for i in range(200)))

    expected = predicted(digits, slice(None))
    with digits.serving():
        answers = asyncio.run(ask())
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer[0], expected[i % len(expected)], atol=2e-2)


def test_an_awaited_query_that_is_cancelled_leaves_the_client_whole(digits: Digits) -> None:
    async def ask() -> np.ndarray:
        async with ps.AsyncClient(digits.cluster, timeout=30) as client:
            await client.query_model(one(digits, 0))
            task = asyncio.create_task(client.query_model(one(digits, 0)))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await client.query_model(one(digits, 0))

    with digits.serving():
        assert asyncio.run(ask()).argmax() == digits.labels[0]


def test_a_query_that_is_cancelled_is_withdrawn_from_the_parties(tag: str) -> None:
    async def ask(cluster: ps.Cluster) -> None:
        async with ps.AsyncClient(cluster, timeout=30) as client:
            model = await client.read_model()
            assert client.model is model
            task = asyncio.create_task(client.query_model(SMALL))
            await asyncio.sleep(0)  # it is begun
            await client.read_model()  # over the same lanes: the parties have it by now
            task.cancel()
            # The one row that is served was not spent on it.
            assert (await client.query_model(SMALL)).shape == (1, 2)
            with pytest.raises(ps.LimitReached):
                await client.query_model(SMALL)

    with ps.Cluster(*free_workers()) as cluster, small_model() as model:
        model.share(cluster, options={"max_delay_ms": 3000})
        with serving(cluster, model, num_requests=1):
            asyncio.run(ask(cluster))


def test_background_queries_that_cannot_begin_take_no_place(tag: str) -> None:
    """Each used to keep one of IN_FLIGHT places; then all further ones waited in vain."""
    with ps.Cluster(*free_workers()) as cluster, small_model() as model:
        model.share(cluster)
        client = ps.Client(cluster, timeout=2)
        with serving(cluster, model):
            client.query_model(SMALL)
    failed = [client.query_model_async(SMALL) for _ in range(IN_FLIGHT + 3)]
    for future in failed:
        # Whichever of the two went first is named.
        with pytest.raises(ps.ClusterError, match=r"connection to (alice|bob)|reach (alice|bob)"):
            future.result(5)
    client.close()


def test_answers_are_read_while_another_thread_reads_the_model(tag: str) -> None:
    """Who reads the model waits for the thread that reads answers, which must not wait for it."""
    with ps.Cluster(*free_workers()) as cluster, small_model() as model:
        model.share(cluster)
        with ps.Client(cluster, timeout=30) as client:
            client.read_model()
            model.share(cluster)  # what the client knows is of a session that is over
            with serving(cluster, model):
                with client._cells[0].lock:  # as `read_model` holds it
                    future = client.query_model_async(SMALL)
                    wait_until(lambda: client._cells[0].model is None, "the refusal is read")
                assert future.result(30).shape == (1, 2)


def test_an_event_loop_goes_on_while_a_lane_is_opened_anew(digits: Digits) -> None:
    async def ask(pid: int) -> float:
        longest, told = 0.0, asyncio.Event()

        async def tick() -> None:
            nonlocal longest
            while not told.is_set():
                started = time.monotonic()
                await asyncio.sleep(0.02)
                longest = max(longest, time.monotonic() - started)

        async with ps.AsyncClient(digits.cluster, timeout=4) as client:
            await client.query_model(one(digits, 0))
            os.kill(pid, 19)  # SIGSTOP: bob's port takes connections, and nobody greets them
            try:
                bob = client._client._cells[0].way._connections[1]  # type: ignore[union-attr]
                bob.stream.sock.shutdown(socket.SHUT_RDWR)
                ticking = asyncio.create_task(tick())
                for _ in range(2):  # one finds the lane broken, one opens another
                    with pytest.raises(ps.ClusterError, match="bob"):
                        await client.query_model(one(digits, 0))
                told.set()
                await ticking
            finally:
                os.kill(pid, 18)
        return longest

    with digits.serving():
        assert asyncio.run(ask(digits.cluster.process_ids["bob"])) < 2
    with digits.serving(), ps.Client(digits.cluster, timeout=30) as client:
        assert client.query_model(one(digits, 0)).argmax() == digits.labels[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lane_that_broke_while_idle_is_opened_anew(
    digits: Digits, client: ps.Client, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_client, "IDLE_SECONDS", -1.0)
    with digits.serving():
        client.query_model(one(digits, 0))
        broken = client._cells[0].way._connections[rank]  # type: ignore[union-attr]
        broken.stream.sock.shutdown(socket.SHUT_RDWR)
        assert client.query_model(one(digits, 0)).argmax() == digits.labels[0]
        assert client._cells[0].way._connections[rank] is not broken  # type: ignore[union-attr]


def test_a_lane_that_breaks_under_a_query_is_said_with_the_partys_name(
    digits: Digits, client: ps.Client
) -> None:
    client.read_model()
    with digits.serving():
        digits.model.status()
    # Nobody serves: alice refuses, and bob's lane breaks before it says so.
    bob = client._cells[0].way._connections[1]  # type: ignore[union-attr]
    bob.stream.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises((ps.ClusterError, ps.NotServing), match=r"connection to bob|stopped"):
        client.query_model(one(digits, 0))
    with digits.serving():
        assert client.query_model(one(digits, 0)).argmax() == digits.labels[0]


def test_a_query_without_an_answer_in_time_names_who_is_silent(digits: Digits) -> None:
    with digits.serving(), ps.Client(digits.cluster, timeout=3) as client:
        client.query_model(one(digits, 0))
        pid = digits.cluster.process_ids["bob"]
        os.kill(pid, 19)  # SIGSTOP
        try:
            with pytest.raises(ps.PrivserveError) as refused:
                client.query_model(one(digits, 0))
        finally:
            os.kill(pid, 18)
        assert "did not answer in time" in str(refused.value) or "bob" in str(refused.value)


def test_a_background_query_without_an_answer_in_time_fails_and_its_lane_is_given_up(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_client, "IDLE_SECONDS", 60.0)
    with digits.serving(), ps.Client(digits.cluster, timeout=2) as client:
        client.query_model(one(digits, 0))
        lanes = list(client._cells[0].way._connections)  # type: ignore[union-attr]
        pids = [digits.cluster.process_ids[name] for name in ("alice", "bob")]
        for pid in pids:
            os.kill(pid, 19)  # SIGSTOP: nobody can say that a query's time is up
        try:
            future = client.query_model_async(one(digits, 0))
            with pytest.raises(ps.ClusterError, match=r"alice at .* did not answer in time"):
                future.result(20)
        finally:
            for pid in pids:
                os.kill(pid, 18)
        assert all(lane.is_lost for lane in lanes)
        # On a busy machine the others may have given them up as well.
        wait_until(lambda: digits.cluster.models()[0].serving, "both are back", 30)
        assert client.query_model(one(digits, 0)).argmax() == digits.labels[0]
    with digits.serving(), ps.Client(digits.cluster, timeout=30) as client:
        assert client.query_model(one(digits, 0)).argmax() == digits.labels[0]


def test_who_waits_is_told_when_the_client_is_closed(digits: Digits) -> None:
    with digits.serving():
        client = ps.Client(digits.cluster, timeout=30)
        client.query_model(one(digits, 0))
        pid = digits.cluster.process_ids["bob"]
        os.kill(pid, 19)
        try:
            failed: list[BaseException] = []

            def ask() -> None:
                try:
                    client.query_model(one(digits, 0))
                except ps.ClusterError as error:
                    failed.append(error)

            thread = threading.Thread(target=ask)
            thread.start()
            deadline = time.monotonic() + 10
            while not client._cells[0].way._asked and time.monotonic() < deadline:  # type: ignore[union-attr]
                time.sleep(0.01)
            client.close()
            thread.join(10)
            assert not thread.is_alive()
        finally:
            os.kill(pid, 18)
        assert "closed" in str(failed[0])
        with pytest.raises(ps.ClusterError, match="closed"):
            client.query_model(one(digits, 0))


def test_a_client_follows_its_cluster_to_the_next_model(tag: str) -> None:
    x = np.array([[0.5, -1.0, 2.0, 0.25]])
    with ps.Cluster(*free_workers()) as cluster:
        client = ps.Client(cluster, timeout=30)
        for _ in range(2):
            with small_model() as model:
                model.share(cluster)
                with serving(cluster, model):
                    expected = model.converted.predict(x)
                    np.testing.assert_allclose(client.query_model(x), expected, atol=1e-2)
                    future = client.query_model_async(x)
                    np.testing.assert_allclose(future.result(30), expected, atol=1e-2)
        with pytest.raises(ps.NotServing):
            client.query_model(x)
        client.close()


def test_another_model_of_the_same_shapes_is_not_asked_in_silence(tag: str) -> None:
    """A client that knows one model must not get the answers of another one."""
    x = np.array([[0.5, -1.0, 2.0, 0.25]])
    with ps.Cluster(*free_workers()) as cluster, ps.Client(cluster, timeout=30) as client:
        for name, background in (("first", False), ("second", False), ("third", True)):
            torch.manual_seed(len(name))
            with ps.load_model(torch.nn.Linear(4, 2), input_shape=(4,), name=name) as model:
                model.share(cluster)
                with serving(cluster, model):
                    if name != "first":
                        ask = client.query_model_async if background else client.query_model
                        with pytest.raises(ps.QueryError, match=f"'{name}' is served now"):
                            getattr(ask(x), "result", lambda: None)()
                    expected = model.converted.predict(x)
                    np.testing.assert_allclose(client.query_model(x), expected, atol=1e-2)


def test_a_client_in_a_forked_child_refuses_to_ask(digits: Digits, client: ps.Client) -> None:
    """The child's stream of masks is the parent's: two secrets under one mask are told apart."""
    with digits.serving():
        client.query_model(one(digits, 0))
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                client.query_model(one(digits, 0))
                said = b"asked"
            except BaseException as error:
                said = str(error).encode()
            os.write(writing, said)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        assert b"does not survive a fork" in said
        assert client.query_model(one(digits, 0)).argmax() == digits.labels[0]


def test_shares_of_one_input_differ_each_time_and_sum_to_it(client: ps.Client) -> None:
    x = {"x": np.arange(8, dtype=np.int64)}
    splits = [client._cells[0].split(x) for _ in range(5)]
    for alice, bob in splits:
        np.testing.assert_array_equal(alice["x"] + bob["x"], x["x"])
    assert len({alice["x"].tobytes() for alice, _ in splits}) == 5


def test_a_client_loads_no_http_library_and_no_torch() -> None:
    code = (
        "import sys; from privserve import Client, AsyncClient; "
        "print(sorted({'httpx', 'torch', 'onnx', 'numba', 'uvicorn'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_thread_is_left_waiting_when_the_one_that_reads_has_its_answer(
    digits: Digits, client: ps.Client
) -> None:
    """Threads that come and go, so that the reading is handed on all the time."""
    with digits.serving():
        client.query_model(one(digits, 0))
        began = time.monotonic()
        for round_ in range(40):
            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(lambda i: client.query_model(one(digits, i)), range(12)))
            assert len(answers) == 12, round_
    assert time.monotonic() - began < 60
