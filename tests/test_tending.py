"""An owner's program that looks after its model: whom it waits for, what it tells, when it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from serving import make_config

import privserve as ps
from privserve import cell as cell_module
from privserve import launch, tending
from privserve.errors import ClusterError, ModelReplaced, NotServing, StaleSession
from privserve.party.queries import LeaderQueue
from privserve.tending import Tended

ADDRESSES = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]


class Enough(Exception):
    """Ends a wait that would go on for ever."""


def test_an_owner_that_is_started_before_its_parties_says_whom_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, ADDRESSES)
    monkeypatch.setattr(cell_module, "SAY_SECONDS", 0.1)
    told: list[str] = []

    def report(line: str) -> None:
        told.append(line)
        if len(told) == 2:
            raise Enough

    with pytest.raises(Enough):
        ps.Cluster.connect(config.path, report=report)
    for line in told:
        assert "waiting for alice for 0 s: cannot reach alice at 127.0.0.1:1" in line
        assert "--party alice" in line


class Answer:
    def __init__(self, fields: dict[str, Any]) -> None:
        self.json = lambda: fields


class FakeCluster:
    """Parties that say what the test has them say, by name: a status, or an error."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.says: dict[str, Any] = {p.name: self.loaded() for p in config.parties}
        self.served: list[int | None] = []
        self.named: list[Any] = []

    @staticmethod
    def loaded(answered: int = 0, **more: Any) -> dict[str, Any]:
        facts = {"state": "loaded", "reason": "", "answered": answered, "serving": True}
        return {**facts, "idle": True, "replaced": False, "ran": 0, **more}

    def call(self, party: Any, method: str, path: str, **options: Any) -> Answer:
        said = self.says[party.name]
        if isinstance(said, Exception):
            raise said
        if path.endswith("/serve"):
            self.served.append(options["json"]["num_requests"])
        return Answer(said)

    def models(self) -> list[Any]:
        return self.named

    def revive(self, tell: Any) -> None:
        pass


@pytest.fixture
def parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setattr(tending, "HEAL_SECONDS", 0.0)
    monkeypatch.setattr(tending, "FIRST_PAUSE", 0.0)
    return FakeCluster(make_config(tmp_path, ADDRESSES))


@pytest.fixture
def told() -> list[str]:
    return []


def tended(parties: FakeCluster, told: list[str], limit: int | None = 10, **more: Any) -> Tended:
    shared = iter(f"session {n}" for n in range(2, 99))

    def share_again() -> str:
        for name in parties.says:
            parties.says[name] = FakeCluster.loaded()
        return next(shared)

    more.setdefault("share_again", share_again)
    made = Tended(parties, "m", "session 1", limit, tending.SERVE, tell=told.append, **more)  # type: ignore[arg-type]
    made.begin()
    return made


def lost(who: str) -> StaleSession:
    return StaleSession(f"{who} has no such session")


def test_a_party_that_lost_its_share_gets_the_model_again_with_what_is_left(
    parties: FakeCluster, told: list[str]
) -> None:
    one = tended(parties, told)
    parties.says["alice"] = FakeCluster.loaded(3)
    assert not one.look()
    parties.says["alice"] = FakeCluster.loaded(4, state="waiting", reason="bob is gone")
    parties.says["bob"] = lost("bob")
    assert not one.look()
    assert parties.served == [10, 6]
    assert one.total == 4
    assert told == ["bob lost what it had of 'm': sharing it again, for the 6 rows left"]
    assert not one.look()
    assert told[1:] == ["'m' is served again"]
    parties.says["alice"] = FakeCluster.loaded(6, serving=False)
    assert one.look()
    assert one.total == 10


def test_where_the_leaders_count_is_lost_the_followers_is_taken(
    parties: FakeCluster, told: list[str]
) -> None:
    parties.says["bob"] = FakeCluster.loaded(ran=100)  # before it was served
    one = tended(parties, told)
    parties.says["alice"] = FakeCluster.loaded(2)
    one.look()
    parties.says["alice"] = lost("alice")
    parties.says["bob"] = FakeCluster.loaded(ran=107, state="failed", reason="alice lost it")
    one.look()
    assert (one.before, parties.served) == (7, [10, 3])


