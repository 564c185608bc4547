"""Looking at all parties of a cluster at once, some of which may be away.

Each party is asked in a thread of its own, and nobody waits for one that does not answer. With
the model owner's key a party tells all; without it, what it tells anybody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from privserve.addresses import join_address, reachable, split_address
from privserve.calls import raise_for_answer, tls_context, unreachable
from privserve.certificates import OWNER_KEY
from privserve.config import ClusterConfig, PartyConfig
from privserve.errors import ClusterError, ConfigError, NoAnswer, PrivserveError, StaleSession
from privserve.owner_calls import Boot, Signer, load_owner_key

SECONDS = 3.0
"""How long a party may take to answer."""
STATUS = "/privserve/status"


@dataclass(frozen=True)
class Seen:
    """What one party said, or why it did not."""

    party: PartyConfig
    role: str
    cell: int
    why: str = ""
    """Why it could not be asked; empty where it could."""
    public: Mapping[str, Any] = field(default_factory=dict)
    """What it tells anybody: `/v2`."""
    is_ready: bool = False
    """Whether a model is loaded there."""
    status: Mapping[str, Any] | None = None
    """What it tells the owner; None for anybody else."""
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the leader: by session, what its queries cost so far."""

    @property
    def is_up(self) -> bool:
        """Whether it answered."""
        return not self.why


@dataclass(frozen=True)
class _Place:
    """A party's place in the cluster."""

    cell: int
    party: PartyConfig
    role: str
    leads: bool

    def seen(self, why: str = "", **said: Any) -> Seen:
        """What the party of this place said, or why it did not."""
        return Seen(self.party, self.role, self.cell, why, **said)


class Onlooker:
    """Whoever looks at a cluster, again and again."""

    def __init__(self, config: ClusterConfig, seconds: float = SECONDS) -> None:
        """seconds: that a look takes at most. Raises ConfigError where files do not fit."""
        self._config = config
        self._seconds = seconds
        self._late = f"it gave no answer within {seconds:g} s"
        self._signer = _signer(config)
        self._http = httpx.Client(
            verify=tls_context(config.ca), timeout=httpx.Timeout(seconds), trust_env=False
        )
        self._places = [
            _Place(cell.cell, party, cell.role(party.name), party == cell.compute[0])
            for cell in config.cells
            for party in cell.parties
        ]
        self._asking: dict[_Place, threading.Thread] = {}
        self._found: dict[_Place, Seen] = {}

    @property
    def is_owner(self) -> bool:
        """Whether the owner's key is here."""
        return self._signer is not None

    def look(self) -> list[Seen]:
        """Ask all parties, and return what those said that answered in time.

        In their order, of one cell after the other.
        """
        self._found = {}
        for place in self._places:
            before = self._asking.get(place)
            if before is None or not before.is_alive():
                thread = threading.Thread(
                    target=self._ask, args=(place, self._found), daemon=True, name="status"
                )
                self._asking[place] = thread
                thread.start()
        deadline = time.monotonic() + self._seconds
        for thread in self._asking.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        found = dict(self._found)
        return [found.get(place) or place.seen(self._late) for place in self._places]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, place: _Place, found: dict[_Place, Seen]) -> None:
        try:
            found[place] = self._seen(place)
        except NoAnswer:
            found[place] = place.seen(self._late)
        except PrivserveError as error:
            found[place] = place.seen(str(error).split(";")[0])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Closed meanwhile, or what answers there is no party.
            why = f"what it answers makes no sense ({type(error).__name__})"
            found[place] = place.seen(why)

    def _seen(self, place: _Place) -> Seen:
        party = place.party
        base = self._base(party)
        public = self._call(party, base, "/v2").json()
        is_ready = self._call(party, base, "/v2/health/ready", may_fail=True).is_success
        if self._signer is None:
            return place.seen(public=public, is_ready=is_ready)
        boot = Boot.read(public)
        status = self._signed(party, base, boot)
        costs = {}
        if place.leads:
            for session in [str(facts["session"]) for facts in status["models"]]:
                try:
                    costs[session] = self._signed(party, base, boot, session).get("cost") or {}
                except StaleSession:  # it went between the two calls
                    continue
        return place.seen(public=public, is_ready=is_ready, status=status, costs=costs)

    def _base(self, party: PartyConfig) -> str:
        where = reachable(party.addresses, self._seconds / 2)
        return f"https://{join_address(*split_address(where))}"

    def _signed(self, party: PartyConfig, base: str, boot: Boot, session: str = "") -> Any:
        assert self._signer is not None
        shown = self._signer.authorization(party.name, boot, "GET", STATUS, session, b"")
        return self._call(party, base, STATUS, {"Authorization": shown}).json()

    def _call(
        self,
        party: PartyConfig,
        base: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        may_fail: bool = False,
    ) -> httpx.Response:
        try:
            response = self._http.get(
                base + path,
                headers=headers,
                extensions={"sni_hostname": self._config.identity(party.name)},
            )
        except httpx.TransportError as error:
            is_late = isinstance(error, httpx.TimeoutException)
            raise unreachable(party.name, party.address, error, is_late=is_late) from None
        except RuntimeError:
            raise ClusterError("the connections were closed meanwhile") from None
        if not may_fail:
            raise_for_answer(response, party.name)
        return response


def _signer(config: ClusterConfig) -> Signer | None:
    """What signs as the owner; None where its key is not beside cluster.toml."""
    path = config.path.parent / OWNER_KEY
    if not path.exists():
        return None
    key = load_owner_key(path)
    if key.public_key().public_bytes_raw() != config.owner:
        raise ConfigError(
            f"{path} is not the key that {config.path} names; take both from the cluster as it "
            "was made"
        )
    return Signer(key, config.cluster)
