"""What the front says of itself (OpenAPI) against what it does, and whatever may be asked by it.

schemathesis makes requests of the document, right ones and wrong ones, at every depth of every
body and header, and holds each answer against it: status, media type, schema, methods that a path
does not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import schemathesis
from asker import FEW, MANY, SCHEMA, Asker
from schemathesis.specs.openapi.checks import missing_required_header, positive_data_acceptance
from serving import ROOT, serving
from stage import NAMES, Stage

from privserve.party.http import document

DOCUMENT = ROOT / "docs" / "openapi.json"
CLIENTS = SCHEMA.include(path_regex="/infer|/stats")
AT_THE_DEALER = missing_required_header
"""That a call without its credential is answered with 401: the dealer knows no client, and answers
everybody with 403 and who does."""
BEYOND_SCHEMAS = positive_data_acceptance
"""That whatever a schema allows is answered: none says that data have to fill their shape, or that
the bytes behind the JSON are as many as were announced."""


@pytest.fixture(scope="module")
def asker(stage: Stage) -> Iterator[Asker]:
    stage.model.share(stage.cluster, report=lambda line: None)
    asker = Asker(stage)
    asker.read_version()
    with serving(stage.cluster, stage.model):
        yield asker
    asker.session.close()
    for name in NAMES:
        stage.check_log(name)
    wanted = {("GET", 200), ("GET", 401), ("DELETE", 405), ("POST", 400), ("POST", 415)}
    assert wanted <= asker.seen or asker.asked < 500, asker.seen


def test_the_document_in_docs_is_what_every_party_hands_out(asker: Asker) -> None:
    written = json.loads(DOCUMENT.read_text())
    assert written == document(), "write it anew: python scripts/openapi.py"
    for name in NAMES:
        assert asker.get(name, "/openapi.json") == written


@SCHEMA.parametrize()
@FEW
def test_what_a_stranger_asks_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker
) -> None:
    asker.ask(case, "alice")


@CLIENTS.parametrize()
@FEW
def test_what_a_client_asks_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker
) -> None:
    ask_as_client(case, asker, "bob")


def ask_as_client(case: schemathesis.Case, asker: Asker, name: str) -> None:
    left_out = [AT_THE_DEALER] if name == "carol" else []
    left_out += [BEYOND_SCHEMAS] if "infer" in case.operation.path else []
    asker.ask_as_client(case, name, excluded_checks=left_out)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@SCHEMA.parametrize()
@MANY
def test_whatever_strangers_ask_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker, name: str
) -> None:
    asker.ask(case, name, excluded_checks=[AT_THE_DEALER] if name == "carol" else [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@CLIENTS.parametrize()
@MANY
def test_whatever_clients_ask_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker, name: str
) -> None:
    ask_as_client(case, asker, name)
