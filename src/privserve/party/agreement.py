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
from privserve.errors import BadFrame, ClusterError, PeerLost, PrivserveError
from privserve.party.channel import Channel
from privserve.party.messages import FAILED, WAITING, Over, hear, message_of, read_facts
from privserve.party.watching import tell

WIRE = 6
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


def agree(
    me: str, mine: Mapping[str, Any], channels: Mapping[int, Channel], patience: float
) -> None:
    """Compare with every other party what is about to run, on the lane of signs of life.

    mine: see `facts`. patience: seconds for each of the others. Raises PeerLost where one is gone,
    and ClusterError for what the parties do not agree on.
    """
    for channel in channels.values():
        channel.set_timeout(patience)
    if (lost := tell(channels, dict(mine))) is not None:
        raise PeerLost(lost)
    try:
        for peer, theirs in _heard(channels, patience).items():
            compare(me, mine, peer, theirs)
    except PrivserveError as error:
        passes = isinstance(error, PeerLost) and not isinstance(error, BadFrame)
        tell(channels, message_of(Over(str(error), WAITING if passes else FAILED)))
        raise


def _heard(channels: Mapping[int, Channel], patience: float) -> dict[str, Mapping[str, str | int]]:
    """What every other party is about to run, by its name.

    All are heard before anybody is judged: whoever leaves with something unread would make
    the others lose what it said.
    """
    heard: dict[str, Mapping[str, str | int]] = {}
    wrong: PrivserveError | None = None
    for channel in channels.values():
        try:
            found = hear(channel, read_facts, within=patience)
        except PeerLost as error:
            wrong = wrong or error
            continue
        if isinstance(found, Over):
            kind = PeerLost if found.state == WAITING else ClusterError
            wrong = wrong or kind(found.reason)
        else:
            heard[channel.peer] = found
    if wrong is not None:
        raise wrong
    return heard
