"""The fast engine: one-time truth tables from a dealer; see docs/protocol.md."""

from privserve.engines.ottt.dealer import LANE, deal
from privserve.engines.ottt.party import ONLINE, Compute

LANES: tuple[str, ...] = (ONLINE, LANE)

__all__ = ["LANES", "Compute", "deal"]
