"""The wheel and the sdist: checked as an index would, and used where nothing else of ours is.

privserve and the converters come from the wheel alone, in an environment of its own. Everything
that they need (torch, numba, ...) is seen in the environment that runs this test, through a .pth
file, since installing it takes minutes and gigabytes; so this proves that the files are whole and
the commands work, and tests/test_imports.py and pip's own resolution what has to be installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image
from serving import ROOT, wait_until

pytestmark = pytest.mark.slow

BUILD = "from setuptools import build_meta as b; b.build_sdist({to!r}); b.build_wheel({to!r})"


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240, **options
    )  # type: ignore[call-overload]
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    return ran


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel, made of what git knows here, and the sdist."""
    home = tmp_path_factory.mktemp("dist")
    source = home / "source"
    listed = run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-c", BUILD.format(to=str(home)), cwd=source)
    shutil.rmtree(source)
    return home


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin of an environment with the wheel, where all else is this one's."""
    home = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    bin_ = home / "bin"
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", bin_ / "python",
        "install", "--quiet", "--no-deps", "--no-index", wheel)  # fmt: skip
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    # After the wheel's own, so that an editable install here is not what is found.
    lines = [path for path in sys.path if path.endswith("site-packages")]
    (site / "site-packages" / "zz-of-the-test.pth").write_text("\n".join(lines) + "\n")
    return bin_


def variables() -> dict[str, str]:
    """The environment's variables, but for those that would show this checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def test_both_are_as_an_index_wants_them(built: Path, wheel: Path) -> None:
    for tool in ("twine", "check_wheel_contents"):
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"{tool} is not installed here: pip install -e '.[dist]'")
    files = sorted(one for one in built.iterdir() if one.is_file())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    config = ROOT / "pyproject.toml"
    run(sys.executable, "-m", "check_wheel_contents", "--config", config, wheel)


def test_a_wheel_of_the_sdist_is_the_same(built: Path, wheel: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-c", BUILD.format(to=str(tmp_path)), cwd=source)
    (again,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_its_metadata_name_what_is_needed_and_where_it_runs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    needed = {Requirement(text).name for text in metadata.get_all("Requires-Dist", [])}
    assert {"torch", "numba", "pillow", "rich", "httpx"} <= needed
    classifiers = metadata.get_all("Classifier", [])
    assert "Operating System :: POSIX :: Linux" in classifiers
    for minor in (11, 12, 13, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers


def test_its_samples_are_those_of_the_examples() -> None:
    for name in ("digits.npz", "digits-model.h5", "digits-LICENSE"):
        copy = ROOT / "src" / "privserve" / "samples" / name
        assert copy.read_bytes() == (ROOT / "examples" / name).read_bytes(), name


def test_what_is_installed_converts_checks_launches_and_answers(
    environment: Path, tmp_path: Path, tag: str
) -> None:
    command, clean = environment / "privserve", variables()
    where = "import converters, privserve; print(privserve.__file__, converters.__file__)"
    found = run(environment / "python", "-c", where, cwd=tmp_path, env=clean).stdout.split()
    assert all(Path(one).is_relative_to(environment.parent) for one in found), found
    version = importlib.metadata.version("privserve")
    assert run(command, "--version", env=clean).stdout == f"privserve {version}\n"

    shutil.copy(ROOT / "examples" / "digits-model.h5", tmp_path / "model.h5")
    said = run(command, "convert", "model.h5", cwd=tmp_path, env=clean).stdout
    assert "wrote model.onnx" in said
    said = run(command, "check", "model.onnx", "--rows", "2", cwd=tmp_path, env=clean).stdout
    assert "serve it with:  privserve launch --parties 3 --model model.onnx" in said

    with (tmp_path / "launched").open("w") as log:
        launched = subprocess.Popen(
            [command, "launch", "--parties", "3", "--port", "0", "--num-requests", "3"],
            cwd=tmp_path, stdout=log, stderr=log, env=clean,
        )  # fmt: skip
    try:
        wait_until(
            lambda: (
                launched.poll() is not None
                or "serving 3 rows" in (tmp_path / "launched").read_text()
            ),
            "it serves",
            200,
        )
        assert launched.poll() is None, (tmp_path / "launched").read_text()
        said = run(command, "query", "--count", "2", cwd=tmp_path, env=clean).stdout
        assert said.count("was correctly classified as") == 2
        page = np.full((90, 120), 255, np.uint8)
        page[15:70, 60:66] = 0
        Image.fromarray(page).save(tmp_path / "one.jpg")
        asked = run(command, "query", "one.jpg", cwd=tmp_path, env=clean)
        assert "one.jpg looks like a 1" in asked.stdout
        assert launched.wait(30) == 0
    finally:
        launched.kill()
        launched.wait()
