"""What a client makes of what parties say of their models; the parties are fakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from privserve import describing
from privserve.describing import Describer
from privserve.errors import ClusterError, NotServing, QueryError
from privserve.lane_connection import Peer


def described(name: str, session: str) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "INT64", "shape": [-1, 2]}
    facts = {"fraction_bits": 1, "output_fraction_bits": 1, "input_range": [-8.0, 8.0]}
    return {
        "name": name,
        "versions": [session],
        "inputs": [tensor],
        "outputs": [{**tensor, "parameters": {"activation": None, "rounded_bits": 0}}],
        "parameters": {**facts, "max_rows": 4, "guards": []},
    }


class Parties:
    """Says of alice and bob, in turns, what a test wants; the last of it again and again."""

    model = ""

    def __init__(self, *said: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self._said = list(said)
        self.wanted: list[str] = []

    def about(self) -> list[dict[str, Any]]:
        self.wanted.append(self.model)
        now = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        roles = {"role": "compute", "compute_parties": ["alice", "bob"]}
        return [{**roles, "party": p, **f} for p, f in zip(("alice", "bob"), now, strict=True)]

    def reconnect(self) -> None:
        raise AssertionError("no list of revoked certificates is new")


def describer(model: str | None = None) -> Describer:
    peers = [Peer(name, f"{name}:1", f"{name}.x", "") for name in ("alice", "bob")]
    return Describer(peers, SimpleNamespace(learn=lambda *_: False), model)  # type: ignore[arg-type]


def has(name: str, session: str, *others: str) -> dict[str, Any]:
    return {"models": [name, *others], "model": described(name, session)}


def lacks(status: int, code: str, *models: str) -> dict[str, Any]:
    error = {"error": "it is not there", "code": code, "status": status}
    return {"models": list(models), "error": error}


def test_parties_that_switch_one_after_the_other_are_asked_until_they_agree() -> None:
    old, new = has("m", "00"), has("m", "11")
    parties = Parties((new, old), (new, old), (new, new))
    assert describer().read(parties).session == "11"  # type: ignore[arg-type]
    assert len(parties.wanted) == 3


def test_parties_that_never_agree_are_an_error_after_some_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(describing, "SWITCH_SECONDS", 0.2)
    parties = Parties((has("m", "00"), has("m", "11")))
    with pytest.raises(ClusterError, match="bob describes another model"):
        describer().read(parties)  # type: ignore[arg-type]
    assert len(parties.wanted) > 2


def test_who_named_no_model_asks_for_the_first_one_by_name_from_then_on() -> None:
    parties = Parties((has("m", "00"), has("m", "00")), (has("m", "00", "n"), has("m", "00", "n")))
    one = describer()
    for _ in range(2):
        assert one.read(parties).name == "m"  # type: ignore[arg-type]
    assert parties.wanted == ["", "m"]


def test_who_named_no_model_finds_another_one_where_the_first_is_gone() -> None:
    gone = lacks(404, "refused", "n")
    parties = Parties((has("m", "00"), has("m", "00")), (gone, gone), (has("n", "22"),) * 2)
    one = describer()
    one.read(parties)  # type: ignore[arg-type]
    assert one.read(parties).name == "n"  # type: ignore[arg-type]
    assert parties.wanted == ["", "m", ""]


def test_who_named_a_model_never_gets_another_one() -> None:
    gone = lacks(404, "refused", "n")
    with pytest.raises(QueryError, match="it is not there"):
        describer("m").read(Parties((gone, gone)))  # type: ignore[arg-type]


def test_a_model_that_is_away_for_now_is_waited_for_by_nobody() -> None:
    away = lacks(503, "not_serving")
    one = describer()
    parties = Parties((has("m", "00"), has("m", "00")), (away, away))
    one.read(parties)  # type: ignore[arg-type]
    with pytest.raises(NotServing):
        one.read(parties)  # type: ignore[arg-type]
    assert parties.wanted == ["", "m"]


def test_the_models_are_those_that_all_parties_have_and_the_leader_serves() -> None:
    leader = {**has("m", "00", "n", "o"), "serving": ["m", "o"]}
    parties = Parties((leader, has("n", "00", "m")))
    assert describer().names(parties, False) == ["m", "n"]  # type: ignore[arg-type]
    assert describer().names(parties, True) == ["m"]  # type: ignore[arg-type]
