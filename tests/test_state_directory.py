"""Where a party keeps the list of revoked certificates, and by which of two it goes."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from invited import addresses, is_up, manage
from serving import make_config, wait_until

from privserve import launch
from privserve.authority import Authority, newest_revoked, read_issued
from privserve.calls import tls_context
from privserve.certificates import write_cluster
from privserve.config import ClusterConfig, Timeouts, read_config
from privserve.errors import QueryError
from privserve.party.lanes import client_context, server_context
from privserve.party.party import Party
from privserve.party.process import run_party


@pytest.fixture
def alice(tmp_path: Path) -> ClusterConfig:
    """Alice's configuration on a host where she keeps what she is told in a place of its own."""
    made = write_cluster(tmp_path / "made", addresses(), keep=tmp_path / "made.secret")
    state = tmp_path / "state"
    state.mkdir()
    return replace(read_config(made.parent / "alice" / "cluster.toml"), state=state)


@pytest.fixture
def authority(alice: ClusterConfig, tmp_path: Path) -> Authority:
    return Authority.load(tmp_path / "made", tmp_path / "made.secret")


def bobs(alice: ClusterConfig) -> list[int]:
    """The numbers of bob's certificates."""
    return read_issued(read_config(alice.path.parent.parent / "cluster.toml"))["bob"]


def takes_bob(alice: ClusterConfig) -> bool:
    """Whether alice's side of a channel takes the certificate of bob."""
    bob = read_config(alice.path.parent.parent / "bob" / "cluster.toml")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(alice, alice.parties[0])
    one = server.wrap_bio(incoming, outgoing, server_side=True)
    client = client_context(bob, bob.parties[1])
    other = client.wrap_bio(outgoing, incoming, server_hostname=alice.identity("alice"))
    try:
        for _ in range(4):
            for side in (other, one):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLError:
        return False
    return True


def test_a_list_that_was_told_outlives_the_party_in_its_state_directory(
    alice: ClusterConfig, authority: Authority
) -> None:
    assert takes_bob(alice)
    party = Party(alice, "alice", Timeouts())
    party.take_revoked(authority.revoked(bobs(alice)).decode())
    party.close()
    assert alice.state is not None
    assert [path.name for path in alice.state.iterdir()] == ["revoked.pem"]
    assert not (alice.path.parent / "revoked.pem").exists()
    assert not takes_bob(alice)
    assert takes_bob(replace(alice, state=None))  # so it is that list by which she goes


@pytest.mark.parametrize("newer_is_kept", [True, False])
def test_of_two_lists_a_party_goes_by_the_newer_wherever_it_lies(
    alice: ClusterConfig, authority: Authority, newer_is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = authority.revoked(bobs(alice))
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    clock = SimpleNamespace(
        datetime=SimpleNamespace(now=lambda zone: yesterday), timedelta=datetime.timedelta, UTC=None
    )
    with monkeypatch.context() as patched:
        patched.setattr("privserve.authority.datetime", clock)
        older = authority.revoked([])
    assert alice.state is not None
    places = [alice.state, alice.path.parent]
    for place, listed in zip(
        places, (newer, older) if newer_is_kept else (older, newer), strict=True
    ):
        (place / "revoked.pem").write_bytes(listed)
    assert not takes_bob(alice)
    assert newest_revoked(alice.ca, alice.state) == newer


def test_a_list_that_nobody_signed_hides_none_that_was(
    alice: ClusterConfig, authority: Authority
) -> None:
    assert newest_revoked(alice.ca, alice.state) == b""
    forged = Authority.fresh(alice.cluster).revoked([])
    assert alice.state is not None
    (alice.path.parent / "revoked.pem").write_bytes(forged)
    assert newest_revoked(alice.ca, alice.state) == forged  # and whoever checks it says so
    (alice.state / "revoked.pem").write_bytes(signed := authority.revoked(bobs(alice)))
    assert newest_revoked(alice.ca, alice.state) == signed
    assert not takes_bob(alice)


def test_a_list_that_cannot_be_kept_is_refused(
    alice: ClusterConfig, authority: Authority, tmp_path: Path
) -> None:
    party = Party(replace(alice, state=tmp_path / "gone"), "alice", Timeouts())
    with pytest.raises(
        QueryError, match=r"alice cannot keep .* in .*gone .*start it with --state-dir"
    ):
        party.take_revoked(authority.revoked([]).decode())
    party.close()


def test_a_state_directory_that_is_none_ends_the_party_with_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_config(tmp_path / "owner", ["localhost:1", "localhost:2", "localhost:3"])
    config = str(tmp_path / "owner" / "bob" / "cluster.toml")
    missing = str(tmp_path / "missing")
    assert launch.main(["--party", "bob", "--config", config, "--state-dir", missing]) == 2
    assert f"{missing} is no directory that bob may write" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch.main(["--config", config, "--state-dir", missing])
    assert "--state-dir goes with --party or --parties" in capsys.readouterr().err


def test_a_party_whose_files_are_read_only_says_that_it_can_keep_no_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path / "owner", ["localhost:1", "localhost:2", "localhost:3"])
    home = read_config(config.path.parent / "bob" / "cluster.toml")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != home.ca.parent)
    monkeypatch.setattr("privserve.party.process.bind", stop := _Stop())
    with caplog.at_level(logging.WARNING, "privserve"), pytest.raises(InterruptedError):
        run_party(home, "bob")
    assert stop.called
    assert "bob cannot write" in caplog.text
    assert "with --state-dir" in caplog.text


class _Stop:
    """Ends a party before it binds its port."""

    called = False

    def __call__(self, *_: object) -> None:
        self.called = True
        raise InterruptedError


@contextlib.contextmanager
def _running(made: Path, name: str) -> Iterator[None]:
    home, config = made.parent / name, read_config(made)
    (home / "state").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "privserve.launch", "--party", name, "--config"]
    command += [str(home / "cluster.toml"), "--state-dir", str(home / "state")]
    process = subprocess.Popen(command)
    try:
        endpoint = config.parties[config.rank(name)].endpoint
        wait_until(lambda: is_up(endpoint), f"{name} is up")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def _handed_out(made: Path, name: str) -> bytes:
    config = read_config(made)
    party = config.parties[config.rank(name)]
    with httpx.Client(verify=tls_context(config.ca), timeout=20) as anybody:
        return anybody.get(
            f"https://{party.address}/privserve/revoked",
            extensions={"sni_hostname": config.identity(name)},
        ).content


def test_the_owners_list_reaches_state_directories_and_outlives_a_restart(
    tmp_path: Path, tag: str
) -> None:
    made = write_cluster(tmp_path / "made", addresses(), keep=tmp_path / "made.secret")
    with _running(made, "carol"):
        with _running(made, "alice"):
            assert manage(made, tmp_path / "made.secret", "revoke", "bob") == 0
        signed = (made.parent / "revoked.pem").read_bytes()
        for name in ("alice", "carol"):
            assert (made.parent / name / "state" / "revoked.pem").read_bytes() == signed
            assert not (made.parent / name / "revoked.pem").exists()
        with _running(made, "alice"):
            assert _handed_out(made, "alice") == signed
