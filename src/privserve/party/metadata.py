"""What a party tells everybody of itself and of its models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from privserve import __version__, oip
from privserve.description import Description, TensorDescription
from privserve.party.models import Place
from privserve.party.session import Session
from privserve.party.session_spec import SessionSpec

if TYPE_CHECKING:
    from privserve.party.party import Party

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
"""Of the Open Inference Protocol, in Triton's words."""
MAX_ROWS = 1024
MAX_QUERY_BYTES = 64 << 20
"""Of one query's share; a model's rows per query follow from it."""


def party_facts(party: Party) -> dict[str, Any]:
    """Return which party this is, its role, and its models; JSON-able.

    The leader, and no other one, says which of these are being served.
    """
    served = party.served()
    return {
        "name": "privserve",
        "version": __version__,
        "extensions": list(EXTENSIONS),
        "party": party.me.name,
        "boot": party.owner.boot,
        "calls_above": party.owner.above,
        "role": party.role,
        "cell": party.config.cell,
        "compute_parties": [p.name for p in party.config.compute],
        "models": [session.spec.model for session in party.models.loaded()],
        **({} if served is None else {"serving": served}),
    }


def model_facts(spec: SessionSpec) -> dict[str, Any]:
    """Return the model: shapes in the Keras layout, fixed-point formats, activations; JSON-able."""
    description = spec.description
    return {
        "name": spec.model,
        "versions": [spec.id],
        "platform": f"privserve_{spec.engine}",
        "inputs": [_tensor_facts(t) for t in description["inputs"]],
        "outputs": [
            {
                **_tensor_facts(t),
                "parameters": {"activation": t["activation"], "rounded_bits": t["rounded_bits"]},
            }
            for t in description["outputs"]
        ],
        "parameters": {
            "fraction_bits": description["fraction_bits"],
            "output_fraction_bits": description["output_fraction_bits"],
            "input_range": description["input_range"],
            "max_rows": max_rows(description),
            "guards": description["guards"],
        },
    }


def model_config(spec: SessionSpec) -> dict[str, Any]:
    """Return the model in the words of Triton's model configuration; JSON-able."""
    description = spec.description
    return {
        "name": spec.model,
        "platform": f"privserve_{spec.engine}",
        "backend": "privserve",
        "max_batch_size": max_rows(description),
        "input": [_tensor_config(t) for t in description["inputs"]],
        "output": [_tensor_config(t) for t in description["outputs"]],
    }


def _tensor_config(tensor: TensorDescription) -> dict[str, Any]:
    """What Triton's configuration says of a tensor: its axes without the batch's."""
    return {"name": tensor["name"], "data_type": f"TYPE_{oip.DATATYPE}", "dims": tensor["shape"]}


STATES = {"loaded": "READY", "loading": "LOADING"}
"""Triton's words for a session's state; UNAVAILABLE for all others."""


ON_ITS_WAY = {
    Place.COMING: ("LOADING", "it is set up beside the one that has its name, which is served yet"),
    Place.DRAINING: ("UNLOADING", "another one has its name; it answers the queries that it has"),
}
"""The state and the reason of a session that is set up and does not have its model's name."""


def index_entry(place: Place, session: Session) -> dict[str, str]:
    """Return a session's entry in the repository's index; JSON-able."""
    state, reason = STATES.get(session.state, "UNAVAILABLE"), session.reason
    if session.state == "loaded":
        state, reason = ON_ITS_WAY.get(place, (state, reason))
    return {
        "name": session.spec.model,
        "version": session.spec.id,
        "state": state,
        "reason": reason,
    }


def _tensor_facts(tensor: TensorDescription) -> dict[str, Any]:
    return {"name": tensor["name"], "datatype": oip.DATATYPE, "shape": [-1, *tensor["shape"]]}


def max_rows(description: Description) -> int:
    """Return how many rows a query may hold, so that its share is of a size that can be held."""
    each: int = 8 * sum(math.prod(tensor["shape"]) for tensor in description["inputs"])
    return max(1, min(MAX_ROWS, MAX_QUERY_BYTES // each))
