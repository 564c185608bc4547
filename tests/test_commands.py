"""The command `privserve`: one name for all programs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from serving import ROOT, SAMPLE_MODEL

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
    if name == "bench":  # these have parsers of their own
        examples = [one for one in examples if "--load" not in one and "--network" not in one]
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


def test_a_model_is_converted_launched_and_asked(tmp_path: Path, tag: str) -> None:
    shutil.copy(SAMPLE_MODEL, tmp_path / "model.h5")
    command = [sys.executable, "-m", "privserve"]

    def run(*words: str) -> str:
        ran = subprocess.run(
            [*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )
        return ran.stdout

    told = json.loads(run("convert", "model.h5", "--json"))
    assert told["wrote"] == "model.onnx"
    assert told["layers"][-1]["runs_on"] == "ottt, crypten, then client"
    launched = subprocess.Popen(
        [*command, "launch", "--parties", "3", "--port", "0", "--num-requests", "3", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launched.stdout is not None
    try:
        said = []
        for line in launched.stdout:
            said.append(json.loads(line))
            if said[-1].get("said", "").startswith("serving"):
                break
        assert {"config": ".privserve/cluster.toml", "shared": ["model"]} in said
        assert run("query", "--count", "2").count("correctly classified") == 2
        (one,) = run("query", "--count", "1", "--json").splitlines()
        assert json.loads(one)["digit"] == json.loads(one)["label"]
        said += [json.loads(line) for line in launched.stdout]
        assert launched.wait(30) == 0
        assert said[-1] == {"said": "the limit of 3 rows is reached"}
    finally:
        launched.kill()
        launched.wait()
        launched.stdout.close()


def test_the_installed_script_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"privserve": "privserve.commands:main"}
