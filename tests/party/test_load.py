"""Many clients at once, some of them gone before they are answered; and connections for nothing.

`PRIVSERVE_SOAK_SECONDS` sets how long the long soak takes (600 by default).
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import client_headers, free_workers, serving, wait_until

import privserve as ps
from privserve.config import PartyConfig

CLIENTS = 64
X = np.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def model() -> ps.SecureModel:
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return ps.load_model(net, input_shape=(4,), name="load")


@pytest.fixture(scope="module")
def cluster(model: ps.SecureModel) -> Iterator[ps.Cluster]:
    with ps.Cluster(*free_workers()) as running:
        model.share(running)
        yield running


class Held:
    """What a party's process holds: memory in MB, descriptors, threads."""

    def __init__(self, cluster: ps.Cluster, name: str) -> None:
        process = Path(f"/proc/{cluster.process_ids[name]}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        self.memory = int(status["VmRSS"].split()[0]) / 1024
        self.threads = int(status["Threads"])
        self.descriptors = len(list((process / "fd").iterdir()))


def held(cluster: ps.Cluster) -> dict[str, Held]:
    return {name: Held(cluster, name) for name in cluster.names}


def tls_to(cluster: ps.Cluster, party: PartyConfig) -> ssl.SSLSocket:
    host, port = party.endpoint
    context = ssl.create_default_context(cafile=str(cluster.config.ca))
    return context.wrap_socket(
        socket.create_connection((host, port), timeout=10), server_hostname=host
    )


def vanish(cluster: ps.Cluster, path: str) -> None:
    """Send one party half a query, and reset the connection."""
    body = b'{"id": "gone", "inputs": ['
    shown = client_headers(cluster.config, "alice")["Authorization"]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\nAuthorization: {shown}\r\n\r\n"
    )
    with contextlib.suppress(OSError), tls_to(cluster, cluster.config.compute[0]) as stream:
        stream.sendall(head.encode() + body)
        # No goodbye: the peer sees a reset.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Crowd:
    """Client threads that ask until they are stopped, and what came of it."""

    def __init__(self, cluster: ps.Cluster, expected: np.ndarray) -> None:
        self.answered = [0] * CLIENTS
        self.failures: list[BaseException] = []
        self._cluster, self._expected = cluster, expected
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work, i), daemon=True)
            for work, count in ((self._ask, CLIENTS), (self._poll, 3), (self._leave, 2))
            for i in range(count)
        ]

    def _guarded(self, work: object, number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except BaseException as failure:
            self.failures.append(failure)
            self._stop.set()

    def _ask(self, number: int) -> None:
        with ps.Client(self._cluster) as client:
            while not self._stop.is_set():
                got = client.query_model(X)
                self.answered[number] += len(X)
                assert np.abs(got - self._expected).max() < 1e-2

    def _poll(self, number: int) -> None:
        """Status, again and again, of every party: what the owner's serve() asks for, faster."""
        while not self._stop.is_set():
            for party in self._cluster.config.parties:
                self._cluster.call(party, "GET", "/privserve/status")

    def _leave(self, number: int) -> None:
        leader = self._cluster.config.compute[0]
        version = self._cluster.call(leader, "GET", "/v2/models/load").json()["versions"][0]
        while not self._stop.wait(0.02):
            vanish(self._cluster, f"/v2/models/load/versions/{version}/infer")

    def run(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        self._stop.wait(seconds)
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.failures, self.failures[:3]


def soak(cluster: ps.Cluster, model: ps.SecureModel, seconds: float) -> None:
    expected = model.converted.predict(X)
    leader = cluster.config.compute[0]
    with serving(cluster, model) as thread:
        warm = Crowd(cluster, expected)
        warm.run(min(30.0, seconds / 3))
        before = held(cluster)
        crowd = Crowd(cluster, expected)
        crowd.run(seconds)
        assert thread.is_alive(), "serve() ended under load"
        total = sum(crowd.answered) + sum(warm.answered)
        status = cluster.call(leader, "GET", "/privserve/status").json()
        assert status["answered"] == total
        assert min(crowd.answered) > 0

        def settled() -> bool:
            now = held(cluster)
            return all(
                now[n].descriptors <= before[n].descriptors + 8
                and now[n].threads <= before[n].threads + 2
                for n in cluster.names
            )

        wait_until(settled, "descriptors and threads are as before")
        for name, now in held(cluster).items():
            grown = now.memory - before[name].memory
            assert grown < 12, f"{name} grew by {grown:.0f} MB"


def test_sixty_four_clients_and_some_that_vanish_get_all_answers(
    cluster: ps.Cluster, model: ps.SecureModel
) -> None:
    soak(cluster, model, 6)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_minutes_of_sixty_four_clients_leave_nothing_behind(
    cluster: ps.Cluster, model: ps.SecureModel
) -> None:
    soak(cluster, model, float(os.environ.get("PRIVSERVE_SOAK_SECONDS", "600")))


@pytest.mark.slow
def test_connections_that_made_one_request_leave_nothing_at_any_kind_of_party(
    cluster: ps.Cluster,
) -> None:
    """Health probes, closed in every way there is: 2,000 per party."""
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    def probe(party: PartyConfig, number: int) -> None:
        stream = tls_to(cluster, party)
        stream.sendall(request if number % 4 else request[:20])
        if number % 4:
            assert stream.recv(4096).startswith(b"HTTP/1.1 200")
        if number % 2:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif number % 6 == 0:
            with contextlib.suppress(OSError):
                stream.unwrap()
        stream.close()

    for party in cluster.config.parties:
        for number in range(200):
            probe(party, number)
        before = Held(cluster, party.name)
        for number in range(2000):
            probe(party, number)
        now = Held(cluster, party.name)
        assert now.memory - before.memory < 8, f"{party.name}: {before.memory} -> {now.memory} MB"
        wait_until(
            lambda p=party, b=before: Held(cluster, p.name).descriptors <= b.descriptors + 3,
            "the descriptors are free again",
        )


def test_serving_survives_polls_that_fail(
    cluster: ps.Cluster, model: ps.SecureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cluster.cells[0]
    call, asked = cell.call, iter(range(1000))

    def flaky(party: PartyConfig, method: str, path: str, **options: object) -> object:
        if threading.current_thread() is serve and path == "/privserve/status":
            turn = next(asked) % 5  # one look asks up to four times: not in step with it
            if turn == 1:
                raise ps.QueryError("internal error; see the party's log", 500)
            if turn == 2:
                raise ps.ClusterError("alice did not answer in time")
        return call(party, method, path, **options)

    monkeypatch.setattr(cell, "call", flaky)
    answered: list[int] = []
    serve = threading.Thread(target=lambda: answered.append(model.serve(5 * len(X))), daemon=True)
    serve.start()
    leader = cluster.config.compute[0]
    wait_until(
        lambda: call(leader, "GET", "/privserve/status").json()["serving"], "the model is served"
    )
    with ps.Client(cluster) as client:
        for _ in range(5):
            client.query_model(X)
            time.sleep(0.05)  # so that polls fall between the answers
    serve.join(20)
    assert answered == [5 * len(X)]
    assert next(asked) > 3


def test_a_party_without_free_descriptors_goes_on_when_there_are_some_and_logs_little(
    model: ps.SecureModel,
) -> None:
    with ps.Cluster(*free_workers()) as cluster:
        alice = cluster.config.parties[0]
        pid = cluster.process_ids["alice"]
        most = len(os.listdir(f"/proc/{pid}/fd")) + 40
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        idle: list[socket.socket] = []
        for _ in range(120):
            sock = socket.socket()
            sock.settimeout(5)
            sock.connect(alice.endpoint)
            idle.append(sock)
        log = cluster.cells[0].log("alice")
        wait_until(lambda: "Too many open files" in log.read_text(), "alice ran out of descriptors")
        for sock in idle:
            sock.close()
        wait_until(
            lambda: len(os.listdir(f"/proc/{pid}/fd")) < most - 30, "alice's descriptors are free"
        )
        model.share(cluster)
        with serving(cluster, model), ps.Client(cluster) as client:
            assert np.abs(client.query_model(X) - model.converted.predict(X)).max() < 1e-2
        assert log.read_text().count("Too many open files") < 15
