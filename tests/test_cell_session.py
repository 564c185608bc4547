"""A model in several cells as its owner shares and tends it; the parties are fakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import make_config
from test_tending import FakeCluster, lost, parties, told  # noqa: F401

import privserve as ps
from privserve import cluster as cluster_module
from privserve import oip, tending
from privserve.cell import Cell
from privserve.cell_session import CellSession
from privserve.config import format_config, read_config
from privserve.description import SHARING_DIGITS
from privserve.engines import Prepared
from privserve.errors import ClusterError, QueryError
from privserve.leases import Lease, Leases
from privserve.sending import Sent
from privserve.tending import Tended

WEIGHTS = np.arange(64, dtype=np.int64)


def two_cells(home: Path) -> Path:
    config = make_config(home, [f"127.0.0.1:{port}" for port in (1, 2, 3)])
    names = [party.name for party in config.parties]
    cells = [[(n, f"127.0.0.1:{10 * k + i}") for i, n in enumerate(names)] for k in (1, 2)]
    config.path.write_text(format_config(cells[0], config.cluster, config.owner, cells[1:]))
    return config.path


def test_no_share_goes_to_two_cells(tmp_path: Path) -> None:
    sent: dict[tuple[int, str], np.ndarray] = {}
    cells = []
    for config in read_config(two_cells(tmp_path)).cells:

        def call(party: Any, *_: Any, n: int = config.cell, **options: Any) -> Any:
            length = options["headers"][oip.HEADER_LENGTH]
            _, shares = oip.parse_message(bytearray(options["content"]), length, "inputs")
            if "w" in shares:
                sent[n, party.name] = shares["w"]

        cells.append(SimpleNamespace(config=config, call=call))
    prepared = Prepared("echo", {}, {"w": WEIGHTS})
    sessions = [
        CellSession(cell, Sent("m", prepared, {}, None), "ab" * (SHARING_DIGITS // 2))
        for cell in cells
    ]
    for session in sessions:
        session.send()
    assert sorted(sent) == [(0, "alice"), (0, "bob"), (1, "alice"), (1, "bob")]
    for n in (0, 1):
        np.testing.assert_array_equal(sent[n, "alice"] + sent[n, "bob"], WEIGHTS)
    for name in ("alice", "bob"):
        assert (sent[0, name] != sent[1, name]).all()
    ids = [session.id for session in sessions]
    assert len(set(ids)) == 2
    assert {(len(i), i[:SHARING_DIGITS]) for i in ids} == {(32, "ab" * (SHARING_DIGITS // 2))}


def test_an_owner_goes_on_with_one_whole_cell_and_says_which_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_all(cell: Cell, report: Any, enough: threading.Event | None = None) -> bool:
        assert enough is not None
        return cell.number == 1 or not enough.wait(10)

    monkeypatch.setattr(Cell, "wait_all", wait_all)
    monkeypatch.setattr(cluster_module, "CELL_SECONDS", 0.0)
    said: list[str] = []
    cluster = ps.Cluster.connect(two_cells(tmp_path), report=said.append)
    assert said == ["cell 0: not all of its parties are there; going on without it for now"]
    cluster.stop()


def test_cells_are_started_here_or_nowhere() -> None:
    workers = [ps.Worker(f"localhost:{port}", auto_managed=False) for port in (1, 2, 3)]
    with pytest.raises(ps.ConfigError, match="a --hosts for each cell"):
        ps.Cluster(*workers, cells=2)


# -- leases, as the owner's program tends them --------------------------------------------------


def leads(rows: int, answered: int = 0, **more: Any) -> dict[str, Any]:
    """What a leader says of its lease."""
    about = {"limit": rows, "begun": 0, "spare": rows - answered, "short": 0, "refuses": ""}
    return FakeCluster.loaded(answered, **{**about, **more})


class LeasedCluster(FakeCluster):
    """Notes how it is told of leases; `fails` has it raise what a call is to end with."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.told: list[dict[str, Any]] = []
        self.fails: Callable[[str], None] = lambda path: None

    def call(self, party: Any, method: str, path: str, **options: Any) -> Any:
        if method == "POST":
            self.told.append({"path": path.rsplit("/")[-1], **options["json"]})
            self.fails(path)
        answer = super().call(party, method, path, **options)
        if path.endswith("/extend"):
            return SimpleNamespace(json=lambda: {"limit": options["json"]["limit"]})
        return answer


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LeasedCluster:
    monkeypatch.setattr(tending, "HEAL_SECONDS", 0.0)
    monkeypatch.setattr(tending, "FIRST_PAUSE", 0.0)
    return LeasedCluster(make_config(tmp_path, [f"127.0.0.1:{port}" for port in (1, 2, 3)]))


