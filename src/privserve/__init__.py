"""Serve a trained Keras network so that no server learns input, prediction or weights.

    import privserve as ps
    cluster = ps.Cluster(ps.Worker("localhost:4000"), ps.Worker("localhost:4001"),
                         ps.Worker("localhost:4002"))
    with cluster:
        model = ps.load_model("model.h5")
        model.share(cluster)
        model.serve(num_requests=3)

and, in another process, `ps.Client("cluster.toml").query_model(x)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from privserve.errors import (
    ClusterError,
    ConfigError,
    DeadlinePassed,
    Draining,
    GuessedRangeError,
    InputError,
    LimitReached,
    ModelError,
    NotServing,
    PartyRevoked,
    PrivserveError,
    QueryError,
    RangeError,
    UnknownClient,
)

if TYPE_CHECKING:
    __version__: str
    from privserve.async_client import AsyncClient
    from privserve.client import Client
    from privserve.cluster import Cluster, Worker
    from privserve.keras_hook import KerasHook
    from privserve.model import SecureModel, load_model

__all__ = [
    "AsyncClient",
    "Client",
    "Cluster",
    "ClusterError",
    "ConfigError",
    "DeadlinePassed",
    "Draining",
    "GuessedRangeError",
    "InputError",
    "KerasHook",
    "LimitReached",
    "ModelError",
    "NotServing",
    "PartyRevoked",
    "PrivserveError",
    "QueryError",
    "RangeError",
    "SecureModel",
    "UnknownClient",
    "Worker",
    "load_model",
]

# Loaded on first use: a client need not import torch, a party need not import the client.
_HOMES = {
    "AsyncClient": "privserve.async_client",
    "Client": "privserve.client",
    "Cluster": "privserve.cluster",
    "KerasHook": "privserve.keras_hook",
    "SecureModel": "privserve.model",
    "Worker": "privserve.cluster",
    "load_model": "privserve.model",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # reading it takes longer than all else that is loaded here
        from importlib.metadata import version

        return version("privserve")
    if name not in _HOMES:
        raise AttributeError(f"module 'privserve' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
