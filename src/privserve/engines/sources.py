"""Which code this is: parties that take words of a pack in another order compute nonsense.

A version's number and the size of each op's words tell two releases apart, and not two builds of
one that a developer or a patch made.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

BESIDES = (
    "activations",
    "fields",
    "fixedpoint",
    "functions",
    "geometry",
    "lift",
    "local",
    "mesh",
    "prg",
    "program",
    "sharing",
    "splines",
    "validation",
)
"""Modules of privserve's that a party's engine runs, beside the engines' own."""


@cache
def sources() -> str:
    """SHA-256 of the Python files that engines consist of, in hex: as this process found them."""
    here = Path(__file__).parent
    files = [*here.rglob("*.py"), *(here.parent / f"{name}.py" for name in BESIDES)]
    told = hashlib.sha256()
    for path in sorted(files):
        told.update(f"{path.relative_to(here.parent).as_posix()}\n".encode())
        # However Git or an archive writes the end of a line.
        told.update(hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).digest())
    return told.hexdigest()
