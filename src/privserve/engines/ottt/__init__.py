"""The fast engine: one-time truth tables from a dealer; see docs/protocol.md.

Loaded on first use: a party needs no compiler, and the model's owner no kernels.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privserve.engines.ottt.compute import LANES, Compute
    from privserve.engines.ottt.dealer import deal
    from privserve.engines.ottt.limits import PROCESS_BYTES, fingerprint, frame_limits, memory
    from privserve.engines.ottt.owner import OPS, check, prepare, summary

_HOMES = {
    "LANES": "compute",
    "OPS": "owner",
    "PROCESS_BYTES": "limits",
    "Compute": "compute",
    "check": "owner",
    "deal": "dealer",
    "fingerprint": "limits",
    "frame_limits": "limits",
    "memory": "limits",
    "prepare": "owner",
    "summary": "owner",
}

__all__ = [
    "LANES",
    "OPS",
    "PROCESS_BYTES",
    "Compute",
    "check",
    "deal",
    "fingerprint",
    "frame_limits",
    "memory",
    "prepare",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
