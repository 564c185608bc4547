"""The network of the tests of faults does what it says: or what they show would be nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from faulty_link import FaultyLink, Wires

from privserve.addresses import split_address

MESSAGE = b"x" * 3000


class Echo:
    """Sends back what it gets, until it is closed."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                taken, _ = self._sock.accept()
            except OSError:
                return
            self.taken.append(taken)
            threading.Thread(target=self._answer, args=(taken,), daemon=True).start()

    def _answer(self, taken: socket.socket) -> None:
        with taken, contextlib.suppress(OSError):
            while data := taken.recv(1 << 16):
                taken.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for taken in self.taken:
            taken.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    one = Echo()
    yield one
    one.close()


@pytest.fixture
def link(echo: Echo) -> Iterator[FaultyLink]:
    wires = Wires()
    yield wires.link(echo.address, seed=1)
    wires.close()


@pytest.fixture
def near(link: FaultyLink) -> Iterator[socket.socket]:
    with socket.create_connection(split_address(link.address), timeout=10) as sock:
        yield sock


def there_and_back(near: socket.socket, message: bytes = MESSAGE) -> float:
    """Send and get back; how long that took."""
    began = time.monotonic()
    near.sendall(message)
    left = len(message)
    while left:
        left -= len(near.recv(1 << 16))
    return time.monotonic() - began


def test_a_link_that_is_well_carries_everything_both_ways(near: socket.socket) -> None:
    assert there_and_back(near, bytes(3_000_000)) < 5


def test_delay_is_added_to_each_way(link: FaultyLink, near: socket.socket) -> None:
    link.delay = 0.1
    assert 0.2 <= there_and_back(near) < 0.6


def test_a_rate_is_shared_by_the_connections_of_a_link(
    link: FaultyLink, near: socket.socket
) -> None:
    link.rate = 200e3
    took: list[float] = []
    with socket.create_connection(split_address(link.address), timeout=10) as other:
        threads = [
            threading.Thread(target=lambda s=s: took.append(there_and_back(s, bytes(50_000))))
            for s in (near, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(took) >= 0.5


def test_what_is_lost_comes_later_and_in_order(link: FaultyLink, near: socket.socket) -> None:
    link.loss = 0.2
    took = [there_and_back(near) for _ in range(4)]
    assert link.stalls
    assert max(took) >= 0.2


def test_a_cut_tells_nobody_and_what_was_under_way_arrives_after_the_mend(
    link: FaultyLink, near: socket.socket, echo: Echo
) -> None:
    there_and_back(near)
    link.cut()
    near.sendall(b"late")
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):
        near.recv(4)
    with socket.create_connection(split_address(link.address), timeout=10) as other:
        other.settimeout(0.1)
        with pytest.raises(TimeoutError):
            other.recv(1)
    assert len(echo.taken) == 1
    link.mend()
    near.settimeout(10)
    assert near.recv(4) == b"late"


def test_the_end_of_either_side_is_told_to_the_other(
    near: socket.socket, link: FaultyLink, echo: Echo
) -> None:
    there_and_back(near)
    near.shutdown(socket.SHUT_WR)
    assert near.recv(1) == b""
    echo.close()
    refused = socket.create_connection(split_address(link.address), timeout=10)
    with refused, pytest.raises(ConnectionError):
        refused.recv(1)