def test_what_failed_is_tried_again_and_rows_are_counted_once(
    parties: FakeCluster, told: list[str]
) -> None:
    tries = []

    def share_again() -> str:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise ClusterError("the model could not be shared: carol is gone")
        parties.says = {name: FakeCluster.loaded() for name in parties.says}
        return "session 2"

    one = tended(parties, told, share_again=share_again)
    parties.says["alice"] = FakeCluster.loaded(4, state="failed", reason="bob lost it")
    parties.says["bob"] = lost("bob")
    while len(tries) < 3:
        one._pause = 0.0
        one._next_try = 0.0
        assert not one.look()
    assert one.before == 4
    assert parties.served == [10, 6]
    assert sum("could not be shared again" in line for line in told) == 2


def test_a_limit_that_was_reached_when_the_share_was_lost_ends_serving(
    parties: FakeCluster, told: list[str]
) -> None:
    one = tended(parties, told)
    parties.says["alice"] = lost("alice")
    parties.says["bob"] = FakeCluster.loaded(ran=10)
    assert one.look()
    assert one.total == 10
    assert parties.served == [10]


def test_parties_that_cannot_be_reached_are_waited_for_and_that_is_said_once(
    parties: FakeCluster, told: list[str]
) -> None:
    one = tended(parties, told)
    for _ in range(5):
        parties.says["alice"] = ClusterError("cannot reach alice")
        assert not one.look()
    assert told == ["'m' is not served: cannot reach alice; trying again"]
    parties.says["alice"] = FakeCluster.loaded(2)
    assert not one.look()
    assert told[1:] == ["'m' is served again"]
    assert parties.served == [10]


def test_a_party_that_waits_for_another_one_is_left_to_it(
    parties: FakeCluster, told: list[str]
) -> None:
    one = tended(parties, told)
    waiting = FakeCluster.loaded(2, state="waiting", reason="bob is gone; waiting for bob")
    parties.says = {"alice": waiting, "bob": dict(waiting), "carol": dict(waiting)}
    for _ in range(3):
        assert not one.look()
    assert told == ["'m' is not served: bob is gone; waiting for bob"]
    assert parties.served == [10]


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [
        ({"state": "failed", "reason": "bob hit an internal error"}, ClusterError, "internal"),
        ({"state": "ended", "reason": "the owner stopped it"}, ClusterError, "stopped it"),
        ({"replaced": True}, ModelReplaced, "has taken this one's place"),
    ],
)
def test_what_does_not_pass_ends_serving(
    parties: FakeCluster, told: list[str], status: dict, error: type, why: str
) -> None:
    one = tended(parties, told)
    parties.says["alice"] = FakeCluster.loaded(2, **status)
    with pytest.raises(error, match=why):
        one.look()


def test_a_model_of_somebody_else_is_not_replaced(parties: FakeCluster, told: list[str]) -> None:
    one = tended(parties, told)
    parties.says["alice"] = lost("alice")

    class Other:
        name, place, session, is_alive = "m", "current", "another", True

    parties.named = [Other]
    with pytest.raises(ClusterError, match="another model was shared as 'm' meanwhile"):
        one.look()
    assert parties.served == [10]


# -- when the owner's program is lost ---------------------------------------------------------


def test_serving_ends_with_the_owners_program_where_that_was_said() -> None:
    queue = LeaderQueue(1, 128, 10.0)
    queue.serve(None, 0.05)
    queue.owner_heard()
    assert queue.expire() is not None
    assert queue.serving
    threading.Event().wait(0.1)
    assert queue.expire() is None
    assert not queue.serving
    assert queue._why_not.code == NotServing.code
    assert "has not been heard of for 0.05 s" in queue._why_not.reason
    queue.serve(None)
    assert queue.expire() is None
    assert queue.serving, "who says nothing is served on"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--peer-timeout", "0.1"], "from 0.5 to 3600"),
        (["--config", "c.toml", "--peer-timeout", "5"], "goes with --party or --parties"),
        (["--config", "c.toml", "--state-key-file", "k"], "goes with --party or --parties"),
        (["--on-owner-loss", "panic"], "invalid choice"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        launch.parse(arguments)
    assert why in capsys.readouterr().err


def test_on_owner_loss_takes_two_words() -> None:
    with pytest.raises(ps.ConfigError, match="'serve' or 'stop', not 'panic'"):
        ps.SecureModel(None, "m").serve(on_owner_loss="panic")  # type: ignore[arg-type]
