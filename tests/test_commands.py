"""The command `privserve`: one name for all programs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from serving import ROOT

import privserve as ps
from privserve import usage as usage_of
from privserve.commands import COMMANDS, main, options_of, usage


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
    for name, one in COMMANDS.items():
        assert any(line.split() == [name, *one.about.split()] for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_program(name: str) -> None:
    assert importlib.util.find_spec(COMMANDS[name].program) is not None


@pytest.mark.parametrize("name", ["batch", "clients"])
def test_a_command_gets_the_rest_of_the_line(name: str) -> None:
    ran = privserve(name, "--help")
    assert ran.returncode == 0
    assert f"usage: privserve {name}" in ran.stdout
    ran = privserve(name, "--nonsense")
    assert ran.returncode == 2
    assert "--nonsense" in ran.stderr or "required" in ran.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_the_command_understands(name: str) -> None:
    parser = options_of(name)
    text = parser.format_help()
    examples = re.findall(rf"^  (privserve {name}.*?)(?:  .*)?$", text, re.MULTILINE)
    assert examples
    if name == "bench":  # --load has a parser of its own
        examples = [one for one in examples if "--load" not in one]
    for example in examples:
        words = usage_of.with_values(shlex.split(example.partition(" > ")[0])[2:], "--pixels")
        parser.parse_args(words)  # ends the test where it does not


HEAVY = ("numpy", "torch", "onnx", "numba", "httpx", "rich", "PIL", "converters", "uvicorn")


def test_no_help_loads_what_only_a_program_needs() -> None:
    code = f"""
import contextlib, io, sys
from privserve.commands import COMMANDS, main
for name in ["", *sorted(COMMANDS, key="party".__eq__)]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([name, "--help"] if name else ["--help"])
    if name == "party":  # its timeouts' defaults are where a cluster's file is read
        continue
    loaded = [m for m in {HEAVY!r} if m in sys.modules]
    assert not loaded, (name, loaded)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


def test_the_former_name_of_certs_still_works() -> None:
    ran = privserve("certify", "--config", "nowhere.toml", "list")
    assert ran.returncode == 2
    assert "there is no nowhere.toml" in ran.stderr
    assert privserve("certify", "--help").stdout == privserve("certs", "--help").stdout


def test_the_version_is_the_installed_one() -> None:
    assert privserve("--version").stdout == f"privserve {importlib.metadata.version('privserve')}\n"


@pytest.mark.parametrize("name", [name for name, one in COMMANDS.items() if one.linux])
def test_what_needs_linux_says_so_elsewhere_before_it_loads_anything(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main([name]) == 2
    said = capsys.readouterr().err
    assert f"privserve {name} needs Linux, and this is macOS" in said
    assert "WSL 2" in said


def test_a_cluster_is_not_half_started_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ps.Cluster(*(ps.Worker("localhost:0") for _ in range(3)))
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ps.ConfigError, match="needs Linux, and this is Windows"):
        cluster.start()


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
