"""What an owner is told of a cluster's models, and whether there is memory for one more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from privserve import engines
from privserve.engines import Prepared
from privserve.errors import ClusterError
from privserve.fitting import check_memory
from privserve.models import listed
from privserve.shared_models import put_together

GB = 1_000_000_000


def facts(model: str, session: str, **more: Any) -> dict[str, Any]:
    told = {"model": model, "session": session, "engine": "echo", "state": "loaded"}
    return {**told, "reason": "", "place": "current", "memory": 2 * GB, **more}


def test_a_model_is_loaded_where_all_parties_have_it() -> None:
    said = {
        "alice": {"models": [facts("a", "1", serving=True, answered=3, limit=5), facts("b", "2")]},
        "bob": {"models": [facts("a", "1"), facts("b", "2", state="failed", reason="no room")]},
        "carol": {"models": [facts("a", "1", memory=7), facts("c", "3")]},
    }
    a, b, c = put_together(said)
    assert (a.name, a.state, a.serving, a.answered, a.limit) == ("a", "loaded", True, 3, 5)
    assert a.memory == {"alice": 2 * GB, "bob": 2 * GB, "carol": 7}
    assert (b.state, b.reason) == ("failed", "no room")
    assert (c.state, c.reason) == ("failed", "alice does not have it")
    assert put_together({"alice": {}, "bob": {"models": []}}) == []


def test_the_table_has_a_line_for_each_model_and_says_why_one_is_over() -> None:
    said = {
        "alice": {
            "models": [
                facts("digits", "1", serving=True, answered=1234, limit=None),
                facts("digits", "2", place="coming"),
                facts("old", "3", state="ended", reason="the model owner stopped the model"),
            ]
        }
    }
    lines = listed(put_together(said)).splitlines()
    assert lines[0].split() == ["model", "engine", "state", "served", "answered", "limit", "memory"]
    assert lines[2].split() == ["digits", "echo", "loaded", "yes", "1,234", "-", "2.00", "GB"]
    assert lines[3].split()[2:4] == ["loaded,", "coming"]
    assert lines[4].split()[2:4] == ["ended", "no"]
    assert lines[5] == "old: the model owner stopped the model"
    assert listed([]) == "no model is shared"


class FakeCluster:
    """Three parties on one host with 10 GB free, and what each says of its models."""

    who = ""

    def __init__(self, promised: int = 0, *models: dict[str, Any]) -> None:
        names = ("alice", "bob", "carol")
        parties = [SimpleNamespace(name=n, endpoint=("host", 1)) for n in names]
        self.config = SimpleNamespace(
            parties=parties,
            compute=parties[:2],
            role=lambda name: "dealer" if name == "carol" else "compute",
        )
        self._status = {
            "memory_available": 10 * GB,
            "memory_promised": promised,
            "models": list(models),
        }

    def call(self, *_: Any) -> Any:
        return SimpleNamespace(json=lambda: self._status)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """3 GB at each compute party and 2 GB at the dealer, 1 GB of each the engine's."""
    monkeypatch.setitem(engines.ENGINES, "echo", "echo_engine")
    monkeypatch.setattr("echo_engine.PROCESS_BYTES", GB)
    monkeypatch.setattr("echo_engine.memory", lambda *_, **__: (3 * GB, 2 * GB))
    return Prepared("echo", {}, {})


def check(cluster: FakeCluster, model: Prepared, name: str = "a") -> None:
    check_memory([cluster], model, {}, name)  # type: ignore[arg-type]


def test_a_first_model_may_take_what_is_free(model: Prepared) -> None:
    check(FakeCluster(), model)
    with pytest.raises(ClusterError, match=r"alice and bob and carol at host .* 8\.0 GB .* 7\.0"):
        check(FakeCluster(GB), model)


def test_what_others_are_still_to_take_counts_and_the_engine_counts_once(model: Prepared) -> None:
    other = facts("b", "1", memory=2 * GB)
    check(FakeCluster(GB, other), model)  # 3 x 1 GB promised, and 2 + 2 + 1 for the new one
    with pytest.raises(ClusterError, match=r"6\.0 GB that models shared already are still to take"):
        check(FakeCluster(2 * GB, other), model)


def test_where_both_do_not_fit_at_once_it_says_to_stop_the_old_one_first(model: Prepared) -> None:
    old = facts("a", "1", memory=2 * GB)
    with pytest.raises(ClusterError, match=r"stop that one first .*models stop a"):
        check(FakeCluster(2 * GB, old), model)
    with pytest.raises(ClusterError) as error:
        check(FakeCluster(9 * GB, old), model)
    assert "stop that one first" not in str(error.value)
