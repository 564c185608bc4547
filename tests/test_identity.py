"""Attacks on who is who: each was possible once, and is run here to see it fail."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import Digits, SignedBy

import privserve as ps
from privserve.calls import tls_context
from privserve.certificates import write_cluster
from privserve.config import ClusterConfig, read_config
from privserve.credentials import KEY_FILE
from privserve.errors import ClusterError
from privserve.owner_calls import WINDOW, Boot, Signer, Verifier, load_owner_key
from privserve.party.channel import TlsStream
from privserve.party.lanes import Listener, client_context

X = np.zeros((1, 28, 28, 1))


# -- a party in another one's place ---------------------------------------------------------


class Impostor:
    """A TLS server with one party's certificate, which notes what reaches it."""

    def __init__(self, config: ClusterConfig, name: str) -> None:
        home = config.path.parent / name
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home / f"{name}.pem", home / f"{name}.key")
        self.socket = socket.create_server(("localhost", 0))
        self.address = f"localhost:{self.socket.getsockname()[1]}"
        self.heard = b""
        self.met = threading.Event()
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(raw, server_side=True) as stream:
                    stream.settimeout(2)
                    self.heard += stream.recv(1 << 16)
            except OSError:
                pass
            finally:
                self.met.set()
                raw.close()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join(5)


@pytest.fixture
def impostor(digits: Digits) -> Iterator[Impostor]:
    server = Impostor(digits.cluster.config, "alice")
    yield server
    server.close()


def moved(config: ClusterConfig, directory: Path, bobs: str) -> Path:
    """The cluster's files as a client has them, with bob at another address."""
    text = config.path.read_text().replace(
        f'address = "{config.parties[1].address}"', f'address = "{bobs}"'
    )
    assert bobs in text
    for file in (config.ca, config.path.parent / KEY_FILE):
        shutil.copy(file, directory / file.name)
    (directory / "cluster.toml").write_text(text)
    return directory / "cluster.toml"


def test_a_client_sends_no_share_to_alice_in_bobs_place(
    digits: Digits, impostor: Impostor, tmp_path: Path
) -> None:
    """Both listen on one host: the host's name in the certificate used to be enough."""
    toml = moved(digits.cluster.config, tmp_path, impostor.address)
    with ps.Client(toml, timeout=10) as client, pytest.raises(ClusterError, match="bob"):
        client.query_model(X)
    assert impostor.met.wait(5)
    assert impostor.heard == b""


def test_addresses_that_lead_to_one_party_twice_are_refused(digits: Digits) -> None:
    config = digits.cluster.config
    alice = config.parties[0].address
    with pytest.raises(ps.ConfigError, match="are one party, alice"):
        ps.Client([alice, alice], ca=config.ca)


def test_an_address_where_alice_poses_as_bob_is_refused(digits: Digits, impostor: Impostor) -> None:
    config = digits.cluster.config
    with pytest.raises(ps.ConfigError, match="are one party, alice"):
        ps.Client([config.parties[0].address, impostor.address], ca=config.ca)


def test_addresses_alone_still_find_their_parties(digits: Digits) -> None:
    config = digits.cluster.config
    addresses = [party.address for party in config.compute]
    with digits.serving(1), ps.Client(addresses, ca=config.ca, timeout=30) as client:
        assert client.query_model(digits.images[:1]).shape == (1, 10)


