"""How a model's shares go to the parties, and when all of them have set it up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from privserve import oip, sharing
from privserve.cell import POLL_SECONDS, Cell
from privserve.config import PartyConfig
from privserve.credentials import ClientTable, Limits
from privserve.engines import Prepared
from privserve.errors import ClusterError, NoAnswer, StaleSession

ASK_SECONDS = 2.0
"""For one party's answer while the others are asked in turn."""
PATIENCE_SECONDS = 30.0
"""For a party that does not answer, and of which the others say nothing."""


@dataclass(frozen=True)
class Sent:
    """What the parties of a session are given; kept for a party that loses its share."""

    name: str
    prepared: Prepared = field(repr=False)
    options: Mapping[str, int]
    everybody: Limits | None


def send(cell: Cell, session: str, sent: Sent) -> None:
    """Send every party what it is to run, and each compute party new shares of the weights."""
    prepared = sent.prepared
    config, table = cell.config, ClientTable.read(cell.config)
    number, cells = config.cell, len(config.cells)
    everybody = None if sent.everybody is None else asdict(sent.everybody.part(number, cells))
    message = {
        "session": session,
        "engine": prepared.engine,
        "description": prepared.description,
        "options": sent.options,
        "everybody": everybody,
    }
    split = {
        name: sharing.split(parameter, len(config.compute))
        for name, parameter in prepared.parameters.items()
    }

    def to(rank: int) -> None:
        dealer = rank == len(config.compute)
        shares = {} if dealer else {name: s[rank] for name, s in split.items()}
        told = {**message, "clients": table.entries(config.parties[rank].name, number, cells)}
        parts, headers = oip.format_message(told, shares, "inputs")
        path = f"/v2/repository/models/{sent.name}/load"
        content = b"".join(parts)
        cell.call(config.parties[rank], "POST", path, content=content, headers=headers)

    with ThreadPoolExecutor(len(config.parties)) as pool:
        list(pool.map(to, range(len(config.parties))))


def wait_loaded(cell: Cell, session: str) -> None:
    """Wait until all parties have set the session up; raises ClusterError where one fails.

    All are asked in turn: whoever is gone is found at once, whatever the others wait for.
    """
    missing = list(cell.config.parties)
    heard = dict.fromkeys((party.name for party in missing), time.monotonic())
    while missing:
        cell.check_processes()
        for party in list(missing):
            try:
                if _is_loaded(cell, party, session):
                    missing.remove(party)
                heard[party.name] = time.monotonic()
            except NoAnswer:  # the others know soon, and say, whether it is lost
                if time.monotonic() - heard[party.name] > PATIENCE_SECONDS:
                    raise
        time.sleep(POLL_SECONDS / 2)


def _is_loaded(cell: Cell, party: PartyConfig, session: str) -> bool:
    path = "/privserve/status"
    try:
        status = cell.call(party, "GET", path, session=session, timeout=ASK_SECONDS).json()
    except StaleSession:
        raise ClusterError(
            f"{party.name} does not have the model any more: it was started again, or "
            "given others meanwhile"
        ) from None
    if status["state"] in ("failed", "ended", "waiting"):
        raise ClusterError(f"the model could not be shared: {status['reason']}")
    return bool(status["state"] == "loaded")
