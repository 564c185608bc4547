"""Whether the hosts of a cluster have the memory for one more model, before it is sent to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from privserve.cell import Cell
from privserve.config import PartyConfig
from privserve.engines import Prepared, load_engine
from privserve.errors import ClusterError
from privserve.shared_models import ALIVE

GB = 1e9


def check_memory(
    cells: Sequence[Cell], prepared: Prepared, options: Mapping[str, Any], name: str
) -> None:
    """Raise ClusterError where parties on one host need more memory than it has.

    What models that are shared already have not taken yet counts as taken. name: the model's; one
    that has it stays until this one can answer, so that both need memory for a while.
    """
    hosts: dict[str, list[tuple[Cell, PartyConfig]]] = {}
    for cell in cells:
        for party in cell.config.parties:
            hosts.setdefault(party.endpoint[0], []).append((cell, party))
    needs = _needs(cells[0], prepared, options)
    for host, parties in hosts.items():
        said = {
            f"{party.name}{_where(cell)}": cell.call(party, "GET", "/privserve/status").json()
            for cell, party in parties
        }
        free = next(iter(said.values())).get("memory_available")
        if free is None:
            continue
        promised = sum(status.get("memory_promised", 0) for status in said.values())
        needed = sum(
            _beside(needs[party.name], prepared.engine, status)
            for (_, party), status in zip(parties, said.values(), strict=True)
        )
        if needed + promised > free:
            freed = sum(_held(status, name) for status in said.values())
            names = " and ".join(said)
            raise ClusterError(_too_much(names, host, needed, free, promised, freed, name))


def _where(cell: Cell) -> str:
    return f" of cell {cell.number}" if cell.who else ""


def _needs(cell: Cell, prepared: Prepared, options: Mapping[str, Any]) -> Mapping[str, int]:
    """By party: about how many bytes the model takes there, the engine included."""
    config = cell.config
    each, dealer = load_engine(prepared.engine).memory(
        prepared.description, len(config.compute), **options
    )
    return {p.name: dealer if config.role(p.name) == "dealer" else each for p in config.parties}


def _beside(need: int, engine: str, status: Mapping[str, Any]) -> int:
    """What the model takes beside those that a party has; the engine may be there already."""
    alive = [m for m in status.get("models", []) if m["state"] in ALIVE and m["engine"] == engine]
    return need - load_engine(engine).PROCESS_BYTES if alive else need


def _held(status: Mapping[str, Any], name: str) -> int:
    """What the sessions of this name are estimated to take at a party, the engine left out."""
    return sum(
        (m.get("memory") or 0) - load_engine(m["engine"]).PROCESS_BYTES
        for m in status.get("models", [])
        if m["model"] == name and m["state"] in ALIVE and m.get("memory")
    )


def _too_much(
    names: str, host: str, needed: int, free: int, promised: int, freed: int, name: str
) -> str:
    lacks = (
        f"{names} at {host} would need about {needed / GB:.1f} GB of memory for this model, and "
        f"{max(0, free - promised) / GB:.1f} GB are free there"
    )
    if promised:
        lacks += f" beside {promised / GB:.1f} GB that models shared already are still to take"
    if freed and needed + promised - freed <= free:
        return (
            f"{lacks}. It would fit in the place of the '{name}' that is shared now: stop that one "
            f"first (python -m privserve.models stop {name}), and nobody answers until this one is "
            "shared; or share it anyway with force=True (--force)"
        )
    return (
        f"{lacks}; the system would kill a party. Use hosts with more memory, smaller inputs or a "
        "smaller model, stop another one (python -m privserve.models list), or share it anyway "
        "with force=True (--force)"
    )
