"""Completion: bash itself is asked what it would offer."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from privserve.commands import COMMANDS
from privserve.completion import all_completed, main, text_for


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "privserve.bash"
    path.write_text(text_for("bash"))
    return path


def offered(script: Path, typed: str, home: Path) -> set[str]:
    """What bash offers after `typed`; what follows its last space is being typed."""
    words = [*shlex.split(typed), ""] if typed.endswith(" ") else shlex.split(typed)
    code = f"""
        source {script}
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        _privserve
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ran = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, cwd=home, timeout=20, check=True
    )
    assert ran.stderr == ""
    return {line for line in ran.stdout.splitlines() if line}


OFFERED = {
    "all commands": ("privserve ", set(COMMANDS)),
    "a command's beginning": ("privserve la", {"launch"}),
    "an option's beginning": ("privserve launch --par", {"--parties", "--party"}),
    "an option after others": ("privserve launch --parties 3 --mod", {"--model"}),
    "what a command does": ("privserve clients li", {"limit", "list"}),
    "options of that": ("privserve clients add --rows-per-m", {"--rows-per-minute"}),
    "after the former name": ("privserve certify re", {"renew", "revoke"}),
    "the values of an option": ("privserve launch --on-owner-loss ", {"serve", "stop"}),
    "nothing where nobody knows": ("privserve launch --parties ", set()),
    "files after an option": ("privserve launch --calibration mod", {"model.h5", "models"}),
    "files as arguments": ("privserve query model.", {"model.h5"}),
    "shells": ("privserve completion ", {"bash", "zsh", "fish"}),
}


@pytest.mark.parametrize(("typed", "expected"), OFFERED.values(), ids=OFFERED)
def test_bash_offers(script: Path, tmp_path: Path, typed: str, expected: set[str]) -> None:
    (tmp_path / "model.h5").touch()
    (tmp_path / "models").mkdir()
    found = offered(script, typed, tmp_path)
    options = {word for word in found if word.startswith("--")}
    assert (found - options if not typed.split()[-1].startswith("--") else found) == expected


def test_zsh_runs_the_same_by_its_bashcompinit(script: Path) -> None:
    text = text_for("zsh")
    assert text.startswith("autoload -U +X bashcompinit && bashcompinit\n")
    assert text.endswith(script.read_text())


def test_fish_is_told_every_command_and_option() -> None:
    text = text_for("fish")
    for name, parts in all_completed().items():
        assert f"-a {name} -d " in text
        for word in parts[""].words:
            if word.startswith("--"):
                assert re.search(rf"from {name}'? -l {word[2:]}\b", text), (name, word)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], script: Path) -> None:
    assert main(["bash"]) == 0
    assert capsys.readouterr().out == script.read_text()
