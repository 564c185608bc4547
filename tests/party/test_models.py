"""Which sessions a party has: names, places, room, and what is listed. The sessions are fakes."""

from __future__ import annotations

import pytest

from privserve.errors import NotServing, QueryError, StaleSession
from privserve.party.memory import promised_memory
from privserve.party.metadata import index_entry
from privserve.party.models import MAX_MODELS, MAX_PAST, Models, Place
from privserve.party.session_spec import SessionSpec


class Fake:
    """A session that is loaded as soon as one says so."""

    def __init__(self, spec: SessionSpec, came_back: str = "") -> None:
        self.spec = spec
        self.state, self.reason = "loading", ""
        self.is_replaced = False
        self.memory: int | None = None
        self.engine_memory = 0

    @property
    def is_alive(self) -> bool:
        return self.state in ("loading", "loaded")

    def start(self) -> None:
        pass

    def end(self, reason: str) -> None:
        if self.is_alive:
            self.state, self.reason = "ended", reason

    def drain(self) -> None:
        self.is_replaced = True


@pytest.fixture
def models() -> Models:
    return Models("alice", Fake)  # type: ignore[arg-type]


def share(models: Models, name: str, session: str, engine: str = "ottt", state: str = "loaded"):
    models.load(SessionSpec(session, name, engine, {}, {}))  # type: ignore[typeddict-item]
    found = models.find(session)
    assert isinstance(found, Fake)
    found.state = state
    return found


def places(models: Models) -> list[tuple[str, str]]:
    return [(session.spec.id, place.value) for place, session in models.listed()]


def test_models_of_other_names_stay(models: Models) -> None:
    share(models, "a", "1")
    share(models, "b", "2")
    assert places(models) == [("1", "current"), ("2", "current")]
    assert models.only() is None
    assert [s.spec.model for s in models.loaded()] == ["a", "b"]
    models.unload("a")
    assert models.only() is models.current("b")
    assert models.current("a").reason == "the model owner stopped the model"


def test_a_model_in_anothers_place_comes_is_switched_to_and_the_old_one_drains(
    models: Models,
) -> None:
    old = share(models, "a", "1")
    new = share(models, "a", "2")
    assert places(models) == [("1", "current"), ("2", "coming")]
    assert models.only() is old, "clients are told of the one that has the name"
    assert not models.is_asked(new)
    assert index_entry(Place.COMING, new)["state"] == "LOADING"
    models.switch("2")
    models.switch("2")
    assert places(models) == [("2", "current"), ("1", "draining")]
    assert old.is_replaced
    assert old.is_alive
    assert models.is_asked(old)
    assert index_entry(Place.DRAINING, old)["state"] == "UNLOADING"
    models.unload("a", "1")
    assert places(models) == [("2", "current")]
    assert "another model under this name" in old.reason
    assert models.find("1") is old, "its owner may ask how it ended"
    models.unload("a", "1")
    assert new.is_alive


def test_a_new_one_simply_takes_the_place_of_one_that_is_over(models: Models) -> None:
    share(models, "a", "1").state = "failed"
    share(models, "a", "2")
    assert places(models) == [("2", "current")]


def test_a_name_has_one_that_is_coming_at_most(models: Models) -> None:
    share(models, "a", "1")
    given_up = share(models, "a", "2")
    share(models, "a", "3")
    assert places(models) == [("1", "current"), ("3", "coming")]
    assert given_up.state == "ended"
    with pytest.raises(StaleSession):
        models.switch("2")


@pytest.mark.parametrize("state", ["loading", "failed"])
def test_what_is_not_set_up_is_not_switched_to(models: Models, state: str) -> None:
    old = share(models, "a", "1")
    share(models, "a", "2", state=state)
    with pytest.raises(NotServing, match="not set up"):
        models.switch("2")
    assert models.current("a") is old
    assert not old.is_replaced


def test_one_that_is_coming_can_be_unloaded_and_the_old_one_goes_on(models: Models) -> None:
    old = share(models, "a", "1")
    share(models, "a", "2")
    models.unload("a", "2")
    assert places(models) == [("1", "current")]
    assert old.is_alive


def test_to_stop_a_name_stops_all_its_sessions(models: Models) -> None:
    sessions = [share(models, "a", "1"), share(models, "a", "2")]
    models.switch("2")
    sessions.append(share(models, "a", "3"))
    models.unload("a")
    assert not any(session.is_alive for session in sessions)
    assert places(models) == [("2", "current")], "what had the name is listed with its reason"
    models.unload("a")
    assert places(models) == [("2", "current")], "nor does it matter that it is over already"
    with pytest.raises(QueryError, match="there is no model 'b' here; there are: 'a'") as error:
        models.unload("b")
    assert error.value.status == 404


def test_a_party_holds_so_many_models_and_says_what_to_do(models: Models) -> None:
    for i in range(MAX_MODELS):
        share(models, f"m{i}", str(i))
    with pytest.raises(QueryError, match="alice holds 16 models, and no more; stop one first"):
        share(models, "one more", "x")
    with pytest.raises(QueryError, match="no more"):
        share(models, "m3", "y")
    models.unload("m3")
    share(models, "one more", "x")
    assert len(models.loaded()) == MAX_MODELS


def test_what_is_over_is_not_listed_without_end(models: Models) -> None:
    for i in range(100):
        share(models, f"m{i}", str(i))
        models.unload(f"m{i}")
    assert len(models.listed()) <= MAX_MODELS + 1
    assert models.listed()[-1].session.spec.model == "m99"
    assert len(models._past) <= MAX_PAST
    assert len(models._by_id) == len(models.listed())


def test_a_session_cannot_be_shared_twice(models: Models) -> None:
    share(models, "a", "1")
    for name in ("a", "b"):
        with pytest.raises(QueryError, match="was here before"):
            share(models, name, "1")
    models.unload("a")
    with pytest.raises(QueryError, match="was here before"):
        share(models, "a", "1")
    share(models, "a", "2")
    with pytest.raises(QueryError, match="was here before"):
        share(models, "a", "1")


def test_an_engine_that_keeps_global_state_has_one_model_at_a_time(models: Models) -> None:
    share(models, "a", "1", "crypten")
    share(models, "b", "2")
    for name in ("a", "c"):
        with pytest.raises(QueryError, match=r"'a' is one; stop that first .* stop a\)"):
            share(models, name, "3", "crypten")
    assert places(models) == [("1", "current"), ("2", "current")], "nothing was touched"
    models.unload("a")
    share(models, "c", "3", "crypten")


def test_what_is_promised_is_what_models_are_still_to_take(models: Models) -> None:
    for name, session, engine in (("a", "1", "ottt"), ("b", "2", "ottt"), ("c", "3", "crypten")):
        one = share(models, name, session, engine)
        one.engine_memory = 200 if engine == "ottt" else 600
        one.memory = one.engine_memory + 1000
    sessions = [session for _, session in models.listed()]
    # Each engine is counted once, however many models it runs.
    assert promised_memory(sessions, used=0) == 200 + 600 + 3000
    assert promised_memory(sessions, used=3000) == 800
    assert promised_memory(sessions, used=9999) == 0
    models.unload("c")
    assert promised_memory(sessions, used=0) == 200 + 2000
    assert promised_memory([], used=0) == 0
