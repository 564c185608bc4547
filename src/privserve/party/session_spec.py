"""What a model's owner hands to one party."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from privserve.credentials import Limits
from privserve.description import Description
from privserve.fixedpoint import RingArray


@dataclass(frozen=True)
class SessionSpec:
    """A session as its owner begins it, at one party."""

    id: str
    model: str
    engine: str
    description: Description
    shares: Mapping[str, RingArray] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)
    everybody: Limits | None = None
    """What those may ask, together, who are no clients; None: nothing."""
