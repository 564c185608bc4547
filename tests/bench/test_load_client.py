"""A client process of the load benchmark: when it asks, what it counts, what it calls wrong."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privserve.bench import load_client
from privserve.bench.load_client import (
    WRONG,
    Asked,
    Asker,
    Order,
    Samples,
    ask,
    ask_in_turn,
    carry_out,
    keep_schedule,
    poisson_arrivals,
    schedule,
    stream,
)
from privserve.errors import NotServing, RangeError

POOL = 7
INPUTS = np.arange(2.0 * POOL).reshape(POOL, 2)
SAMPLES = Samples(INPUTS, (INPUTS.sum(axis=1, keepdims=True),), (0.1,))
ORDER = Order("fake", 1, (1,), "seed", warmup=0.0, seconds=1.0)


class Clock:
    """Stands in for `time`: only sleeping and answering take any."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Server:
    """Answers right after the seconds that `spend` takes, one query at a time."""

    def __init__(self, spend: Callable[[], object] = lambda: None) -> None:
        self.spend = spend
        self.asked: list[np.ndarray] = []

    def query_model(self, x: np.ndarray) -> np.ndarray:
        self.asked.append(x)
        self.spend()
        return np.asarray(x.sum(axis=1, keepdims=True))

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(load_client, "time", fake)
    return fake


def serve_with(clock: Clock, services: Sequence[float]) -> Server:
    left = iter(services)
    return Server(lambda: clock.sleep(next(left)))


# -- arrivals ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(0.5, 2000), st.floats(0.01, 5), st.integers(0, 1000))
def test_arrivals_are_in_order_within_the_time_and_follow_from_the_seed(
    rate: float, seconds: float, seed: int
) -> None:
    moments = poisson_arrivals(stream(str(seed)), rate, seconds)
    assert np.all(np.diff(moments) >= 0)
    assert np.all((moments >= 0) & (moments < seconds))
    np.testing.assert_array_equal(moments, poisson_arrivals(stream(str(seed)), rate, seconds))
    # Six standard deviations, and what a Poisson variable of small mean may have more.
    mean = rate * seconds
    assert abs(len(moments) - mean) <= 6 * math.sqrt(mean) + 12


def test_gaps_between_arrivals_are_exponential_and_independent() -> None:
    rate = 250.0
    gaps = np.diff(poisson_arrivals(stream("gaps"), rate, 200.0))
    n = len(gaps)
    distance = np.abs(np.arange(1, n + 1) / n - (1 - np.exp(-rate * np.sort(gaps)))).max()
    assert distance < 2.2 / math.sqrt(n)  # Kolmogorov-Smirnov, chance below 1 in 10,000
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / math.sqrt(n)


def test_streams_of_different_seeds_differ() -> None:
    one, other = (poisson_arrivals(stream(s), 100.0, 1.0) for s in ("1 process 0", "1 process 1"))
    assert not set(one) & set(other)


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 100))
def test_queries_are_samples_in_a_row_of_one_of_the_sizes(sizes: list[int], seed: int) -> None:
    prg = stream(str(seed))
    for _ in range(10):
        rows = SAMPLES.rows(prg, sizes)
        assert len(rows) in sizes
        assert [(r + 1) % POOL for r in rows[:-1]] == list(rows[1:])
        assert set(rows) <= set(range(POOL))


def test_a_mix_holds_every_size_about_as_often_as_it_is_named() -> None:
    prg, mix = stream("mix"), (1, 1, 1, 1, 8, 32)
    drawn = [len(SAMPLES.rows(prg, mix)) for _ in range(6000)]
    for size, expected in ((1, 4000), (8, 1000), (32, 1000)):
        assert abs(drawn.count(size) - expected) < 200


# -- latency ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.5)), min_size=1, max_size=30),
)
def test_latency_is_counted_from_when_a_query_was_due(steps: list[tuple[float, float]]) -> None:
    """Against the slow reference of a single server: a query begins when the last one is done."""
    clock = Clock()
    begin = clock.now
    dues = list(begin + np.cumsum([gap for gap, _ in steps]))
    asked: list[Asked] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_client, "time", clock)
        server = serve_with(clock, [service for _, service in steps])
        arrivals = deque((due, np.array([0])) for due in dues)
        keep_schedule(arrivals, [server], SAMPLES, begin, math.inf, asked)
    done = begin
    for one, due, (_, service) in zip(asked, dues, steps, strict=True):
        free, done = done, max(done, due) + service
        assert one.due == pytest.approx(due - begin, abs=1e-6)
        assert one.done == pytest.approx(done - begin, abs=1e-6)
        assert one.waited == (free > due) or abs(free - due) < 1e-6
        assert one.lag == pytest.approx(0, abs=1e-6)
        assert not one.failure


def test_a_stall_hits_all_who_would_have_asked_and_a_closed_loop_hides_that(clock: Clock) -> None:
    """A hundred queries a second to a server that takes a millisecond and stops once, for one."""
    services = [0.001] * 50 + [1.0] + [0.001] * 2000
    order = replace(ORDER, seconds=3.0)
    begin = clock.now
    open_loop: list[Asked] = []
    arrivals = deque((begin + i / 100, np.array([0])) for i in range(300))
    server = serve_with(clock, services)
    keep_schedule(arrivals, [server], SAMPLES, begin, math.inf, open_loop)
    slow = [one for one in open_loop if one.done - one.due > 0.1]
    assert len(slow) > 90
    assert max(one.done - one.due for one in open_loop) == pytest.approx(1.0)

    begin = clock.now
    closed: list[Asked] = []
    ask_in_turn(serve_with(clock, services), SAMPLES, order, stream("x"), begin, closed)
    assert len([one for one in closed if one.done - one.due > 0.1]) == 1


