"""What the gateway says of itself and of the models behind it, as the protocol has it."""

from __future__ import annotations

from typing import Any

from privserve import __version__
from privserve.gateway.tensors import ANSWERED
from privserve.served_model import ServedModel

NAME = "privserve-gateway"
PLATFORM = "privserve"
VERSION = "1"
"""Of every model: the one that is served. It stays when the model is shared anew, which an
application need not know of; a party's versions are sessions."""
EXTENSIONS = ("binary_tensor_data", "model_repository")


def server_facts() -> dict[str, Any]:
    """Return the gateway's name, version and extensions."""
    return {"name": NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def index_entry(name: str, *, is_served: bool) -> dict[str, str]:
    """Return a model's entry in the repository's index."""
    state, reason = ("READY", "") if is_served else ("UNAVAILABLE", "its owner does not serve it")
    return {"name": name, "version": VERSION, "state": state, "reason": reason}


def model_facts(model: ServedModel) -> dict[str, Any]:
    """Return the model's name, versions, platform and tensors; -1 is the batch axis.

    `parameters` is beyond the protocol: what the inputs' values have to stay within, and how many
    rows the cluster takes at a time.
    """
    described = model.description
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_tensor(t["name"], t["shape"]) for t in described["inputs"]],
        "outputs": [_tensor(t["name"], t["shape"]) for t in described["outputs"]],
        "parameters": {
            "input_range": list(described["input_range"]),
            "rows_per_query": model.max_rows,
        },
    }


def _tensor(name: str, shape: Any) -> dict[str, Any]:
    return {"name": name, "datatype": ANSWERED, "shape": [-1, *shape]}
