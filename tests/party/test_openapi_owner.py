"""The owner's calls, rightly signed, made of the front's own description: see test_openapi."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from asker import FEW, MANY, Asker, SignedByOwner
from schemathesis.specs.openapi.checks import positive_data_acceptance
from stage import NAMES, Stage

from privserve.party.http import document
from privserve.party.routes import CALLS, Who


def without_security() -> dict[str, Any]:
    """The document as if anybody might make the owner's calls: all requests are signed here."""
    found: dict[str, Any] = json.loads(json.dumps(document()))
    for operations in found["paths"].values():
        for operation in operations.values():
            if operation.get("security") == [{"owner": []}]:
                del operation["security"]
    return found


NAMED = [call.name for call in CALLS if call.who is Who.OWNER]
OWNERS = schemathesis.openapi.from_dict(without_security()).include(operation_id=NAMED)


@pytest.fixture(scope="module")
def asker(stage: Stage) -> Iterator[Asker]:
    asker = Asker(stage)
    yield asker
    asker.session.close()
    for name in NAMES:
        stage.check_log(name)
    wanted = {("POST", 200), ("GET", 200), ("POST", 400), ("POST", 409)}
    assert wanted <= asker.seen or asker.asked < 200, asker.seen
    stage.check_honest()


BEYOND = [positive_data_acceptance]
"""No schema says what a digest or a certificate is."""


def ask_as_owner(case: schemathesis.Case, asker: Asker, name: str) -> None:
    asker.ask(case, name, auth=SignedByOwner(asker.stage, name), excluded_checks=BEYOND)


@OWNERS.parametrize()
@FEW
def test_what_the_owner_asks_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker
) -> None:
    ask_as_owner(case, asker, "alice")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
@OWNERS.parametrize()
@MANY
def test_whatever_the_owner_asks_is_answered_as_the_document_says(
    case: schemathesis.Case, asker: Asker, name: str
) -> None:
    ask_as_owner(case, asker, name)
