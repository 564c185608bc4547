"""A party's place in its cluster."""

from __future__ import annotations

from dataclasses import dataclass

from privserve.config import ClusterConfig, PartyConfig, Timeouts
from privserve.party.accounts import Accounts
from privserve.party.keep import Keep
from privserve.party.lanes import Listener
from privserve.party.wheel import Wheel


@dataclass(frozen=True)
class Seat:
    """What all sessions of a party have in common."""

    config: ClusterConfig
    me: PartyConfig
    listener: Listener
    timeouts: Timeouts
    accounts: Accounts | None = None
    wheel: Wheel | None = None
    """Of what reads the party's query lanes; None: each session has a poller of its own."""
    keep: Keep | None = None
    """Where the party keeps its state; None: it has none that outlives its process."""

    @property
    def rank(self) -> int:
        """0..n-1 for compute parties, n for the dealer."""
        return self.config.rank(self.me.name)
