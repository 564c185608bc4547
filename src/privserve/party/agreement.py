"""Before anything is dealt, all parties make sure that they are about to run the same thing.

Randomness that is dealt for one program and used in another one reveals what it should mask:
a dealer that believes in one ReLU hands alice bits of bob's masks. So every party, the dealer
included, tells every other one what it was given and which code it runs, and compares. A party
that lies to one of two honest others is caught between these.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

from privserve.engines import load_engine
from privserve.engines.sources import sources
from privserve.errors import BadFrame, ClusterError, HalfFrame, OtherVersion, PeerLost
from privserve.party.channel import Channel
from privserve.party.messages import FAILED, WAITING, Over, hear, read_facts

WIRE = 10
"""What parties say to each other, in which order; grows with every change of it."""

OTHER_CODE = ("privserve", "wire", "code")
"""Facts that differ where parties run different code."""


def facts(
    engine: str, description: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a party is about to run: JSON-able, small, public.

    The layout is what this party's code makes of the description, and with it of the options.
    """
    return {
        "privserve": version("privserve"),
        "wire": WIRE,
        "code": sources(),
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
    """Raise ClusterError saying what `peer` is about to do differently than `me`.

    OtherVersion where it runs other code: a session that was loaded waits until that is mended.
    """
    different = [key for key, value in mine.items() if theirs.get(key) != value]
    if not different:
        return
    if any(key in OTHER_CODE for key in different):
        patched = ", of the same number but with other code" if different == ["code"] else ""
        raise OtherVersion(
            f"{peer} runs privserve {theirs.get('privserve')} (wire {theirs.get('wire')}), and "
            f"{me} {mine['privserve']} (wire {mine['wire']}){patched}; install one version at all "
            "parties. Nothing was dealt"
        )
    raise ClusterError(
        f"{peer} was given another {different[0]} than {me}, or runs other code: no randomness is "
        "dealt for a model on which the parties differ. Share the model again, and install one "
        "version at all parties"
    )


class Agreement:
    """What each other party said that it is about to run, and who has not said it yet.

    All are heard before anybody is judged, as long as they come: whoever leaves with something
    unread would make the others lose what it said.
    """

    def __init__(self, me: str, mine: Mapping[str, Any], others: Collection[str]) -> None:
        """mine: see `facts`. others: the names of all other parties."""
        self.me = me
        self.mine = dict(mine)
        self._missing = set(others)
        self._wrong: tuple[Over, float] | None = None
        """The first thing that is wrong, and when it was found."""

    def hears(self, channel: Channel, within: float) -> None:
        """Read what a party says first on the lane of signs of life."""
        self._missing.discard(channel.peer)
        try:
            found = hear(channel, read_facts, within=within)
            if isinstance(found, Over):
                self.object(said(channel.peer, found))
            else:
                compare(self.me, self.mine, channel.peer, found)
        except HalfFrame as error:
            self.object(Over(str(error), WAITING))
        except BadFrame as error:
            self.object(Over(str(error), FAILED))
        except PeerLost:
            self.object(Over(gone(channel.peer), WAITING))
        except OtherVersion as error:  # installing one is no reason to share the model again
            self.object(Over(str(error), WAITING))
        except ClusterError as error:
            self.object(Over(str(error), FAILED))

    def object(self, why: Over) -> None:
        """Note what is wrong; the first thing counts."""
        self._wrong = self._wrong or (why, time.monotonic())

    def verdict(self, patience: float) -> Over | None:
        """Why there will be no round, once all were heard or `patience` seconds were waited."""
        if self._wrong is None:
            return None
        why, since = self._wrong
        return why if not self._missing or time.monotonic() - since > patience else None

    @property
    def objection(self) -> Over | None:
        """What this party found wrong first, if anything."""
        return self._wrong and self._wrong[0]

    @property
    def is_reached(self) -> bool:
        """Whether all are about to run the same."""
        return not self._missing and self._wrong is None


def gone(party: str) -> str:
    """Say that a party left without a word."""
    return f"{party} is gone (its process ended or its host cannot be reached)"


def said(party: str, over: Over) -> Over:
    """Return what another party told, as its words: it may lie of others."""
    words = over.reason
    if not words.startswith(f"{party} "):  # of itself
        words = f"{party} says: {words}"
    return Over(words, over.state, over.by or party)