def test_a_client_that_wakes_late_is_told_from_a_cluster_that_is_slow(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = clock.sleep
    monkeypatch.setattr(clock, "sleep", lambda seconds: sleep(seconds + 0.25 * (seconds > 0)))
    asked: list[Asked] = []
    begin = clock.now
    arrivals = deque([(begin + 1.0, np.array([0])), (begin + 1.1, np.array([0]))])
    keep_schedule(arrivals, [Server()], SAMPLES, begin, math.inf, asked)
    first, second = asked
    assert (first.lag, first.waited) == (pytest.approx(0.25), False)
    assert (second.lag, second.waited) == (pytest.approx(0), True)
    assert second.done - second.due == pytest.approx(0.15)


def test_what_is_not_sent_in_time_stays_unsent_and_is_counted(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_client, "DRAIN_SECONDS", 1.0)
    order = replace(ORDER, rate=10.0, seconds=2.0)
    due = len(schedule(order, SAMPLES, 0.0))
    outcome = carry_out(order, clock.now, [serve_with(clock, [1.0] * due)], SAMPLES, lambda: None)
    assert 2 <= len(outcome.asked) <= 4
    assert outcome.unsent == due - len(outcome.asked) > 0


def test_the_client_that_asked_last_asks_next(clock: Clock) -> None:
    """Or connections go stale between two queries of theirs."""
    servers = [Server() for _ in range(5)]
    idle: list[Asker] = list(servers)
    arrivals = deque((clock.now + i, np.array([0])) for i in range(10))
    keep_schedule(arrivals, idle, SAMPLES, clock.now, math.inf, [])
    assert [len(server.asked) for server in servers] == [0, 0, 0, 0, 10]


# -- many clients at once ---------------------------------------------------------------------


@pytest.mark.parametrize("rate", [None, 400.0])
def test_all_clients_ask_at_once_and_every_arrival_is_answered(rate: float | None) -> None:
    meeting = threading.Barrier(4)
    met = threading.Event()

    def meet() -> None:
        if not met.is_set():
            meeting.wait(20)  # or the barrier breaks, and its error is raised below
            met.set()

    servers = [Server(meet) for _ in range(4)]
    order = replace(ORDER, clients=4, rate=rate, warmup=0.05, seconds=0.2, sizes=(1, 3))
    watched: list[None] = []
    begin = load_client.time.monotonic() + 0.1
    outcome = carry_out(order, begin, servers, SAMPLES, lambda: watched.append(None))
    assert outcome.unsent == 0
    assert watched
    assert not [one for one in outcome.asked if one.failure]
    assert len(outcome.asked) == sum(len(server.asked) for server in servers)
    if rate is None:
        assert min(len(server.asked) for server in servers) > 0
        assert all(one.due == one.sent for one in outcome.asked)
    else:
        due = [moment for moment, _ in schedule(order, SAMPLES, -order.warmup)]
        assert sorted(one.due for one in outcome.asked) == pytest.approx(due, abs=1e-6)
        assert all(one.sent >= one.due for one in outcome.asked)


def test_what_a_client_cannot_mean_ends_the_work() -> None:
    def break_down() -> None:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        carry_out(ORDER, load_client.time.monotonic(), [Server(break_down)], SAMPLES, lambda: None)


def test_whoever_watches_can_end_the_work() -> None:
    def gone() -> None:
        raise EOFError

    order = replace(ORDER, seconds=60.0)
    with pytest.raises(EOFError):
        carry_out(order, load_client.time.monotonic(), [Server()], SAMPLES, gone)


# -- answers ----------------------------------------------------------------------------------


class Fixed(Server):
    """Gives one answer, or raises it."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def query_model(self, x: np.ndarray) -> np.ndarray:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


RIGHT = SAMPLES.expected[0][[2, 3]]


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (RIGHT, ""),
        (RIGHT + 0.09, ""),
        (RIGHT + np.array([[0.0], [0.2]]), WRONG),
        (RIGHT[:1], WRONG),
        (RIGHT[::-1], WRONG),
        (np.full_like(RIGHT, np.nan), WRONG),
        ([RIGHT, RIGHT], WRONG),
        (NotServing("nobody serves it"), "NotServing 503"),
        (RangeError("too large"), "RangeError"),
    ],
)
def test_answers_are_compared_with_the_float_models(answer: object, failure: str) -> None:
    one = ask(Fixed(answer), SAMPLES, np.array([2, 3]), 0.0)
    assert one.failure == failure
    assert one.rows == 2
    assert bool(one.why) == bool(failure)


def test_each_output_has_a_tolerance_of_its_own() -> None:
    samples = Samples(INPUTS, (INPUTS, 100 * INPUTS), (0.1, 10.0))
    rows = np.array([1])
    near = [INPUTS[rows] + 0.05, 100 * INPUTS[rows] + 5]
    far = [INPUTS[rows] + 5, 100 * INPUTS[rows] + 5]
    assert not ask(Fixed(near), samples, rows, 0.0).failure
    assert ask(Fixed(far), samples, rows, 0.0).failure == WRONG


def test_a_closed_loop_waits_a_little_after_a_refusal(clock: Clock) -> None:
    asked: list[Asked] = []
    refusing = Fixed(NotServing("busy"))
    ask_in_turn(refusing, SAMPLES, ORDER, stream("x"), clock.now, asked)
    assert 15 <= len(asked) <= 25
