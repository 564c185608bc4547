"""Where a party listens and where it is reached: behind a NAT, at several addresses, over IPv6."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from serving import SMALL, free_workers, serving, small_model

import privserve as ps
from privserve.addresses import bind, connect, reachable
from privserve.certificates import write_cluster
from privserve.config import read_config
from privserve.errors import ConfigError

NAMES = ("alice", "bob", "carol")


def is_ipv6_here() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def listening(pid: int) -> int:
    """How many TCP ports a process listens on."""
    held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    found = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            found += fields[3] == "0A" and f"socket:[{fields[9]}]" in held
    return found


class Forwarder:
    """A port that leads to another one, as a NAT's or a container's does."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.passed = 0
        self._to: tuple[str, int] | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def lead(self, port: int) -> None:
        self._to = ("127.0.0.1", port)

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self.sock.accept()
            except OSError:
                return
            assert self._to is not None
            try:
                two = socket.create_connection(self._to, timeout=20)
            except OSError:  # whoever it leads to is not up yet
                one.close()
                continue
            self.passed += 1
            two.settimeout(None)
            for ends in ((one, two), (two, one)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@contextmanager
def parties(homes: Path, *options: tuple[str, ...]) -> Iterator[None]:
    """The three parties of the files below `homes`, each with options of its own."""
    with ExitStack() as stack:
        for name, more in zip(NAMES, options, strict=True):
            config = homes / name / "cluster.toml"
            command = [sys.executable, "-m", "privserve.launch", "--party", name]
            process = subprocess.Popen(
                [*command, "--config", str(config), *more], stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        yield


def answers(config: Path) -> None:
    """Share a model on the running parties of a cluster, and ask it."""
    model, cluster = small_model(), ps.Cluster.connect(config)
    try:
        model.share(cluster)
        with serving(cluster, model), ps.Client(config, timeout=30) as client:
            assert np.abs(client.query_model(SMALL) - model.converted.predict(SMALL)).max() < 1e-2
        model.stop()
    finally:
        cluster.stop()


def rewritten(homes: Path, change: dict[str, str]) -> None:
    """Change lines of all parties' cluster.toml and of the owner's."""
    for file in [homes / "cluster.toml", *(homes / name / "cluster.toml" for name in NAMES)]:
        text = file.read_text()
        for before, after in change.items():
            assert before in text
            text = text.replace(before, after)
        file.write_text(text)


def test_parties_behind_a_nat_listen_elsewhere_than_they_are_reached(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ways = [Forwarder() for _ in NAMES]
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in NAMES]
        ports = [sock.getsockname()[1] for sock in free]
        stack.close()  # nobody else is given one of these for a while
        for way, port in zip(ways, ports, strict=True):
            stack.callback(way.close)
            way.lead(port)
        addresses = zip(NAMES, [way.address for way in ways], strict=True)
        config = write_cluster(tmp_path, list(addresses))
        # Bob's file says so, the others' command lines do.
        line = f'address = "{ways[1].address}"'
        mine = tmp_path / "bob" / "cluster.toml"
        mine.write_text(
            mine.read_text().replace(line, f'{line}\nlisten = ["127.0.0.1:{ports[1]}"]')
        )
        listens = [("--listen", f"127.0.0.1:{ports[0]}"), (), ("--listen", f"127.0.0.1:{ports[2]}")]
        with parties(tmp_path, *listens):
            answers(config)
        assert ways[0].passed > 3  # bob's and carol's lanes, the owner's and the client's calls


def test_who_does_not_answer_at_one_address_is_tried_at_the_next(tmp_path: Path) -> None:
    with ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        dead, *alive = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in free]
    config = write_cluster(tmp_path, list(zip(NAMES, alive, strict=True)))
    rewritten(tmp_path, {f'"{address}"': f'["{dead}", "{address}"]' for address in alive})
    assert read_config(config).parties[0].addresses == (dead, alive[0])
    with parties(tmp_path, *[("--listen", address) for address in alive]):
        answers(config)
        with (
            ps.Client(config, http=True) as client,
            pytest.raises(ps.QueryError, match="stopped the model"),
        ):
            client.query_model(SMALL)


def test_a_party_needs_one_port(tmp_path: Path) -> None:
    with ps.Cluster(*free_workers(), directory=tmp_path / "c") as cluster:
        answers(tmp_path / "c" / "cluster.toml")
        assert [listening(pid) for pid in cluster.process_ids.values()] == [1, 1, 1]


@pytest.mark.skipif(not is_ipv6_here(), reason="this machine has no IPv6")
def test_parties_talk_over_ipv6(tmp_path: Path) -> None:
    workers = [ps.Worker("[::1]:0") for _ in NAMES]
    with ps.Cluster(*workers, directory=tmp_path / "c") as cluster:
        assert cluster.config.parties[0].address.startswith("[::1]:")
        answers(tmp_path / "c" / "cluster.toml")


@pytest.mark.skipif(not is_ipv6_here(), reason="this machine has no IPv6")
def test_one_port_may_be_taken_for_ipv4_and_ipv6_apart() -> None:
    with bind(("0.0.0.0", 0), "alice") as four, bind(("::", four.getsockname()[1]), "alice") as six:
        assert four.getsockname()[1] == six.getsockname()[1]


def test_who_listens_at_an_address_of_another_host_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no address 192\.0\.2\.1.*listen = \"0\.0\.0\.0:4000\""):
        bind(("192.0.2.1", 4000), "alice")


def test_a_connection_is_made_to_the_first_address_that_takes_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = f"127.0.0.1:{server.getsockname()[1]}"
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            dead = f"127.0.0.1:{nobody.getsockname()[1]}"
        connect([dead, alive], 5).close()
        assert reachable([dead, alive], 5) == alive
        assert reachable([dead], 5) == dead
        with pytest.raises(ConnectionRefusedError):
            connect([dead], 5)


def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    config = write_cluster(tmp_path, [(name, f"localhost:{i}") for i, name in enumerate(NAMES, 1)])
    old = config.read_text()
    for i in (1, 2, 3):
        old = old.replace(
            f'address = "localhost:{i}"', f'http = "localhost:{i}"\npeer = "localhost:{i + 100}"'
        )
    config.write_text(old)
    assert [party.addresses for party in read_config(config).parties] == [
        (f"localhost:{i}",) for i in (1, 2, 3)
    ]


@pytest.mark.parametrize("wrong", ["[]", "4000", '["localhost:4000", 1]', '"localhost"'])
def test_what_is_no_address_is_refused(tmp_path: Path, wrong: str) -> None:
    config = write_cluster(tmp_path, [(name, f"localhost:{i}") for i, name in enumerate(NAMES, 1)])
    config.write_text(config.read_text().replace('"localhost:2"', wrong))
    with pytest.raises(ConfigError, match="address"):
        read_config(config)