def test_a_host_that_is_called_like_a_party_is_not_that_party(tmp_path: Path) -> None:
    """Alice runs on a host called carol, so her certificate names the host carol."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    parties = [("alice", "carol:1"), ("bob", addresses[1]), ("carol", "elsewhere:1")]
    write_cluster(tmp_path, parties)
    configs = [read_config(tmp_path / name / "cluster.toml") for name, _ in parties]
    bob = Listener(configs[1], configs[1].parties[1], sockets[1])
    try:
        context = client_context(configs[0], configs[0].parties[0])
        raw = socket.create_connection(configs[0].parties[1].endpoint, timeout=5)
        stream = TlsStream(raw, context, server_hostname=configs[0].identity("bob"))
        stream.handshake(5)
        hello = json.dumps({"session": "s", "lane": "deal", "from": "carol"}).encode()
        raw.setblocking(True)
        raw.settimeout(5)
        raw.sendall(stream.encrypt(len(hello).to_bytes(8, "little") + hello))
        # Turned away: the connection ends, and no session finds a carol.
        while raw.recv(1 << 16):
            pass
        with bob._changed:
            assert not bob._arrived
        raw.close()
    finally:
        bob.close()
        for sock in sockets:
            sock.close()


# -- a party in the owner's place -----------------------------------------------------------


@pytest.fixture
def config(digits: Digits) -> ClusterConfig:
    return digits.cluster.config


def front_of(config: ClusterConfig, rank: int) -> httpx.Client:
    party = config.parties[rank]
    return httpx.Client(
        base_url=f"https://{party.address}", verify=tls_context(config.ca), timeout=20
    )


def test_what_the_owner_sends_to_alice_is_worth_nothing_at_bob(config: ClusterConfig) -> None:
    """A bearer token, which every party sees, used to let each act as owner at the others."""
    with front_of(config, 0) as alice, front_of(config, 1) as bob:
        boot = Boot.read(bob.get("/v2").json())
        for_alice = SignedBy(config, "alice", boot)
        answer = bob.get("/privserve/status", auth=for_alice)
        assert (answer.status_code, answer.json()["code"]) == (401, "owner_only")
        about = alice.get("/v2").json()
        assert alice.get(
            "/privserve/status", auth=SignedBy(config, "alice", Boot.read(about))
        ).is_success


@pytest.mark.parametrize("change", ["body", "path", "method", "again", "boot", "session"])
def test_a_signed_call_is_good_for_itself_and_once(config: ClusterConfig, change: str) -> None:
    with front_of(config, 0) as alice:
        boot = Boot.read(alice.get("/v2").json())
        signer = Signer(load_owner_key(config.path.parent / "owner.key"), config.cluster)
        body = b'{"num_requests": 0}'
        path = "/privserve/serve"
        named = Boot("0" * 32, 0) if change == "boot" else boot
        session = "another" if change == "session" else ""
        header = signer.authorization("alice", named, "POST", path, session, body)
        headers = {"Authorization": header}
        if change == "again":  # the first time it is taken, and its number refused
            assert alice.post(path, content=body, headers=headers).status_code == 400
        method = "GET" if change == "method" else "POST"
        target = "/privserve/stop" if change == "path" else path
        target = "/privserve/status" if change == "method" else target
        sent = b'{"num_requests": 5}' if change == "body" else body
        sent = b"" if change == "method" else sent
        answer = alice.request(method, target, content=sent, headers=headers)
        status, code = (409, "stale_session") if change == "session" else (401, "owner_only")
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_calls_that_arrive_in_another_order_are_taken_and_old_ones_are_not(tmp_path: Path) -> None:
    config = read_config(write_cluster(tmp_path, [(n, "h:1") for n in ("a", "b", "c")]))
    verifier = Verifier(config.owner, config.cluster, "a")
    signer = Signer(load_owner_key(tmp_path / "owner.key"), config.cluster)

    def signed() -> str:
        return signer.authorization("a", Boot(verifier.boot, 0), "GET", "/x", "", b"")

    oldest, first, second = signed(), signed(), signed()
    verifier.check(second, "GET", "/x")
    verifier.check(first, "GET", "/x")
    for _ in range(2000):
        verifier.check(signed(), "GET", "/x")
    for header in (oldest, first, second):
        with pytest.raises(ps.QueryError, match="good for one use"):
            verifier.check(header, "GET", "/x")


def test_an_owner_whose_clock_was_set_back_numbers_calls_above_those_that_were_made(
    tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parties took a thousand calls, and told whoever came with a lower number that it was old."""
    now = time.time_ns
    with ps.Cluster(*(ps.Worker("localhost:0") for _ in range(3))) as cluster:
        alice = cluster.config.parties[0]
        with front_of(cluster.config, 0) as front:
            signed = SignedBy(cluster.config, "alice", Boot.read(front.get("/v2").json()))
            for _ in range(WINDOW + 2):
                front.get("/privserve/status", auth=signed).raise_for_status()
            monkeypatch.setattr(time, "time_ns", lambda: now() - 3600 * 10**9)
            fresh = SignedBy(cluster.config, "alice", Boot(signed._where[1].name, 0))
            assert front.get("/privserve/status", auth=fresh).status_code == 401
        cluster.cells[0]._signer._last.clear()  # as in a program that begins now
        for _ in range(2):
            assert cluster.call(alice, "GET", "/privserve/status").json()["state"] == "idle"


def test_a_party_that_tells_of_huge_numbers_spoils_nothing_at_the_others(tmp_path: Path) -> None:
    config = read_config(write_cluster(tmp_path, [(n, "h:1") for n in ("a", "b", "c")]))
    signer = Signer(load_owner_key(tmp_path / "owner.key"), config.cluster)
    for above in (2**63 - 1, 10**30, -1, True, "7", None):
        boot = Boot.read({"boot": "x", "calls_above": above})
        for _ in range(3):
            assert len(signer.authorization("b", boot, "GET", "/x", "", b"").split(".")[0]) <= 30
    verifier = Verifier(config.owner, config.cluster, "a")
    honest = Boot.read({"boot": verifier.boot, "calls_above": 0})
    number = signer.authorization("a", honest, "GET", "/x", "", b"").split()[1].split(".")[0]
    assert int(number) <= time.time_ns()


def test_another_clusters_owner_is_nobody_here(config: ClusterConfig, tmp_path: Path) -> None:
    other = read_config(write_cluster(tmp_path, [(n, "h:1") for n in ("alice", "b", "c")]))
    with front_of(config, 0) as alice:
        boot = Boot.read(alice.get("/v2").json())
        assert (
            alice.get("/privserve/status", auth=SignedBy(other, "alice", boot)).status_code == 401
        )


def test_an_owner_goes_on_after_a_party_was_started_again(tag: str) -> None:
    """The party's new process has another boot name, which the owner has to learn."""
    with ps.Cluster(*(ps.Worker("localhost:0") for _ in range(3))) as cluster:
        alice = cluster.config.parties[0]
        cluster.call(alice, "GET", "/privserve/status")
        cluster.cells[0]._boots[alice.name] = Boot("0" * 32, 0)
        assert cluster.call(alice, "GET", "/privserve/status").json()["state"] == "idle"
