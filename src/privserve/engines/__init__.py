"""What an engine is: the code that runs a program on shares.

An engine is a module with the names of `EngineModule`. `crypten` is the reference, `ottt`
the fast one. The model owner calls `prepare`; every compute party builds a `Compute`; the
dealer runs `deal`. Engines know channels (a `Mesh`) and arrays, nothing of HTTP.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from privserve.errors import ConfigError
from privserve.fixedpoint import RingArray
from privserve.mesh import Mesh

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Prepared:
    """A model made ready for an engine by its owner."""

    engine: str
    description: dict[str, Any]
    """JSON-able and public, no weights: a `description.Description`, and what the engine adds."""
    parameters: dict[str, RingArray] = field(repr=False)
    """Secret: the encoded weights, which the owner shares additively."""
    report: tuple[str, ...] = ()
    """For the model owner alone: what errors to expect of the outputs."""
    tensors: Mapping[str, int] = field(default_factory=dict)
    """By name those of the model's tensors that are values of the program, and which; for `check`,
    which looks into them. Empty where an engine has no program."""


@dataclass
class RunStats:
    """What a compute party counted since its session began."""

    exchanges: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_dealt: int = 0
    packs_dealt: int = 0
    """For a row each, ahead of it; 0 where an engine keeps none ahead."""
    exchange_seconds: float = 0.0
    """Spent in exchanges; 0 where an engine does not count them."""
    waiting_seconds: float = 0.0
    """Spent waiting for dealt randomness; 0 where an engine does not count it."""


class Compute(Protocol):
    """One compute party's side of a session."""

    @property
    def stats(self) -> RunStats:
        """What it counted since its session began."""

    def packs(self) -> tuple[int, int] | None:
        """For how many rows dealt randomness is there, and for how many it may be.

        None where an engine keeps none ahead.
        """

    def run(self, inputs: Sequence[RingArray]) -> list[RingArray]:
        """Evaluate the program on shares: int64[B, ...] per input, B alike at all parties.

        Collective over the compute parties. Returns int64[B, ...] shares per output. Raises
        errors.TooManyRows, at all parties alike, where one has no memory for so large a batch;
        anything else that it raises ends the session.
        """

    def close(self) -> None:
        """End the session's threads and forget its shares."""


class EngineModule(Protocol):
    """The names that an engine's module offers."""

    LANES: tuple[str, ...]
    OPS: frozenset[str]
    """The ONNX ops that it has, if their settings fit."""

    def frame_limits(self, description: Mapping[str, Any], **options: Any) -> Mapping[str, int]:
        """Return by lane the bytes of the largest frame that a session of this model may see."""

    def fingerprint(self, description: Mapping[str, Any], **options: Any) -> str:
        """Return a hash of how this code lays out the randomness of a query.

        Parties whose fingerprints differ must not run together.
        """

    PROCESS_BYTES: int
    """What a process takes for the engine itself, once for all sessions; `memory` counts it in."""

    def memory(
        self, description: Mapping[str, Any], parties: int, **options: Any
    ) -> tuple[int, int]:
        """Return about how many bytes the model takes at a compute party, and at the dealer."""

    def summary(self, description: Mapping[str, Any]) -> str:
        """Say what the model consists of and costs, for people."""

    def prepare(self, model: onnx.ModelProto, **options: Any) -> Prepared:
        """Make `model` ready, or raise `errors.ModelError` saying what does not fit."""

    def check(self, model: onnx.ModelProto) -> None:
        """Raise `errors.ModelError` unless it has `model`'s ops with these settings.

        Whether the values of a model fit depends on its input range as well.
        """

    def Compute(  # noqa: N802 - it is a class in every engine
        self,
        description: Mapping[str, Any],
        shares: Mapping[str, RingArray],
        meshes: Mapping[str, Mesh],
        **options: Any,
    ) -> Compute:
        """Set a compute party up; collective with its peers and the dealer."""

    def deal(
        self, description: Mapping[str, Any], meshes: Mapping[str, Mesh], **options: Any
    ) -> None:
        """Deal randomness until the session ends."""


ENGINES = {
    "ottt": "privserve.engines.ottt",
    "crypten": "privserve.engines.crypten.engine",
}


ALONE = frozenset(["crypten"])
"""Engines of which a process holds one session at a time: they keep global state."""


def is_alone(engine: str, model: str) -> str:
    """Say that there is a model of this engine, and that there can be no other one."""
    return (
        f"the {engine} engine keeps global state, so that a party holds one model of it at a time, "
        f"and '{model}' is one; stop that first (python -m privserve.models stop {model}), or "
        "share this one with --engine ottt"
    )


OPTIONS: Mapping[str, tuple[int, int]] = {
    "max_batch": (1, 1024),
    "max_delay_ms": (0, 10_000),
    "pool_queries": (1, 1 << 20),
    "pool_bytes": (1, 1 << 40),
    "ready_packs": (0, 1 << 20),
    "piece_bytes": (1, 1 << 40),
}
"""What a model's owner may choose for a session, and the least and the largest number that each
takes: the rows that run together, for how long a batch that is not full waits for more, what a pool
of packs holds, how many packs have to be there before the model counts as loaded, how finely packs
are cut. An engine reads what concerns it."""


def read_options(given: object) -> dict[str, int]:
    """Return a session's options, checked; raises ConfigError naming the one that cannot be."""
    if not isinstance(given, dict):
        raise ConfigError("'options' must be an object")
    for name, value in given.items():
        if name not in OPTIONS:
            raise ConfigError(f"there is no option {name[:80]!r}; there are: {', '.join(OPTIONS)}")
        low, high = OPTIONS[name]
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"the option '{name}' must be a whole number from {low} to {high}")
    return given


def load_engine(name: str) -> EngineModule:
    """Return the engine called `name`, imported on first use: CrypTen takes seconds."""
    try:
        path = ENGINES[name]
    except KeyError:
        known = ", ".join(sorted(ENGINES))
        raise ConfigError(f"there is no engine '{name}'; choose one of: {known}") from None
    return cast(EngineModule, importlib.import_module(path))
