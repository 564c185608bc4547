"""What a client asks the parties of their models, and what it makes of their answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from privserve.calls import refusal
from privserve.errors import ClusterError
from privserve.known_parties import check_roles
from privserve.lane_client import LaneClient
from privserve.lane_connection import Peer
from privserve.revocation import Revocations
from privserve.served_model import ServedModel, parse_model

if TYPE_CHECKING:
    from privserve.http_client import HttpClient

SWITCH_SECONDS = 5.0
"""For this long parties may describe different sessions of a model, while it is replaced."""
SWITCH_POLL_SECONDS = 0.02


class Describer:
    """Reads the model that a client asks. For one thread at a time."""

    def __init__(self, peers: Sequence[Peer], revocations: Revocations, model: str | None) -> None:
        """model: the name of the one that is wanted; None: of the only one there is."""
        self._peers = peers
        self._revocations = revocations
        self.wanted = model or ""
        self._is_named = model is not None

    def read(self, way: LaneClient | HttpClient) -> ServedModel:
        """Ask all parties; raises what one refuses with, and ClusterError where they disagree.

        A model is replaced at one party after the other, so they have some seconds to agree.
        """
        deadline = time.monotonic() + SWITCH_SECONDS
        while True:
            about = self._about(way)
            is_final = time.monotonic() > deadline
            if (described := self._agreed(about, is_final)) is not None:
                break
            time.sleep(SWITCH_POLL_SECONDS)
        model = parse_model(self._peers[0].name, described)
        self.wanted = model.name  # also where others are added to it
        return model

    def names(self, way: LaneClient | HttpClient, served: bool) -> list[str]:
        """Ask all parties which models the client may ask; those that all of them name.

        served: and that the leader, who alone knows that, says it serves.
        """
        about = self._about(way)
        lists = [facts.get("models", []) for facts in about]
        if served:
            lists += [facts["serving"] for facts in about if "serving" in facts]
        names = [[str(name) for name in found] for found in lists]
        return [name for name in names[0] if all(name in other for other in names)]

    def _agreed(
        self, about: Sequence[Mapping[str, Any]], is_final: bool
    ) -> Mapping[str, Any] | None:
        """The model as all parties describe it; None where they have to be asked once more."""
        first = about[0].get("model")
        for peer, facts in zip(self._peers, about, strict=True):
            if "model" not in facts:
                others = facts.get("models")
                if self.wanted and not self._is_named and others and self.wanted not in others:
                    self.wanted = ""  # what was read first is gone; whoever asks is told so
                    return None
                raise refusal(facts.get("error"), peer.name)
            if facts["model"] != first:
                if not is_final:
                    return None
                raise ClusterError(f"{peer.name} describes another model than the others do")
        return first

    def _about(self, way: LaneClient | HttpClient) -> list[dict[str, Any]]:
        """What each party says of itself; asked anew where one shows that a certificate is revoked.

        All of them are asked what is revoked, since who stole a party's key would not tell.
        """
        news, unsound = [], []
        way.model = self.wanted
        about = way.about()
        for peer, facts in zip(self._peers, about, strict=True):
            try:
                listed = str(facts.get("revoked", "")).encode()
                news.append(self._revocations.learn(listed, peer.name))
            except ClusterError as error:  # another one's list may say what to think of this party
                unsound.append(error)
        if any(news):
            way.reconnect()
            about = way.about()
        if unsound:
            raise unsound[0]
        check_roles(self._peers, about)
        return about
