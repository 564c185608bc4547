"""How clients learn which certificates count no more: from the parties, in memory."""

from __future__ import annotations

import datetime
import shutil
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from invited import is_up, manage
from serving import SMALL, Digits, wait_until

import privserve as ps
from privserve.authority import Authority, Revoked, read_issued
from privserve.calls import tls_context
from privserve.config import read_config


@pytest.fixture
def up(owner: Path, hosts: dict[str, Path]) -> dict[str, Path]:
    """The parties' directories, once all of them answer."""
    for party in read_config(owner).parties:
        wait_until(lambda party=party: is_up(party.endpoint), f"{party.name} is up")
    return hosts


@pytest.fixture
def stranger(owner: Path, tmp_path: Path) -> Path:
    """A client's cluster.toml, with nothing beside it but ca.pem, in a place it cannot write to."""
    home = tmp_path / "client"
    home.mkdir()
    for name in ("cluster.toml", "ca.pem"):
        shutil.copy(owner.parent / name, home)
    home.chmod(0o500)
    return home / "cluster.toml"


def refused(client: ps.Client, name: str) -> None:
    with pytest.raises(ps.PartyRevoked, match=f"^{name} at .* shows a certificate .* revoked"):
        client.query_model(SMALL)


@pytest.mark.parametrize("thief", ["alice", "bob"])
def test_a_client_learns_from_any_party_whose_certificate_was_revoked(
    thief: str, owner: Path, secret: Path, up: dict[str, Path], stranger: Path
) -> None:
    """Whoever has a stolen key shows no list; what the others show names it all the same."""
    with ps.Client(stranger, timeout=20) as early, ps.Client(stranger, timeout=20) as late:
        with pytest.raises(ps.NotServing, match="no model is shared"):  # all are well
            early.query_model(SMALL)
        assert manage(owner, secret, "revoke", thief) == 0
        refused(early, thief)  # its connections are older than the list
        refused(early, thief)
        refused(late, thief)
    signed = (owner.parent / "revoked.pem").read_bytes()
    for party in read_config(owner).parties:
        context = tls_context(stranger.parent / "ca.pem")
        with httpx.Client(verify=context, timeout=20) as anybody:
            shown = anybody.get(
                f"https://{party.address}/privserve/revoked",
                extensions={"sni_hostname": read_config(owner).identity(party.name)},
            )
        assert shown.content == (b"" if party.name == thief else signed)
    assert sorted(path.name for path in stranger.parent.iterdir()) == ["ca.pem", "cluster.toml"]


def test_an_older_list_or_a_forged_one_hides_nobody(
    owner: Path, secret: Path, up: dict[str, Path], stranger: Path
) -> None:
    config, authority = read_config(owner), Authority.load(owner.parent, secret)
    older, newer = authority.revoked([]), authority.revoked(read_issued(config)["bob"])
    forged = Authority.fresh(config.cluster).revoked(read_issued(config)["alice"])
    lists = {name: up[name] / "revoked.pem" for name in ("alice", "bob")}
    with ps.Client(stranger, timeout=20) as client:
        lists["alice"].write_bytes(newer)
        refused(client, "bob")
        lists["alice"].write_bytes(older)
        refused(client, "bob")
    with ps.Client(stranger, timeout=20) as fresh:
        with pytest.raises(ps.NotServing):  # the older list names nobody
            fresh.query_model(SMALL)
        lists["bob"].write_bytes(forged)
        with pytest.raises(ps.ClusterError, match=r"what bob hands out as the list .* not sign"):
            fresh.query_model(SMALL)
        lists["alice"].write_bytes(newer)
        refused(fresh, "bob")
    # A client that was handed the list has no need to ask.
    lists["alice"].unlink()
    stranger.parent.chmod(0o700)
    (stranger.parent / "revoked.pem").write_bytes(newer)
    with ps.Client(stranger, timeout=20) as told:
        refused(told, "bob")


def test_clients_ask_for_the_list_once_for_a_model(
    digits: Digits, client: ps.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt, learn = [], client._revocations.learn
    monkeypatch.setattr(
        client._revocations, "learn", lambda pem, name: learnt.append(name) or learn(pem, name)
    )
    with digits.serving():
        for _ in range(3):
            client.query_model(digits.images[:1])
    assert learnt == ["alice", "bob"]


def test_a_party_is_refused_by_its_certificates_number(digits: Digits) -> None:
    config = digits.cluster.config
    context = tls_context(config.ca)

    def meet() -> int:
        with (
            socket.create_connection(config.parties[0].endpoint, timeout=5) as raw,
            context.wrap_socket(raw, server_hostname=config.identity("alice")) as stream,
        ):
            return int((stream.getpeercert() or {})["serialNumber"], 16)

    number = meet()
    context.revoked = frozenset([number + 1])
    assert meet() == number
    context.revoked = frozenset([number])
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        meet()


def test_of_two_lists_the_later_is_newer_and_in_one_second_the_longer() -> None:
    noon = datetime.datetime(2027, 1, 1, 12, tzinfo=datetime.UTC)
    first, longer = Revoked(noon, (1,), b""), Revoked(noon, (1, 2), b"")
    later = Revoked(noon + datetime.timedelta(seconds=1), (1,), b"")
    assert [a.is_newer(b) for a, b in ((longer, first), (later, longer))] == [True, True]
    assert [a.is_newer(b) for a, b in ((first, longer), (longer, later), (first, first))] == [
        False,
        False,
        False,
    ]
