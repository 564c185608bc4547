"""What the front says of itself (OpenAPI) against what it does, and whatever may be asked by it.

schemathesis makes requests of the document, right ones and wrong ones, at every depth of every
body and header, and holds each answer against it: status, media type, schema, methods that a path
does not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving import ROOT, serving
from stage import NAMES, Stage

from privserve.credentials import KEY_FILE, ClientKey
from privserve.party.http import document

DOCUMENT = ROOT / "docs" / "openapi.json"
FEW = settings(
    max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
MANY = settings(FEW, max_examples=400, derandomize=False)
schema = schemathesis.openapi.from_dict(document())
clients = schema.include(path_regex="/infer|/stats")
BEYOND_SCHEMAS = positive_data_acceptance
"""That whatever a schema allows is answered: none says that data have to fill their shape, or that
the bytes behind the JSON are as many as were announced."""


class Asker:
    """A requests session at each party of a stage, that trusts its authority."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(stage.config.ca)
        self.how: dict[str, Any] = {"session": self.session, "verify": str(stage.config.ca)}
        self.key = ClientKey.read(stage.config.path.parent / KEY_FILE)

    def base(self, name: str) -> str:
        return f"https://{self.stage.config.parties[self.stage.config.rank(name)].http}"

    def credential(self, name: str) -> dict[str, str]:
        return {"Authorization": self.key.authorization(self.stage.config.cluster, name)}

    @cache  # noqa: B019 - one for each module of tests
    def version(self) -> str:
        about = self.session.get(f"{self.base('alice')}/v2/models/small").json()
        return str(about["versions"][0])


@pytest.fixture(scope="module")
def asker(stage: Stage) -> Iterator[Asker]:
    stage.model.share(stage.cluster, report=lambda line: None)
    asker = Asker(stage)
    with serving(stage.cluster, stage.model):
        yield asker
    asker.session.close()
    for name in NAMES:
        stage.check_log(name)


def test_the_document_in_docs_is_what_a_party_hands_out(asker: Asker) -> None:
    written = json.loads(DOCUMENT.read_text())
    assert written == document(), "write it anew: python scripts/openapi.py"
    for name in NAMES:
        assert asker.session.get(f"{asker.base(name)}/openapi.json").json() == written


@schema.parametrize()
@FEW
def test_what_a_stranger_asks_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker
) -> None:
    case.call_and_validate(asker.base("alice"), **asker.how)


@clients.parametrize()
@FEW
def test_what_a_client_asks_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker
) -> None:
    ask_as_client(case, asker)


def ask_as_client(case: schemathesis.Case, asker: Asker, name: str = "bob") -> None:
    known: dict[str, Any] = {"model": "small", "version": asker.version()}
    case.path_parameters = {key: known[key] for key in case.path_parameters}
    case.call_and_validate(
        asker.base(name),
        headers=asker.credential(name),
        excluded_checks=[BEYOND_SCHEMAS] if case.method == "POST" else [],
        **asker.how,
    )
