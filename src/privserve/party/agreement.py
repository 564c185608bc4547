"""Before anything is dealt, all parties make sure that they are about to run the same thing.

Randomness that is dealt for one program and used in another one reveals what it should mask:
a dealer that believes in one ReLU hands alice bits of bob's masks. So every party, the dealer
included, tells every other one what it was given and which code it runs, and compares. A party
that lies to one of two honest others is caught between these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from privserve.engines import load_engine
from privserve.errors import ClusterError

WIRE = 5
"""What parties say to each other, in which order; grows with every change of it."""

OTHER_CODE = ("privserve", "wire")
"""Facts that differ where parties run different code."""


def facts(
    engine: str, description: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a party is about to run: JSON-able, small, public.

    The layout is what this party's code makes of the description, so code that differs
    without saying so is noticed as well.
    """
    return {
        "privserve": version("privserve"),
        "wire": WIRE,
        "engine": engine,
        "program": digest(description),
        "options": digest(options),
        "layout": load_engine(engine).fingerprint(description, **options),
    }


def digest(value: object) -> str:
    """SHA-256 of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def compare(me: str, mine: Mapping[str, Any], peer: str, theirs: Mapping[str, Any]) -> None:
    """Raise ClusterError saying what `peer` is about to do differently than `me`."""
    different = [key for key, value in mine.items() if theirs.get(key) != value]
    if not different:
        return
    if any(key in OTHER_CODE for key in different):
        raise ClusterError(
            f"{peer} runs privserve {theirs.get('privserve')} (wire {theirs.get('wire')}), and "
            f"{me} {mine['privserve']} (wire {mine['wire']}); install one version at all parties. "
            "Nothing was dealt"
        )
    raise ClusterError(
        f"{peer} was given another {different[0]} than {me}, or runs other code: no randomness is "
        "dealt for a model on which the parties differ. Share the model again, and install one "
        "version at all parties"
    )
