"""The table of messages against what NVIDIA's client has generated of the published ones."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from privserve.gateway.grpc_messages import MESSAGES, message_classes


def fields(descriptor: Any) -> dict[str, tuple[Any, ...]]:
    """By name: number, type, whether it is repeated, the message's or oneof's name."""
    return {
        f.name: (
            f.number,
            f.type,
            f.is_repeated if hasattr(f, "is_repeated") else f.label == f.LABEL_REPEATED,
            f.message_type.full_name if f.message_type else None,
            f.containing_oneof.name if f.containing_oneof else None,
            f.is_packed if hasattr(f, "is_packed") else None,
        )
        for f in descriptor.fields
    }


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_goes_over_the_wire_as_the_published_one(name: str) -> None:
    theirs: Any = service_pb2
    for part in name.split("."):
        theirs = getattr(theirs, part)
    published, ours = fields(theirs.DESCRIPTOR), fields(message_classes()[name].DESCRIPTOR)
    assert len(ours) == len(MESSAGES[name])
    assert theirs.DESCRIPTOR.full_name == message_classes()[name].DESCRIPTOR.full_name
    for field, said in ours.items():
        assert said == published[field]
