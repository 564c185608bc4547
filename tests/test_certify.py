"""Certificates: made where their party is, renewed without a restart, revoked at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from invited import NAMES, addresses, is_up, manage
from serving import SMALL, serving, small_model, wait_until

import privserve as ps
from privserve import certify, launch
from privserve.authority import (
    Authority,
    check_revoked,
    days_left,
    fingerprint,
    read_request,
)
from privserve.calls import tls_context
from privserve.certificates import join, renew, sign, write_cluster
from privserve.config import read_config
from privserve.errors import ConfigError


def test_a_partys_key_never_leaves_its_host(owner: Path, secret: Path, tmp_path: Path) -> None:
    host = tmp_path / "bobs host"
    assert launch.main(["--join", str(owner.parent / "bob.invite"), "--to", str(host)]) == 0
    home = host / "bob"
    key = (home / "bob.key").read_text()
    assert stat.S_IMODE((home / "bob.key").stat().st_mode) == 0o600
    assert "PRIVATE" in key
    assert manage(owner, secret, "sign", str(home / "bob.request")) == 0
    shutil.copy(owner.parent / "bob.pem", home)
    middle = key.splitlines()[1]
    assert not [p for p in owner.parent.rglob("*") if p.is_file() and middle in p.read_text()]
    ssl.create_default_context().load_cert_chain(home / "bob.pem", home / "bob.key")


def test_both_sides_can_compare_the_keys_fingerprint(
    owner: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch.main(["--join", str(owner.parent / "bob.invite"), "--to", str(tmp_path)])
    said = capsys.readouterr().out.split("fingerprint: ")[1].splitlines()[0]
    manage(owner, secret, "sign", str(tmp_path / "bob" / "bob.request"))
    assert said in capsys.readouterr().out


def test_parties_that_joined_serve_until_one_is_revoked(
    owner: Path, secret: Path, hosts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ps.Cluster.connect(owner)
    with small_model() as model, ps.Client(owner, timeout=20) as client:
        model.share(cluster)
        with serving(cluster, model):
            assert client.query_model(SMALL).shape == (1, 2)
            stopped = threading.Thread(target=manage, args=(owner, secret, "revoke", "bob"))
            stopped.start()
            stopped.join(30)
            with pytest.raises(ps.NotServing, match="revoked"):
                client.query_model(SMALL)
    assert "the other parties know" in capsys.readouterr().out
    for name in ("alice", "carol"):
        assert (hosts[name] / "revoked.pem").exists()
    # Clients and the owner, who have the list beside ca.pem, do not speak to bob any more.
    with ps.Client(owner, timeout=20) as late, pytest.raises(ps.ClusterError, match="bob"):
        late.query_model(SMALL)
    with small_model() as model, pytest.raises(ps.ClusterError, match="bob"):
        model.share(cluster)
    cluster.stop()
    assert manage(owner, secret, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["alice", "1", "0"],
        ["bob", "1", "1"],
        ["carol", "1", "0"],
    ]


def test_a_revoked_party_is_turned_away_by_its_peers(
    owner: Path, secret: Path, tmp_path: Path
) -> None:
    from privserve.party.lanes import client_context, server_context

    config, homes = read_config(owner), {}
    for name in ("alice", "bob"):
        asked, _ = join(owner.parent / f"{name}.invite", tmp_path)
        sign(config, secret, asked.read_bytes())
        homes[name] = asked.parent
        shutil.copy(owner.parent / f"{name}.pem", homes[name])
    configs = {name: read_config(homes[name] / "cluster.toml") for name in homes}

    def meets() -> bool:
        alice, bob = configs["alice"], configs["bob"]
        server = server_context(alice, alice.parties[0])
        client = client_context(bob, bob.parties[1])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        one = server.wrap_bio(incoming, outgoing, server_side=True)
        other = client.wrap_bio(outgoing, incoming, server_hostname=alice.identity("alice"))
        try:
            for _ in range(4):
                for side in (other, one):
                    with contextlib.suppress(ssl.SSLWantReadError):
                        side.do_handshake()
        except ssl.SSLError:
            return False
        return True

    assert meets()
    manage(owner, secret, "revoke", "bob")
    shutil.copy(owner.parent / "revoked.pem", homes["alice"])
    assert not meets()
    # A new key, signed after that, is good again; the old number stays on the list.
    (homes["bob"] / "bob.key").unlink()
    asked, _ = join(owner.parent / "bob.invite", tmp_path)
    sign(config, secret, asked.read_bytes())
    shutil.copy(owner.parent / "bob.pem", homes["bob"])
    assert meets()


def test_a_renewed_certificate_is_shown_without_a_restart(tag: str, tmp_path: Path) -> None:
    secret = tmp_path / "ca.secret"
    owner = write_cluster(tmp_path / "owner", addresses(), keep=secret)
    config = read_config(owner)
    code = (
        "from privserve.party import process; process.CERTIFICATE_SECONDS = 0.1;"
        "from privserve.party.__main__ import main; main()"
    )
    alice = owner.parent / "alice" / "cluster.toml"
    running = subprocess.Popen(
        [sys.executable, "-c", code, "--name", "alice", "--config", str(alice)]
    )

    def serial() -> str:
        host, port = config.parties[0].endpoint
        name = config.identity("alice")
        with (
            socket.create_connection((host, port), timeout=5) as raw,
            tls_context(config.ca).wrap_socket(raw, server_hostname=name) as stream,
        ):
            return str((stream.getpeercert() or {})["serialNumber"])

    try:
        wait_until(lambda: is_up(config.parties[0].endpoint), "alice is up")
        before = serial()
        assert renew(config, secret, days=30) == list(NAMES)
        wait_until(lambda: serial() != before, "the new certificate is shown")
        assert 29 < days_left(owner.parent / "alice" / "alice.pem") < 30.1
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(20)


def test_nothing_can_be_signed_without_the_authoritys_secret(
    owner: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, _ = join(owner.parent / "bob.invite", tmp_path)
    other = tmp_path / "other"
    other.write_text("guess\n")
    assert manage(owner, other, "sign", str(asked)) == 2
    assert "is not the secret of" in capsys.readouterr().err
    assert secret.read_text().strip() not in (owner.parent / "ca.key").read_text()
    assert "ENCRYPTED" in (owner.parent / "ca.key").read_text()
    lost = write_cluster(tmp_path / "lost", addresses())
    assert manage(lost, secret, "sign", str(asked)) == 2
    assert "only whoever holds the authority's key" in capsys.readouterr().err


def test_a_request_of_a_stranger_or_a_damaged_one_is_refused(
    owner: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, told = join(owner.parent / "bob.invite", tmp_path)
    name, key = read_request(asked.read_bytes())
    assert (name, fingerprint(key)) == ("bob", told)
    damaged = tmp_path / "damaged"
    lines = asked.read_text().splitlines()
    damaged.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]))
    assert manage(owner, secret, "sign", str(damaged)) == 2
    stranger = write_cluster(
        tmp_path / "other",
        [(n, a) for n, (_, a) in zip("abc", addresses(), strict=True)],
        make_keys=False,
    )
    asked, _ = join(stranger.parent / "a.invite", tmp_path)
    assert manage(owner, secret, "sign", str(asked)) == 2
    assert "knows no party 'a'" in capsys.readouterr().err
    assert manage(owner, secret, "sign", str(tmp_path / "nowhere")) == 2


INVITATIONS = {
    "nothing": "",
    "no invitation": "{}",
    "a path for a name": json.dumps(
        {"privserve_invitation": 1, "party": "../x", "cluster": "", "ca": ""}
    ),
}


@pytest.mark.parametrize("text", INVITATIONS.values(), ids=INVITATIONS)
def test_what_is_no_invitation_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.invite").write_text(text)
    with pytest.raises(ConfigError):
        join(tmp_path / "x.invite", tmp_path / "here")
    assert not (tmp_path / "x").exists()


def test_joining_twice_does_not_replace_the_key(owner: Path, tmp_path: Path) -> None:
    asked, _ = join(owner.parent / "bob.invite", tmp_path)
    before = (asked.parent / "bob.key").read_bytes()
    with pytest.raises(ConfigError, match="holds a key already"):
        join(owner.parent / "bob.invite", tmp_path)
    assert (asked.parent / "bob.key").read_bytes() == before


def test_a_list_of_another_authority_is_no_list(owner: Path) -> None:
    signed = Authority.fresh("other").revoked([1, 2])
    with pytest.raises(ConfigError, match="did not sign"):
        check_revoked(signed, owner.parent / "ca.pem")
    with pytest.raises(ConfigError, match="no list"):
        check_revoked(b"x", owner.parent / "ca.pem")


def test_the_list_may_be_json(owner: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["list", "--json"], ["--json", "list"]):
        assert certify.main(["--config", str(owner), *words]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [one["party"] for one in told] == ["alice", "bob", "carol"]
        assert all(one["revoked"] == 0 for one in told)
