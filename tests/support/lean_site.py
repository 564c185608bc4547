"""The packages of a party's image, and no others, out of those that are installed here."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from serving import ROOT

REQUIREMENTS = ROOT / "deploy" / "party" / "requirements.txt"


def named() -> list[Requirement]:
    """What the image's list asks for."""
    lines = REQUIREMENTS.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed() -> set[str]:
    """The names of all distributions that pip would install for the list."""
    found: set[str] = set()
    todo = named()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker is not None and not wanted.marker.evaluate()):
            continue
        found.add(name)
        requires = importlib.metadata.distribution(name).requires or []
        todo += [one for one in map(Requirement, requires) if "extra" not in str(one.marker)]
    return found


def make_lean_site(directory: Path) -> Path:
    """Fill `directory` with links to those distributions' files: as the image has them."""
    for name in needed():
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if ".." not in file.parts}:
            there = Path(str(distribution.locate_file(top)))
            link = directory / top
            if there.exists() and top != "__pycache__" and not link.exists():
                link.symlink_to(there)
    # Of privserve itself the name and version alone: it is read from this source tree.
    metadata = directory / "privserve.dist-info"
    metadata.mkdir(exist_ok=True)
    version = importlib.metadata.version("privserve")
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: privserve\nVersion: {version}\n"
    )
    return directory


def lean_environment(site: Path) -> dict[str, str]:
    """The environment for `python -S`, which then sees `site` and this source tree only."""
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT, site)))}
