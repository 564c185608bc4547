"""The command `privserve`: one name for all programs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib

import pytest
from serving import ROOT

from privserve.commands import COMMANDS, main, usage


def privserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "privserve", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_help_lists_every_command_with_a_line() -> None:
    ran = privserve("--help")
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    for name, (_, about) in COMMANDS.items():
        assert any(line.split() == [name, *about.split()] for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_program(name: str) -> None:
    assert importlib.util.find_spec(COMMANDS[name][0]) is not None


@pytest.mark.parametrize("name", ["batch", "clients"])
def test_a_command_gets_the_rest_of_the_line(name: str) -> None:
    ran = privserve(name, "--help")
    assert ran.returncode == 0
    assert f"usage: python -m privserve.{name}" in ran.stdout
    ran = privserve(name, "--nonsense")
    assert ran.returncode == 2
    assert "--nonsense" in ran.stderr or "required" in ran.stderr


@pytest.mark.parametrize(("given", "words"), [(["nonsense"], "'nonsense'"), ([], "no command")])
def test_no_command_is_told_with_those_that_there_are(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    said = capsys.readouterr().err
    assert words in said
    assert usage() in said


def test_the_installed_script_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"privserve": "privserve.commands:main"}
