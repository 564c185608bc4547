"""How many rows a query has: larger ones while that is faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from privserve.batch.pace import DEPTH, MOST_BYTES, SIZES, Pace


def settled(seconds: Callable[[int], float], **how: int) -> tuple[list[int], Pace]:
    """The sizes that were asked where a query takes so long, and the pace after a thousand."""
    asked: list[int] = []
    pace = ask(seconds, asked, **how)
    return list(dict.fromkeys(asked)), pace


def all_asked(seconds: Callable[[int], float]) -> list[int]:
    """The sizes of a thousand queries."""
    asked: list[int] = []
    ask(seconds, asked)
    return asked


def ask(seconds: Callable[[int], float], asked: list[int], **how: int) -> Pace:
    now = [0.0]
    pace = Pace(**{"max_rows": 1024, "row_bytes": 8, "timeout": 60.0, **how}, clock=lambda: now[0])
    for _ in range(1000):
        asked.append(pace.rows)
        now[0] += seconds(pace.rows)
        pace.answered(pace.rows)
    return pace


def test_queries_grow_while_that_is_faster() -> None:
    sizes, pace = settled(lambda rows: 0.02 + 1e-6 * rows)
    assert sizes == list(SIZES)
    assert pace.rows == 1024
    assert pace.in_flight == DEPTH


def test_a_size_that_gains_nothing_is_given_up_for_the_one_before() -> None:
    asked = all_asked(lambda rows: 0.002 + (0.001 if rows <= 32 else 0.0013) * rows)
    assert list(dict.fromkeys(asked)) == [1, 8, 32, 128]
    assert asked.count(32) > 3 * asked.count(128)
    assert 32 in asked[asked.index(128) :]


def test_a_cluster_that_was_busy_is_asked_more_once_it_is_not() -> None:
    busy = iter([True] * 40 + [False] * 960)
    asked = all_asked(lambda rows: 2.0 * rows if next(busy) else 0.02)
    assert set(asked[:100]) == {1}
    assert asked[-1] == 1024


def test_one_noisy_moment_does_not_keep_queries_small() -> None:
    now, pauses = [0.0], {8: 2.0}
    pace = Pace(1024, 8, 60.0, clock=lambda: now[0])
    for _ in range(1000):
        now[0] += 0.02 + 1e-6 * pace.rows
        if pace.rows in pauses and pace._since is not None:
            now[0] += pauses.pop(pace.rows)
        pace.answered(pace.rows)
    assert not pauses
    assert pace.rows == 1024


def test_a_slow_model_is_asked_few_rows_so_that_no_query_takes_too_long() -> None:
    sizes, pace = settled(lambda rows: 2.4 * rows)
    assert sizes == [1]
    assert pace.in_flight == DEPTH
    assert settled(lambda rows: 10.0 * rows)[1].in_flight == 1


def test_one_query_is_under_way_until_it_is_known_how_long_it_takes() -> None:
    pace = Pace(1024, 8, 60.0)
    assert (pace.rows, pace.in_flight) == (1, 1)


@pytest.mark.parametrize(("how", "most"), [({"max_rows": 20}, 20), ({"row_bytes": 1 << 20}, 16)])
def test_bounds_of_model_and_memory_are_kept(how: dict[str, int], most: int) -> None:
    sizes, pace = settled(lambda _: 0.001, **how)
    assert sizes[-1] == pace.rows == most
    assert DEPTH * most * how.get("row_bytes", 8) <= MOST_BYTES


def test_what_is_asked_for_is_kept_to() -> None:
    sizes, pace = settled(lambda _: 0.001, rows=7, in_flight=2)
    assert sizes == [7]
    assert pace.in_flight == 2


def test_fewer_rows_are_asked_once_that_was_needed() -> None:
    pace = settled(lambda _: 0.001)[1]
    pace.ask_fewer(5)
    pace.ask_fewer(9)
    assert pace.rows == 5
    pace.answered(5)
    assert pace.rows == 5
