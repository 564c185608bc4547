"""The systemd unit: accepted by systemd itself, with what it grants bounded."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ROOT

from privserve.party import __main__ as party

UNIT = ROOT / "deploy" / "systemd" / "privserve-party@.service"
ANALYZE = shutil.which("systemd-analyze")
MOST_EXPOSED = 20
"""Tenths, of what systemd calls the exposure level: 0 is none, 100 all."""
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed here")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with the Python that is here, since systemd looks whether it is there."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/privserve/bin/python", sys.executable))
    return copy


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(ANALYZE), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@needs_systemd
def test_systemd_finds_nothing_to_complain_of(unit: Path) -> None:
    ran = analyze("verify", "--man=no", str(unit))
    assert (ran.returncode, ran.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in analyze("verify", "--man=no", str(unit)).stderr


@needs_systemd
def test_what_it_grants_is_bounded(unit: Path) -> None:
    words = ("security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit))
    ran = analyze(*words)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    unit.write_text(unit.read_text().replace("CapabilityBoundingSet=\n", ""))
    assert analyze(*words).returncode != 0


def test_it_starts_a_party_and_keeps_shares_off_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = UNIT.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = command.replace("%i", "bob").replace("${STATE_DIRECTORY}", str(tmp_path)).split()
    assert words[:3] == ["/opt/privserve/bin/python", "-m", "privserve.party"]
    started = []
    monkeypatch.setattr(party, "read_config", lambda path: party_config(path, tmp_path))
    monkeypatch.setattr(party, "run_party", lambda *given: started.append(given))
    assert party.main(words[3:]) == 0
    ((config, name, *_),) = started
    assert (str(config.path), name, config.state) == (
        "/etc/privserve/bob/cluster.toml",
        "bob",
        tmp_path,
    )
    for line in ("LimitCORE=0", "MemorySwapMax=0", "ProtectSystem=strict", "NoNewPrivileges=yes"):
        assert f"\n{line}\n" in text
    assert "\nMemoryDenyWriteExecute" not in text  # kernels could not be compiled


def party_config(path: Path, scratch: Path) -> object:
    """A cluster's configuration that says it was read from `path`."""
    from dataclasses import replace

    from serving import make_config

    return replace(make_config(scratch / "c", ["a:1", "b:1", "c:1"]), path=path)
