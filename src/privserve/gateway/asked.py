"""One inference request, whichever front it came through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from privserve.errors import InputError
from privserve.gateway.tensors import Numbers

MAX_TIMEOUT = 3600.0


@dataclass
class Inference:
    """What an application asks."""

    inputs: dict[str, Numbers]
    outputs: list[str] = field(default_factory=list)
    """Which are wanted, in this order; empty: all of them."""
    id: str = ""
    """Echoed; empty where none was given."""
    logits: bool = False
    """Leave the model's final activation away."""
    timeout: float | None = None
    """Seconds in which an answer is of use, where the application says so."""


def read_parameters(
    given: Mapping[str, Any], also: Iterable[str] = ()
) -> tuple[bool, float | None]:
    """Return a request's parameters: (logits, timeout in seconds or None).

    given: by name; `also` names those that the front reads itself. Raises InputError for one that
    is not known: it may ask for something that the answer would not keep.
    """
    refuse_unknown(given, {"logits", "timeout", *also}, "the request")
    logits, timeout = given.get("logits", False), given.get("timeout")
    if type(logits) is not bool:
        raise InputError("the parameter 'logits' is true or false")
    if timeout is None:
        return logits, None
    if type(timeout) is not int or not 0 < timeout <= MAX_TIMEOUT * 1e6:
        raise InputError(
            f"the parameter 'timeout' is a number of microseconds, up to {MAX_TIMEOUT * 1e6:.0f}"
        )
    return logits, timeout / 1e6


def refuse_unknown(given: Mapping[str, Any], known: set[str], whose: str) -> None:
    """Raise InputError where a parameter is given that is not known."""
    if unknown := set(given) - known:
        listed = ", ".join(sorted(known)) or "none"
        raise InputError(
            f"the parameter {min(unknown)!r} of {whose} is not known here (known: {listed}); "
            "leave it away"
        )
