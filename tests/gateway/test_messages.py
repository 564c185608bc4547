"""Requests over HTTP, read; answers, written."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privserve.errors import InputError, QueryError
from privserve.gateway.messages import read_request, write_answer

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.0]}
RAW = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}


def body(**fields: Any) -> bytes:
    return json.dumps({"inputs": [X], **fields}).encode()


def test_a_request_of_json_is_read() -> None:
    outputs = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    parameters = {"logits": True, "timeout": 2_500_000}
    asked = read_request(body(id="7", outputs=outputs, parameters=parameters), None)
    np.testing.assert_array_equal(asked.inference.inputs["x"], [[1.5, 2.0]])
    assert asked.inference.outputs == ["b", "a"]
    assert (asked.inference.id, asked.inference.logits) == ("7", True)
    assert asked.inference.timeout == 2.5
    assert (asked.binary, asked.is_binary) == ({"b": True}, False)


def test_raw_tensors_follow_in_order_and_mix_with_json() -> None:
    last = {**RAW, "name": "z", "datatype": "INT8", "parameters": {"binary_data_size": 2}}
    head = body(inputs=[RAW, {**X, "name": "y"}, last])
    tail = np.array([3, 4], "<f4").tobytes() + b"\xff\x05"
    inputs = read_request(head + tail, len(head)).inference.inputs
    assert [a.tolist() for a in inputs.values()] == [[[3, 4]], [[1.5, 2.0]], [[-1, 5]]]


REFUSED: dict[str, tuple[bytes, int | None, str]] = {
    "nothing": (b"", None, "JSON object"),
    "no JSON": (b"{inputs", None, "JSON object"),
    "no text": (b"\xff\xfe", None, "JSON object"),
    "a deep nest": (b"[" * 200_000, None, "JSON object"),
    "a list": (b"[]", None, "not a JSON object"),
    "a head beyond the body": (b"{}", 3, "3 bytes, and the body has 2"),
    "no inputs": (b"{}", None, "list of 'inputs'"),
    "empty inputs": (body(inputs=[]), None, "list of 'inputs'"),
    "an unknown field": (body(more=1), None, "unknown field 'more'"),
    "a number as id": (body(id=7), None, "'id' has to be a text"),
    "an input twice": (body(inputs=[X, X]), None, "given twice"),
    "an input without a name": (body(inputs=[{}]), None, "an input has no 'name'"),
    "bytes at the end": (body() + b"xx", len(body()), "2 bytes follow"),
    "raw bytes that are not there": (body(inputs=[RAW]), None, "0 bytes are left"),
    "raw bytes and data": (
        body(inputs=[{**X, **RAW}]) + bytes(8),
        len(body(inputs=[{**X, **RAW}])),
        "'data' as well",
    ),
    "a parameter of an input": (
        body(inputs=[{**X, "parameters": {"shared_memory_region": "a"}}]),
        None,
        "'shared_memory_region' of input 'x' is not known",
    ),
    "a parameter of an output": (
        body(outputs=[{"name": "a", "parameters": {"classification": 3}}]),
        None,
        "'classification' of output 'a' is not known",
    ),
    "a parameter of the request": (
        body(parameters={"sequence_id": 3}),
        None,
        "'sequence_id' of the request is not known here .known: binary_data_output, logits",
    ),
    "parameters that are none": (body(parameters=[]), None, "has to be an object"),
    "logits as a text": (body(parameters={"logits": "yes"}), None, "true or false"),
    "a flag as a number": (body(parameters={"binary_data_output": 1}), None, "true or false"),
    "no time": (body(parameters={"timeout": 0}), None, "microseconds"),
    "outputs that are none": (body(outputs={}), None, "has to be a list"),
    "an output twice": (body(outputs=[{"name": "a"}] * 2), None, "asked for twice"),
}


@pytest.mark.parametrize(("sent", "length", "complaint"), REFUSED.values(), ids=REFUSED)
def test_a_malformed_request_is_refused_with_the_cause(
    sent: bytes, length: int | None, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        read_request(sent, length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id"]
            ),
            inner,
        )
    ),
    max_leaves=20,
)


@given(JSON, JSON, st.binary(max_size=20), st.none() | st.integers(0, 200))
def test_whatever_is_sent_is_read_or_refused(
    inputs: Any, outputs: Any, tail: bytes, length: int | None
) -> None:
    sent = json.dumps({"inputs": inputs, "outputs": outputs}).encode() + tail
    with contextlib.suppress(InputError):
        read_request(sent, length)


ANSWERS = st.dictionaries(
    st.text(min_size=1, max_size=4),
    hnp.arrays(
        np.float32,
        hnp.array_shapes(max_dims=3, max_side=3),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=3,
)


@given(ANSWERS, st.booleans(), st.data())
def test_an_answer_is_read_as_it_was_written(
    answers: dict[str, np.ndarray], all_binary: bool, data: st.DataObject
) -> None:
    flags = {name: data.draw(st.none() | st.booleans()) for name in answers}
    outputs = [
        {"name": n, "parameters": {} if flag is None else {"binary_data": flag}}
        for n, flag in flags.items()
    ]
    asked = read_request(
        body(outputs=outputs, parameters={"binary_data_output": all_binary}, id="q"), None
    )
    written, length = write_answer(asked, "m", answers)
    said = json.loads(written[:length])
    rest = b"" if length is None else written[length:]
    assert (said["model_name"], said["id"]) == ("m", "q")
    assert [tensor["name"] for tensor in said["outputs"]] == list(answers)
    for tensor, array in zip(said["outputs"], answers.values(), strict=True):
        flag = flags[tensor["name"]]
        assert ("data" in tensor) != (all_binary if flag is None else flag)
        if "data" in tensor:
            got = np.array(tensor["data"], np.float32)
        else:
            size = tensor["parameters"]["binary_data_size"]
            got, rest = np.frombuffer(rest[:size], "<f4"), rest[size:]
        np.testing.assert_array_equal(got.reshape(tensor["shape"]), array)
    assert not rest


def test_infinity_is_carried_in_bytes_and_not_in_json() -> None:
    answers = {"a": np.array([[np.inf]], np.float32)}
    with pytest.raises(QueryError, match="binary_data_output"):
        write_answer(read_request(body(), None), "m", answers)
    asked = read_request(body(parameters={"binary_data_output": True}), None)
    written, length = write_answer(asked, "m", answers)
    assert written[length:] == np.float32(np.inf).tobytes()
