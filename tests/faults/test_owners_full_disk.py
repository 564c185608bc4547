"""The owner's disk is full: what it has stays whole, and the command says so."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import make_config

from privserve import clients

ADDRESSES = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    there = tmp_path / "disk"
    there.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(there)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be made here to be filled: that takes root")
    yield there
    subprocess.run(["umount", "--lazy", str(there)], check=True)


def test_a_client_that_cannot_be_added_leaves_the_others_as_they_are(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(disk / "made", ADDRESSES)
    before = {path: path.read_bytes() for path in config.path.parent.glob("*.*")}
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    add = ["--config", str(config.path), "add", "press"]
    assert clients.main(add) == 2
    assert re.search(rf"{config.path.parent}\S+: No space left", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in before} == before
    filler.unlink()
    clients.main(add)
    assert (config.path.parent / "clients" / "press" / "client.key").is_file()
