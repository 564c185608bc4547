"""The gateway's command line: what it refuses, what it warns of."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_process import gateway
from serving import make_config

from privserve.gateway.serve import is_loopback

WRONG: dict[str, tuple[list[str], str]] = {
    "no port": (["--http", "localhost"], "write host:port"),
    "half of TLS": (["--tls-cert", "a.pem"], "go together"),
    "any page": (["--cors", "*"], "no origin"),
    "a page's path": (["--cors", "https://a.example/"], "no origin"),
    "no time": (["--timeout", "0"], "--timeout goes from"),
    "no cluster": (["--config", "missing/cluster.toml"], "missing/cluster.toml"),
    "no key": (["--key", "missing.key"], "missing.key"),
    "no certificate": (["--tls-cert", "a.pem", "--tls-key", "b.pem"], "a.pem"),
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A cluster whose parties are not there."""
    return make_config(tmp_path / "files", ["localhost:1", "localhost:2", "localhost:3"]).path


def refused(options: list[str]) -> str:
    """What the gateway says before it ends with 2; in its own process, whose log it sets up."""
    ran = subprocess.run(
        [sys.executable, "-m", "privserve.gateway", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    return ran.stderr


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_wrong_options_end_it_with_the_cause(options: list[str], words: str, config: Path) -> None:
    said = refused(["--config", str(config), "--http", "127.0.0.1:0", *options])
    assert said.startswith("error: ")
    assert words in said


@pytest.mark.parametrize("option", ["--http", "--grpc"])
def test_a_port_in_use_is_named_with_the_option(option: str, config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ["--config", str(config), "--http", "127.0.0.1:0", option, address]
        said = refused(options)
    assert address in said
    assert option in said


def test_grpc_without_grpcio_says_what_to_install(config: Path) -> None:
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "from privserve.gateway.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--config", str(config), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 2
    assert "pip install 'privserve[gateway]'" in ran.stderr


def test_it_says_what_it_sees_and_warns_of_where_it_should_not_be(config: Path) -> None:
    with gateway(config, "--http", "0.0.0.0:0", serves=False) as front:
        front.hear("not serving now")
        said = front.stop()
    assert "SEES ALL INPUTS AND ANSWERS IN PLAINTEXT" in said
    assert "WARNING: it listens beyond this host" in said
    assert "cross the network in plaintext" in said
    assert "WARNING: a party's key lies beside" in said  # the files of all were made here
    assert "alice at localhost:1" in said


def test_at_home_it_warns_of_nothing(config: Path, tmp_path: Path) -> None:
    home = tmp_path / "client"
    home.mkdir()
    for name in ("cluster.toml", "ca.pem", "client.key"):
        (home / name).write_bytes((config.parent / name).read_bytes())
    with gateway(home / "cluster.toml", serves=False) as front:
        front.hear("not serving now")
        assert "WARNING" not in front.stop()


def test_loopback_is_what_other_hosts_cannot_reach() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "gateway.example")))
