"""Clients as their owner lets them in, limits them and turns them away."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import SMALL, free_workers, serving, small_model

import privserve as ps
from privserve import clients
from privserve.certificates import write_cluster
from privserve.credentials import Limits, checked_limits, read_entries

PARTIES = [(name, f"localhost:{i}") for i, name in enumerate("abc", 1)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The owner's cluster.toml of a cluster that does not run."""
    return write_cluster(tmp_path / "owner", PARTIES)


def manage(config: Path, *words: str) -> int:
    return clients.main(["--config", str(config), *words])


def test_a_client_gets_a_directory_with_all_that_it_needs_and_no_secret_of_others(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert manage(config, "add", "lab", "--rows", "100") == 0
    home = config.parent / "clients" / "lab"
    assert {path.name for path in home.iterdir()} == {"cluster.toml", "ca.pem", "client.key"}
    assert stat.S_IMODE((home / "client.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) & 0o077 == 0
    key = (home / "client.key").read_text().split()[1]
    holders = [p for p in config.parent.rglob("*") if p.is_file() and key in p.read_text()]
    assert holders == [home / "client.key"]
    assert "it holds once a model is shared again" in capsys.readouterr().out


def test_the_list_shows_everybodys_limits(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manage(config, "add", "lab", "--rows", "10000", "--expires", "2027-01-31")
    manage(config, "limit", "lab", "--rows-per-minute", "60")
    capsys.readouterr()
    assert manage(config, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["default", "lab"]
    assert lines[3].split() == ["lab", "no", "limit", "60", "no", "limit", "never", "all"]


REFUSED = {
    "a name in use": (["add", "default"], "already"),
    "no such client": (["revoke", "eve"], "there is no client 'eve'; there are: default"),
    "a name for a path": (["add", "../x"], "cannot be a client's name"),
    "a reserved name": (["add", "anonymous"], "cannot be a client's name"),
    "no rows": (["add", "lab", "--rows", "0"], "positive whole number"),
    "no day": (["add", "lab", "--expires", "soon"], "a day such as 2027-01-31"),
}


@pytest.mark.parametrize(("words", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_and_changes_nothing(
    config: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (config.parent / "clients.json").read_text()
    assert manage(config, *words) == 2
    assert why in capsys.readouterr().err
    assert (config.parent / "clients.json").read_text() == before
    assert not (config.parent / "clients").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"A/B": {"digests": {}, "limits": {}}}'])
def test_a_table_that_is_damaged_is_named(
    config: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "clients.json").write_text(text)
    assert manage(config, "list") == 2
    assert "clients.json" in capsys.readouterr().err


@pytest.fixture
def served(tag: str, tmp_path: Path) -> Iterator[ps.Cluster]:
    with (
        ps.Cluster(*free_workers(), directory=tmp_path) as cluster,
        small_model() as model,
    ):
        model.share(cluster)
        with serving(cluster, model):
            yield cluster


def test_clients_come_and_go_while_a_model_is_served(
    served: ps.Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = served.config.path
    assert manage(config, "add", "lab", "--rows", "3") == 0
    assert "the parties know" in capsys.readouterr().out
    elsewhere = tmp_path / "laptop"
    shutil.copytree(config.parent / "clients" / "lab", elsewhere)
    with ps.Client(elsewhere / "cluster.toml", timeout=20) as lab:
        assert lab.query_model(SMALL).shape == (1, 2)
        with pytest.raises(ps.LimitReached, match="2 of the 3 rows of client 'lab' are left"):
            lab.query_model(np.repeat(SMALL, 3, axis=0))
        assert lab.query_model(np.repeat(SMALL, 2, axis=0)).shape == (2, 2)
        status = served.call(served.config.compute[0], "GET", "/privserve/status").json()
        assert status["clients"]["lab"] == {"rows": 3, "limit": 3}
        assert manage(config, "limit", "lab", "--rows", "4") == 0
        assert lab.query_model(SMALL).shape == (1, 2)
        assert manage(config, "revoke", "lab") == 0
        with pytest.raises(ps.UnknownClient, match="does not know the client"):
            lab.query_model(SMALL)
    with ps.Client(served, timeout=20) as default:
        assert default.query_model(SMALL).shape == (1, 2)


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_the_parts_that_cells_have_of_a_limit_come_to_it(rows: int, cells: int) -> None:
    limits = Limits(rows=rows, rows_per_minute=rows + 1, rows_per_query=7, models=("a",))
    parts = [limits.part(cell, cells) for cell in range(cells)]
    assert sum(part.rows or 0 for part in parts) == rows
    assert sum(part.rows_per_minute or 0 for part in parts) == rows + 1
    assert {(part.rows_per_query, part.models) for part in parts} == {(7, ("a",))}
    assert Limits().part(0, cells) == Limits()


def test_a_part_of_nothing_is_one_that_parties_take_and_owners_do_not_give() -> None:
    entry = {"name": "lab", "digest": "0" * 64, "rows": 0}
    assert read_entries([entry])[0].limits.rows == 0
    with pytest.raises(ps.InputError, match="positive"):
        checked_limits({"rows": 0})


def test_who_shows_nothing_gets_nothing(served: ps.Cluster, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for name in ("cluster.toml", "ca.pem"):
        shutil.copy(served.config.path.parent / name, stranger)
    with (
        ps.Client(stranger / "cluster.toml", timeout=20) as client,
        pytest.raises(ps.UnknownClient, match=r"clients add NAME.*--open"),
    ):
        client.query_model(SMALL)
    key = served.config.path.parent / "client.key"
    addresses = [party.address for party in served.config.compute]
    with ps.Client(addresses, ca=served.config.ca, key=key, timeout=20) as client:
        assert client.query_model(SMALL).shape == (1, 2)


def test_everybody_may_ask_where_the_owner_says_so_within_its_limits(
    tag: str, tmp_path: Path
) -> None:
    with ps.Cluster(*free_workers()) as cluster, small_model() as model:
        model.share(cluster, everybody=Limits(rows=1))
        # A stranger has the certificate alone; beside the cluster's own lies the owner's key.
        ca = tmp_path / "ca.crt"
        ca.write_bytes(cluster.config.ca.read_bytes())
        addresses = [party.address for party in cluster.config.compute]
        with (
            serving(cluster, model),
            ps.Client(addresses, ca=ca, timeout=20) as client,
        ):
            assert client.query_model(SMALL).shape == (1, 2)
            with pytest.raises(ps.LimitReached, match="0 of the 1 rows of client 'anonymous'"):
                client.query_model(SMALL)


@pytest.mark.parametrize("text", ["", "lab", "lab AAAA", "LAB " + "A" * 43 + "="])
def test_a_damaged_key_is_named(config: Path, text: str) -> None:
    (config.parent / "client.key").write_text(text)
    with pytest.raises(ps.ConfigError, match=r"client\.key holds no client's key"):
        ps.Client(config)


def test_the_list_may_be_json(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manage(config, "add", "lab", "--rows", "100", "--json") == 0
    assert "hand " in json.loads(capsys.readouterr().out)["said"]
    assert manage(config, "list", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lab"]["rows"] == 100
    assert told["lab"]["expires"] is None
