"""What is counted of a model stays counted when its sessions go."""

from __future__ import annotations

import numpy as np
from sessions import Sessions, answer, numbers

from privserve.party.session import Session
from privserve.party.tallies import MAX_NAMES, Tallies


class Remembered:
    """In place of a party's models: those sessions that it remembers."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []

    def known(self) -> list[Session]:
        return list(self.sessions)


def asked(sessions: Sessions, rows: int) -> None:
    np.testing.assert_array_equal(answer(sessions.ask(numbers(*[1] * (2 * rows)))), 2)


def test_counts_grow_only_while_sessions_come_and_go(sessions: Sessions) -> None:
    models = Remembered()
    tallies = Tallies(models)  # type: ignore[arg-type]
    sessions.start()
    first, bobs = sessions.all[0], sessions.all[1]
    sessions.leader.queue.serve(None)
    models.sessions = [first]
    asked(sessions, 3)
    before = tallies.by_model()["m"]
    assert (before.queries.rows, before.queries.outcomes) == (3, {"answered": 1})
    assert before.exchanges == 1
    assert before.sent["bob"] > 0
    assert before.received["bob"] > 0
    asked(sessions, 2)
    first.end("the test goes on")
    models.sessions = []  # it is forgotten with what it had since
    for _ in range(2):
        after = tallies.by_model()["m"]
        assert (after.queries.rows, after.queries.outcomes) == (5, {"answered": 2})
        assert after.exchanges == 2
        assert after.sent["bob"] > before.sent["bob"], "also with its channels closed"
    models.sessions = [bobs]  # as if it were another session of this model
    both = tallies.by_model()["m"].queries
    assert (both.rows, both.outcomes) == (10, {"answered": 4})
    assert both.took["compute"].ns > after.queries.took["compute"].ns


def test_names_that_are_not_remembered_are_bounded(sessions: Sessions) -> None:
    models = Remembered()
    tallies = Tallies(models)  # type: ignore[arg-type]
    sessions.start()
    session = sessions.all[0]
    for number in range(MAX_NAMES + 5):
        object.__setattr__(session.spec, "model", f"m{number}")
        object.__setattr__(session.spec, "id", f"{number}")
        models.sessions = [session]
        tallies.by_model()
        models.sessions = []
        tallies.by_model()
    found = tallies.by_model()
    assert len(found) == MAX_NAMES
    assert "m0" not in found
    assert f"m{MAX_NAMES + 4}" in found
