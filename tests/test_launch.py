"""`python -m privserve.launch` as its users run it: real processes, signals, exit codes."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from serving import ROOT, tagged_processes, wait_until, write_unsupported_layer

import converters
import privserve as ps


class Launch:
    """A launcher's process, with the lines that it has printed so far."""

    def __init__(self, home: Path, *arguments: str, module: str = "privserve.launch") -> None:
        self.home = home
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, f"'{text}'", 40)
        self._reader.join(0 if self.process.poll() is None else 5)
        assert text in self.output, self.output

    def end(self, number: int | None = None) -> int:
        """The exit code, after sending signal `number`."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(5)
        return code

    @property
    def config(self) -> Path:
        return self.home / ".privserve" / "cluster.toml"


Start = Callable[..., Launch]


@pytest.fixture
def start(tag: str, tmp_path: Path, small: str) -> Iterator[Start]:
    launched: list[Launch] = []

    def begin(*arguments: str, home: Path = tmp_path) -> Launch:
        launched.append(Launch(home, *arguments))
        return launched[-1]

    yield begin
    for one in launched:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one._reader.join(5)
        one.process.stdout.close()


@pytest.fixture(scope="module")
def small_model() -> bytes:
    """An ONNX file that is quick to share: four numbers to two."""
    converted = converters.convert(torch.nn.Linear(4, 2), input_shape=(4,))
    serialized: bytes = converted.onnx.SerializeToString()
    return serialized


@pytest.fixture
def small(tmp_path: Path, small_model: bytes) -> str:
    (tmp_path / "small.onnx").write_bytes(small_model)
    return "small.onnx"


X = np.array([[0.5, -1.0, 2.0, 0.25]])


LOCAL = ["--parties", "3", "--port", "0", "--model", "small.onnx"]


def ports_of(config: Path) -> list[int]:
    parties = ps.Client(config)._cells[0].peers
    return [int(peer.address.rpartition(":")[2]) for peer in parties]


def test_three_parties_serve_their_limit_and_end(start: Start, tag: str) -> None:
    run = start(*LOCAL, "--num-requests", "2")
    run.wait_for("serving 2 rows")
    assert "carol (dealer) is up" in run.output
    assert len(tagged_processes(tag)) == 4
    with ps.Client(run.config) as client:
        for _ in range(2):
            assert client.query_model(X).shape == (1, 2)
        assert run.end() == 0
    assert "answered 2/2" in run.output
    assert "the limit of 2 rows is reached" in run.output
    assert not tagged_processes(tag)


def test_a_page_is_served_beside_the_parties_and_its_hash_is_said(start: Start, tag: str) -> None:
    run = start(*LOCAL, "--web", "0", "--num-requests", "1")
    run.wait_for("serving 1 rows")
    found = re.search(r"page for browsers .*: (\S+)/ \(SHA-256 ([0-9a-f]{64})\)", run.output)
    assert found is not None, run.output
    origin, digest = found.groups()
    assert "it asks for a client's key: .privserve/client.key" in run.output
    assert hashlib.sha256(httpx.get(f"{origin}/").content).hexdigest() == digest
    told = httpx.get(f"{origin}/parties.json").json()
    assert told["open"] is False
    asked = [httpx.get(f"{at}/v2", headers={"Origin": origin}).json() for at in told["parties"]]
    assert [facts["party"] for facts in asked] == ["alice", "bob"]
    with ps.Client(run.config) as client:
        client.query_model(X)
    assert run.end() == 0


MOMENTS = ["reading", "alice (compute) is up", "sharing", "serving"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_nothing_behind(start: Start, tag: str, moment: str) -> None:
    run = start(*LOCAL, "--num-requests", "5")
    run.wait_for(moment)
    assert run.end(signal.SIGINT) == 130
    assert "interrupted; everything is stopped" in run.output
    assert "Traceback" not in run.output
    wait_until(lambda: not tagged_processes(tag), "no process is left", 1)


def test_ctrl_c_while_serving_without_a_limit_is_the_normal_end(start: Start, tag: str) -> None:
    run = start(*LOCAL)
    run.wait_for("serving queries until Ctrl-C")
    ports = ports_of(run.config)
    with ps.Client(run.config) as client:
        client.query_model(X)
    assert run.end(signal.SIGINT) == 0
    assert "stopped after 1 rows" in run.output
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_being_terminated_ends_the_parties_too(start: Start, tag: str) -> None:
    run = start(*LOCAL, "--num-requests", "5")
    run.wait_for("serving")
    assert run.end(signal.SIGTERM) == 130
    assert not tagged_processes(tag)


def test_parties_do_not_outlive_a_launcher_that_was_killed(start: Start, tag: str) -> None:
    run = start(*LOCAL)
    run.wait_for("serving")
    run.end(signal.SIGKILL)
    wait_until(lambda: not tagged_processes(tag), "the parties noticed", 10)


def test_a_party_that_is_killed_while_serving_is_started_again_and_given_its_share(
    start: Start, tag: str
) -> None:
    run = start(*LOCAL, "--num-requests", "2")
    run.wait_for("serving")
    (bob,) = [p for p in tagged_processes(tag) if b"\0bob\0" in _command(p)]
    os.kill(bob, signal.SIGKILL)
    run.wait_for("bob was killed")
    run.wait_for("starting it again")
    run.wait_for("sharing it again, for the 2 rows left")
    run.wait_for("is served again")
    with ps.Client(run.config, timeout=30) as client:
        for _ in range(2):
            assert client.query_model(X).shape == (1, 2)
    assert run.end() == 0
    assert not tagged_processes(tag)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_parties_that_are_started_one_by_one_serve_for_the_owner(
    start: Start, tag: str, tmp_path: Path
) -> None:
    hosts = ",".join(f"localhost:{port}" for port in free_ports(3))
    init = start("--init", "files", "--hosts", hosts)
    assert init.end() == 0
    assert "--party bob --config bob/cluster.toml" in init.output
    again = start("--init", "files", "--hosts", hosts)
    assert again.end() == 2
    assert "holds a cluster already" in again.output
    parties = [
        start("--party", name, "--config", f"{name}/cluster.toml", home=tmp_path / "files")
        for name in ("alice", "bob", "carol")
    ]
    for party in parties:
        party.wait_for("is reached at localhost:")
    config = tmp_path / "files" / "cluster.toml"
    owner = start("--config", str(config), "--model", "small.onnx", "--num-requests", "1")
    owner.wait_for("serving 1 rows")
    with ps.Client(config) as client:
        assert client.query_model(X).shape == (1, 2)
    assert owner.end() == 0
    for party in parties:
        assert party.process.poll() is None, "a party outlives its owner's visit"
        assert party.end(signal.SIGINT) == 0


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    found: list[int] = []
    for port in range(21000, 32000, 7):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def test_a_bad_model_ends_the_process_with_code_2(start: Start, tmp_path: Path) -> None:
    write_unsupported_layer(tmp_path / "m.h5")
    run = start("--model", "m.h5", "--port", "0")
    assert run.end() == 2
    assert "Teleport2D" in run.lines[-1]
    assert "Traceback" not in run.output


def test_a_port_in_use_is_named_with_the_remedy(start: Start, tag: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        run = start("--parties", "3", "--host", "127.0.0.1", "--port", str(port), *LOCAL[-2:])
        assert run.end() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in run.output
    assert "choose another with --port" in run.output


def test_the_demo_runs_from_conversion_to_the_end(tag: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("and was correctly classified as") == 3
    assert "the limit of 3 rows is reached" in ended.stdout
    assert "all parties are gone" in ended.stdout
    assert not tagged_processes(tag)
    assert not list(tmp_path.iterdir())
