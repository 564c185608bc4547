"""Every error that privserve raises on purpose, and what stands for it between processes.

Each message names the cause and what the reader can do about it, and carries no share,
seed or plaintext. An error that a party answers with travels as its `code` and its HTTP
`status`, which its class owns; `BY_CODE` is the way back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class PrivserveError(Exception):
    """Base of all errors that privserve raises on purpose."""

    code = "refused"
    """What a party's answer calls the error."""
    status: int = 400
    """The HTTP status of that answer."""


class ConfigError(PrivserveError):
    """A cluster description, option or address cannot be used as given."""


class ModelError(PrivserveError):
    """A model cannot be served: an op, a range or a shape does not fit the engine."""


class UnknownOpError(ModelError):
    """An engine has no op that a model needs."""

    def __init__(self, engine: str, op: str, node: str) -> None:
        super().__init__(f"the engine '{engine}' has no op '{op}' (node '{node}')")
        self.op = op


class InputError(PrivserveError, ValueError):
    """A query's input has the wrong shape or dtype, or holds values that do not fit."""

    code = "bad_input"


class RangeError(InputError):
    """A value is NaN, infinite or outside the range that the fixed point can hold."""


class GuessedRangeError(RangeError):
    """A value inside the model left a range that was guessed from samples: there is no answer.

    `layers` says in which layers, by row of the query; other rows have no entry.
    """

    def __init__(self, message: str, layers: Mapping[int, Sequence[str]]) -> None:
        super().__init__(message)
        self.layers = {row: tuple(names) for row, names in layers.items()}


class ClusterError(PrivserveError):
    """A party could not be started or reached, or left during a query."""


class ModelReplaced(ClusterError):
    """Another model has the name of the one that was being served, and takes its queries."""


class NoAnswer(ClusterError):
    """A party did not answer in time."""


class PeerLost(ClusterError):
    """The channel to another party broke; the session and its randomness are void."""


class PartyRevoked(ClusterError):
    """A party shows a certificate that the cluster's authority has revoked."""


class OtherVersion(ClusterError):
    """Another party runs other code; that passes once one version is installed at all parties."""


class BadFrame(PeerLost):
    """Another party sent what is none of the protocol; the session and its randomness are void."""


class HalfFrame(BadFrame):
    """Another party began a frame and did not end it: it is stopped, or the network is cut."""


class CannotCount(ClusterError):
    """A party cannot write down what it answers, so it answers nothing until it can."""


class QueryError(PrivserveError):
    """A query was refused or failed; `status` is the HTTP status of the refusal."""

    status = 500

    def __init__(self, message: str, status: int | None = None) -> None:
        """status: where it is not the one of the class."""
        super().__init__(message)
        if status is not None:
            self.status = status


class OwnerOnly(QueryError):
    """A call that only the model owner may make, and did not sign for this party and moment."""

    code = "owner_only"
    status = 401


class UnknownClient(QueryError):
    """A query of a client that the model owner has not let in, or not any more."""

    code = "unknown_client"
    status = 401


class LimitReached(QueryError):
    """The cluster has answered its `num_requests` and serves no more for now."""

    code = "limit_reached"
    status = 429


class TooManyRows(QueryError):
    """A party has no memory for this many rows at a time; the session goes on."""

    status = 413


class DeadlinePassed(QueryError):
    """The query waited for longer than its client wanted to; it was not answered or counted."""

    code = "deadline_passed"
    status = 504


class StaleSession(QueryError):
    """The query was encoded for a session that is over; its client has to read the model anew."""

    code = "stale_session"
    status = 409


class NotServing(QueryError):
    """No model is shared, or the model is shared but `serve` is not running."""

    code = "not_serving"
    status = 503


class Draining(NotServing):
    """A party is being stopped: it answers what it has, and takes no more queries."""

    code = "draining"


def several_models(names: Sequence[str]) -> str:
    """Say that a client has to name one of these models."""
    listed = ", ".join(f"'{name}'" for name in names)
    return (
        f"several models are shared: {listed}; say which is meant: "
        f'Client(..., model="{names[0]}"), or --model {names[0]}'
    )


BY_CODE: dict[str, type[QueryError]] = {
    kind.code: kind
    for kind in (
        QueryError,
        OwnerOnly,
        UnknownClient,
        LimitReached,
        NotServing,
        Draining,
        DeadlinePassed,
        StaleSession,
    )
}
"""What a code of an answer stands for, InputError's apart; QueryError where it is not known."""
