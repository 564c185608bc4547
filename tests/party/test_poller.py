"""What a compute party waits for: sockets, calls of other threads, timers; who drives."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from serving import wait_until

from privserve.party.poller import READABLE, WRITABLE, Poller


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


Pair = tuple[socket.socket, socket.socket]


def test_while_nobody_is_attached_its_own_thread_calls_back(poller: Poller, pair: Pair) -> None:
    heard, called = threading.Event(), threading.Event()

    def register() -> None:
        poller.register(pair[0].fileno(), lambda events: heard.set() or pair[0].recv(9))

    poller.call(register)
    pair[1].send(b"x")
    assert heard.wait(10)
    poller.call(called.set)
    assert called.wait(10)


def test_an_attached_thread_drives_and_the_stand_in_only_while_it_is_away(
    poller: Poller, pair: Pair
) -> None:
    drivers: list[str] = []

    def heard(events: int) -> None:
        pair[0].recv(1)
        drivers.append(threading.current_thread().name)

    with poller.attached():
        poller.register(pair[0].fileno(), heard)
        pair[1].send(b"x")
        wait_until(lambda: poller.poll(0.01) or drivers, "this thread hears it")
        assert drivers == [threading.current_thread().name]
        with poller.away():
            pair[1].send(b"x")
            wait_until(lambda: len(drivers) == 2, "the stand-in hears it")
        assert drivers[1] == "poller"
        poller.unregister(pair[0].fileno())


def test_a_wake_between_a_look_and_the_wait_for_more_ends_that_wait(poller: Poller) -> None:
    """A thread that looked and found nothing must not sleep over what came since."""
    with poller.attached():
        poller.poll(0)  # it looked
        waker = threading.Thread(target=poller.wake)
        waker.start()
        waker.join()
        began = time.monotonic()
        poller.poll(20)
        assert time.monotonic() - began < 10, "it slept over the wake"


def test_timers_go_off_in_their_order(poller: Poller) -> None:
    order: list[str] = []

    def start() -> None:
        poller.call_later(0.10, lambda: order.append("late"))
        poller.call_later(0.05, lambda: order.append("soon"))

    poller.call(start)
    wait_until(lambda: len(order) == 2, "both went off", 10)
    assert order == ["soon", "late"]


def test_it_waits_for_room_to_write_where_that_is_wanted(poller: Poller, pair: Pair) -> None:
    seen: list[int] = []
    with poller.attached():
        poller.register(pair[0].fileno(), seen.append)
        poller.poll(0)
        assert not seen
        poller.want(pair[0].fileno(), READABLE | WRITABLE)
        poller.poll(5)
        assert seen[-1] & WRITABLE
        poller.want(pair[0].fileno(), READABLE)
        poller.unregister(pair[0].fileno())
        poller.unregister(pair[0].fileno())  # twice is once
