"""Query lanes by hand: which model a hello and a question name, and what comes of it."""

from __future__ import annotations

import pytest
from raw_lane import RawLane
from serving import Digits

from privserve.query_frames import Kind, frame, json_frame, read_json


def told(lane: RawLane, payload: bytes) -> dict:
    lane.send(frame(Kind.ABOUT, 7, payload))
    kind, number, answer = lane.next()
    assert (kind, number) == (Kind.WELCOME, 7), answer
    return read_json(memoryview(answer))


def test_a_question_may_name_the_model_or_none(digits: Digits) -> None:
    lane = RawLane(digits)
    about = lane.hello()
    assert about["models"] == ["digits-model"]
    assert about["serving"] == [], "the leader says what is served"
    for payload in (b"", b"{}", b'{"model": "digits-model"}'):
        assert told(lane, payload)["model"]["name"] == "digits-model"
    found = told(lane, b'{"model": "other"}')
    assert "model" not in found
    assert (found["error"]["status"], "'digits-model' is served" in found["error"]["error"]) == (
        404,
        True,
    )
    assert "must be a model's name" in told(lane, b'{"model": 3}')["error"]["error"]
    lane.close()


def test_a_hello_may_name_the_model(digits: Digits) -> None:
    lane = RawLane(digits, 1)
    lane.send(json_frame(Kind.HELLO, 0, {"authorization": lane._authorization, "model": "other"}))
    kind, _, payload = lane.next()
    found = read_json(memoryview(payload))
    assert kind == Kind.WELCOME
    assert found["error"]["status"] == 404
    assert "serving" not in found, "the leader alone knows"
    assert told(lane, b"")["model"]["name"] == "digits-model"
    lane.close()


@pytest.mark.parametrize("payload", [b"[]", b"{", b"model"])
def test_a_question_that_is_no_json_object_ends_the_lane(digits: Digits, payload: bytes) -> None:
    lane = RawLane(digits)
    lane.hello()
    lane.send(frame(Kind.ABOUT, 1, payload))
    assert lane.error()[1]["code"] == "bad_input"
    with pytest.raises(EOFError):
        lane.next()
    lane.close()
