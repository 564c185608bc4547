"""Requests of schemathesis' to the parties of a stage, as a stranger, a client or the owner."""

from __future__ import annotations

from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, settings
from requests.auth import AuthBase
from stage import Stage

from privserve.credentials import KEY_FILE, ClientKey
from privserve.party.http import document

FEW = settings(
    max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
MANY = settings(FEW, max_examples=300, derandomize=False)
SCHEMA = schemathesis.openapi.from_dict(document())


class SignedByOwner(AuthBase):
    """Signs each request to one party as it goes out."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._stage, self._name = stage, name

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        request.headers["Authorization"] = self._stage.owner.sign(
            self._name, str(request.method), request.path_url, body
        )
        return request


class Asker:
    """A session at each party of a stage, that trusts its authority."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.hooks["response"].append(self._note)
        self._key = ClientKey.read(stage.config.path.parent / KEY_FILE)
        self._version = "none"
        self.seen: set[tuple[str, int]] = set()
        """Methods and statuses."""
        self.asked = 0

    def _note(self, response: requests.Response, **_: Any) -> None:
        self.asked += 1
        self.seen.add((str(response.request.method), response.status_code))

    def base(self, name: str) -> str:
        """Where a party is."""
        return f"https://{self.stage.config.parties[self.stage.config.rank(name)].address}"

    def get(self, name: str, path: str) -> Any:
        """What a party answers, as JSON."""
        verify = str(self.stage.config.ca)
        return self.session.get(self.base(name) + path, verify=verify, timeout=20).json()

    def read_version(self) -> None:
        """Note which version of the model is served."""
        self._version = self.get("alice", "/v2/models/small")["versions"][0]

    def ask(self, case: schemathesis.Case, name: str, **how: Any) -> None:
        """Make a case's request of a party, and hold the answer against the document."""
        case.call_and_validate(
            self.base(name),
            session=self.session,
            verify=str(self.stage.config.ca),
            timeout=20,
            **how,
        )

    def ask_as_client(self, case: schemathesis.Case, name: str, **how: Any) -> None:
        """Ask for the model that is there, with a client's credential."""
        known = {"model": "small", "version": self._version}
        case.path_parameters = {key: known[key] for key in case.path_parameters}
        shown = {"Authorization": self._key.authorization(self.stage.config.cluster, name)}
        self.ask(case, name, headers=shown, **how)