def leased(cell: LeasedCluster, limit: int, told: list[str]) -> tuple[Tended, Leases]:  # noqa: F811
    leases = Leases(limit, 2)
    share = iter(f"session {n}" for n in range(2, 99))
    made = Tended(
        cell, "m", "session 1", None, tending.SERVE,  # type: ignore[arg-type]
        share_again=lambda: next(share), tell=told.append, lease=Lease(leases, 0),
    )  # fmt: skip
    return made, leases


def test_a_lease_grows_as_it_is_used(cell: LeasedCluster, told: list[str]) -> None:  # noqa: F811
    one, leases = leased(cell, 100, told)
    one.begin()
    assert (cell.told[0]["path"], cell.told[0]["num_requests"]) == ("serve", 25)
    cell.says["alice"] = leads(25, 20)
    assert not one.look()
    assert (cell.told[1]["path"], cell.told[1]["limit"], cell.told[1]["final"]) == (
        "extend",
        25 + 75 // 4,
        False,
    )
    assert leases.total == 20


def test_what_a_lost_session_did_not_use_is_given_back_if_that_is_certain(
    cell: LeasedCluster,
    told: list[str],  # noqa: F811
) -> None:
    one, leases = leased(cell, 100, told)
    one.begin()
    cell.says["alice"] = leads(25, 5)
    one.look()
    cell.says["alice"] = lost("alice")
    cell.says["bob"] = FakeCluster.loaded(ran=7)
    one.look()
    assert leases.over == 7, "bob ran two rows more than alice had said"
    cell.says = {name: leads(23) for name in cell.says}
    one.look()
    cell.says = {name: lost(name) for name in cell.says}
    one.look()
    assert leases.over == 7 + 23, "nobody knows, so all may have been answered"
    assert any("23 rows that may have been count as answered" in line for line in told)


def test_a_serve_whose_answer_was_lost_is_not_leased_twice(
    cell: LeasedCluster,
    told: list[str],  # noqa: F811
) -> None:
    one, leases = leased(cell, 100, told)

    def lose(path: str) -> None:
        raise ClusterError("the answer did not come")

    cell.fails = lose
    with pytest.raises(ClusterError):
        one.begin()
    had = leases.begin(0)

    def refuse(path: str) -> None:
        if path.endswith("/serve"):
            raise QueryError("the model is being served already", 409)

    cell.fails = refuse
    cell.says["alice"] = leads(had, lease=cell.told[0]["lease"])
    assert not one.look()
    assert (one._begun, leases.pool) == ("session 1", 100 - had)


def test_a_cell_that_another_program_serves_takes_nothing_from_the_limit(
    cell: LeasedCluster,
    told: list[str],  # noqa: F811
) -> None:
    one, leases = leased(cell, 100, told)

    def refuse(path: str) -> None:
        raise QueryError("the model is being served already; stop that first", 409)

    cell.fails = refuse
    cell.says["alice"] = leads(10**6, lease="another")
    with pytest.raises(QueryError):
        one.begin()
    assert leases.pool == 100
    assert not one.look()
    assert told == ["'m' is not served: the model is being served already; stop that first"]
    assert leases.pool == 100


def test_what_a_cell_did_not_answer_that_was_told_to_stop_is_given_back(
    cell: LeasedCluster,
    told: list[str],  # noqa: F811
) -> None:
    one, leases = leased(cell, 100, told)
    one.begin()
    cell.says["alice"] = leads(25, 5, begun=2, refuses="not_serving")
    assert not one.look(), "what runs is answered still"
    cell.says["alice"] = leads(25, 7, refuses="not_serving")
    assert one.look()
    assert (leases.over, leases.pool, one.total) == (7, 93, 7)


def test_one_cell_that_fails_for_good_leaves_the_others_alone(
    cell: LeasedCluster,
    told: list[str],  # noqa: F811
) -> None:
    leases = Leases(10, 2)
    well, ill = (LeasedCluster(cell.config) for _ in range(2))
    many = [
        Tended(
            one, "m", "session 1", None, tending.SERVE,  # type: ignore[arg-type]
            share_again=lambda: "", tell=told.append, lease=Lease(leases, number),
        )
        for number, one in enumerate((well, ill))
    ]  # fmt: skip
    for one in many:
        one.begin()
    ill.says["alice"] = leads(2, 1, state="failed", reason="bob hit an internal error")
    well.says["alice"] = leads(2, 2, spare=-9, short=9)

    def answer(path: str) -> None:
        rows = well.told[-1]["limit"]
        well.says["alice"] = leads(rows, rows)

    well.fails = answer
    assert tending.serve_cells(many, lambda _: None) == 9
    assert leases.over == 2, "what the other one may have answered"
    assert any("serving ended: bob hit an internal error" in line for line in told)
    assert well.told[-1]["final"]
