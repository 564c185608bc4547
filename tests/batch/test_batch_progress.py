"""What is shown of a job's progress."""

from __future__ import annotations

import io

import pytest

from privserve.batch.progress import Progress, duration


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_five_seconds() -> None:
    now, stream = [0.0], io.StringIO()
    progress = Progress(100, 1100, stream, lambda: now[0])
    for second in range(1, 11):
        now[0] = float(second)
        progress.update(100 + 50 * second)
    assert stream.getvalue().splitlines() == [
        "350 of 1,100 rows (31 %), 50 rows/s, 15 s left",
        "600 of 1,100 rows (54 %), 50 rows/s, 10 s left",
    ]


def test_a_terminal_has_one_line_that_is_redrawn_and_gives_way() -> None:
    now, stream = [0.0], Terminal()
    progress = Progress(0, 1000, stream, lambda: now[0])
    now[0] = 1.0
    progress.update(500)
    progress.say("bob is gone")
    progress.update(501)  # at once: nothing is drawn
    now[0] = 2.0
    progress.end(1000)
    assert stream.getvalue() == (
        "\r\x1b[K[##########..........] 500 of 1,000 rows (50 %), 500 rows/s, 1 s left"
        "\r\x1b[Kbob is gone\n"
        "\r\x1b[K[####################] 1,000 of 1,000 rows (100 %), 500 rows/s, 0 s left\n"
    )


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    now, stream = [0.0], io.StringIO()
    progress = Progress(0, 10_000, stream, lambda: now[0])
    for second in range(1, 101):
        now[0] = float(second)
        progress.update(min(50, second) * 100 + max(0, second - 50))
    assert "1.00 rows/s" in progress.text()


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.4, "59 s"), (61, "1 min 1 s"), (3725, "1 h 2 min")]
)
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said
