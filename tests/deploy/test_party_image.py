"""A party's image: what it installs is enough for a party, and no more than a party needs."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from invited import NAMES, addresses, is_up
from lean_site import lean_environment, make_lean_site, named, needed
from packaging.requirements import Requirement
from serving import ROOT, SMALL, serving, small_model, wait_until

import privserve as ps
from privserve.certificates import write_cluster
from privserve.config import read_config

PARTY = ROOT / "deploy" / "party"
DOCKERFILE = PARTY / "Dockerfile"
HEAVY = ("torch", "torchvision", "crypten", "onnx", "h5py", "pandas", "httpx", "sklearn")


@contextlib.contextmanager
def parties(
    owner: Path, python: list[str], environment: dict[str, str], names: tuple[str, ...] = NAMES
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Parties that a Python of its own runs as the image does, from directories of their own."""
    running = {}
    config = read_config(owner)
    with contextlib.ExitStack() as stack:
        for name in names:
            home = owner.parent / name
            (home / "state").mkdir()
            command = ["-m", "privserve.party", "--name", name, "--config"]
            command += [str(home / "cluster.toml"), "--state-dir", str(home / "state")]
            command += ["--metrics", "0"]
            running[name] = subprocess.Popen([*python, *command], env=environment, cwd=home)
            stack.callback(running[name].wait, 20)
            stack.callback(running[name].send_signal, signal.SIGTERM)
        for name in names:
            endpoint = config.parties[config.rank(name)].endpoint
            one = running[name]
            wait_until(
                lambda at=endpoint, p=one: p.poll() is not None or is_up(at), f"{name} is up"
            )
            assert one.poll() is None, f"{name} ended with {one.returncode}"
        yield running


def answer_of(owner: Path) -> None:
    """Share a model with running parties, and hold their answer against the model's."""
    cluster = ps.Cluster.connect(owner)
    with small_model() as model, ps.Client(owner, timeout=60) as client:
        model.share(cluster)
        with serving(cluster, model):
            answer = client.query_model(SMALL)
    cluster.stop()
    torch.manual_seed(1)  # as `small_model` does
    expected = torch.nn.Linear(4, 2)(torch.tensor(SMALL, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(answer, expected, atol=0.01)


@pytest.mark.slow
def test_parties_with_the_images_packages_alone_answer_a_query(tmp_path: Path, tag: str) -> None:
    site = tmp_path / "site"
    site.mkdir()
    environment = lean_environment(make_lean_site(site))
    owner = write_cluster(tmp_path / "owner", addresses())
    with parties(owner, [sys.executable, "-S"], environment) as running:
        answer_of(owner)
        for name, process in running.items():
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            assert "llvmlite" in mapped, name  # it did compile, or load, its kernels
            assert not re.findall(r"/(libtorch|onnx)[^/\n]*", mapped), name


@pytest.mark.parametrize("module", ["torch", "onnx", "h5py", "httpx", "crypten"])
def test_the_images_packages_hold_nothing_of_the_owners(module: str, tmp_path: Path) -> None:
    """So the test above would fail if a party imported it."""
    ran = subprocess.run(
        [sys.executable, "-S", "-c", f"import numba, uvicorn, {module}"],
        env=lean_environment(make_lean_site(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"No module named '{module}'" in ran.stderr


def test_a_key_can_be_made_and_a_party_asked_for_help_in_the_image(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    write_cluster(tmp_path / "owner", addresses(), make_keys=False)
    for words in (
        ["privserve.launch", "--join", str(tmp_path / "owner" / "bob.invite")],
        ["privserve.party", "--help"],
    ):
        subprocess.run(
            [sys.executable, "-S", "-m", *words],
            env=lean_environment(make_lean_site(site)),
            cwd=tmp_path,
            check=True,
            capture_output=True,
            timeout=60,
        )
    assert (tmp_path / "bob" / "bob.request").exists()


def test_the_list_is_that_of_pyproject_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    assert {one.name: one.specifier for one in named()} == {
        one.name: asked[one.name] for one in named()
    }
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert needed() <= {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    assert not needed() & set(HEAVY)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as pairs of an instruction and its words."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]  # type: ignore[misc]


def test_the_image_runs_as_nobody_special_and_holds_no_key() -> None:
    last = dict(instructions())
    assert last["USER"] == "10001:10001"
    assert last["ENTRYPOINT"].startswith('["python", "-m", "privserve.party"')
    copied = [words for kind, words in instructions() if kind == "COPY"]
    sources = {source for words in copied if "--from" not in words for source in words.split()[:-1]}
    assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[1] == "*"
    assert {source for source in sources if not source.startswith("deploy/party/")} == (
        let_in - {"deploy/party"}
    )


def test_the_health_check_tells_a_living_party(tmp_path: Path, tag: str) -> None:
    owner = write_cluster(
        tmp_path / "owner", [(n, a.replace("localhost", "127.0.0.1")) for n, a in addresses()]
    )
    port = read_config(owner).parties[0].endpoint[1]

    def asked(at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", str(PARTY / "healthy.py"), str(at)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    assert asked(port).returncode == 1
    assert f"no party answers on port {port}" in asked(port).stderr
    command = [sys.executable, "-m", "privserve.party", "--name", "alice", "--config"]
    alice = subprocess.Popen([*command, str(owner.parent / "alice" / "cluster.toml")])
    try:
        wait_until(lambda: is_up(("127.0.0.1", port)), "alice is up")
        assert asked(port).returncode == 0
    finally:
        alice.send_signal(signal.SIGTERM)
        assert alice.wait(20) == 0


@pytest.mark.slow
def test_a_party_installed_by_the_dockerfiles_steps_serves_with_two_others(
    tmp_path: Path, tag: str
) -> None:
    """Needs the package index. The base image and the container engine are all that is left out."""
    place, build = tmp_path / "opt", tmp_path / "build"
    build.mkdir()
    for kind, words in instructions():
        if kind == "FROM" and place.exists():
            break
        if kind == "COPY":
            *sources, target = words.split()
            for source in sources:
                to = build / (target if (ROOT / source).is_dir() else Path(source).name)
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source,
                        to,
                        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
                    )
                else:
                    shutil.copy(ROOT / source, to)
        if kind == "RUN":
            command = shlex.split(words.replace("/opt/privserve", str(place)))
            if command[0] == "pip":
                command = [sys.executable, "-m", *command]
            subprocess.run(command, cwd=build, check=True, timeout=280)
    installed = [path.name for path in place.glob("lib/python*/site-packages/*")]
    assert "privserve" in installed
    assert not {*HEAVY, "pip"} & set(installed)
    owner = write_cluster(tmp_path / "owner", addresses())
    clean = {"PATH": "/usr/bin:/bin", "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    ours = lean_environment(tmp_path / "nothing")
    with (
        parties(owner, [str(place / "bin" / "python")], clean, ("bob",)),
        parties(owner, [sys.executable], ours, ("alice", "carol")),
    ):
        answer_of(owner)
    assert any((tmp_path / "kernels").rglob("*.nbi"))
