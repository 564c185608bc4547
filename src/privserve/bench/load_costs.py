"""What queries of the load benchmark cost besides CPU: bytes by link, exchanges.

Parties count both by themselves, as their owner is told; here are the differences of a point, per
query, its warm-up included. Of several cells the first one's are read: a query costs the same in
each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from privserve.query_frames import ANSWER_HEAD, HEADER, QUERY_HEAD

if TYPE_CHECKING:
    from privserve.cluster import Cluster
    from privserve.model import SecureModel


@dataclass(frozen=True)
class Spent:
    """What a model's queries have cost since it was shared."""

    queries: int = 0
    exchanges: int = 0
    packs: int = 0
    """Dealt so far, some of them ahead of the queries; 0 with an engine that has none."""
    sent: Mapping[str, int] = field(default_factory=dict)
    """Bytes by link, such as "alice to bob"; a compute party's to all others together."""

    def since(self, before: Spent) -> dict[str, Any]:
        """Return what was spent per query since; empty where nothing was asked."""
        queries = self.queries - before.queries
        if queries <= 0:
            return {}
        return {
            "bytes_per_query": {
                link: (count - before.sent.get(link, 0)) / queries
                for link, count in self.sent.items()
            },
            "exchanges_per_query": (self.exchanges - before.exchanges) / queries,
        }


def spent(cluster: Cluster) -> Spent:
    """Ask the compute parties what they have counted; raises ClusterError, QueryError."""
    config = cluster.config
    sent: dict[str, int] = {}
    queries = exchanges = packs = 0
    for party in config.compute:
        status = cluster.call(party, "GET", "/privserve/status").json()
        cost = status.get("cost") or {}
        others = " and ".join(p.name for p in config.compute if p is not party)
        sent[f"{party.name} to {others}"] = int(cost.get("bytes_online", 0))
        sent[f"{config.dealer.name} to {party.name}"] = int(cost.get("bytes_dealt", 0))
        if party is config.compute[0]:
            queries, exchanges = int(cost.get("queries", 0)), int(cost.get("exchanges", 0))
            packs = int(cost.get("packs_dealt", 0))
    return Spent(queries, exchanges, packs, sent)


def lane_bytes(model: SecureModel) -> dict[str, int]:
    """Return the bytes of one row's query to, and answer from, each compute party, before TLS."""

    def words(tensors: Any) -> int:
        return 8 * sum(math.prod(d or 1 for d in tensor.shape[1:]) for tensor in tensors)

    asked = HEADER.size + QUERY_HEAD.size + words(model.converted.inputs)
    answered = HEADER.size + ANSWER_HEAD.size + words(model.converted.outputs)
    return {"client to party": asked, "party to client": answered}
