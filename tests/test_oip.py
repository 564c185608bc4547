from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privserve import oip
from privserve.errors import InputError

TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=5),
    hnp.arrays(
        np.int64,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=3,
)


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        np.testing.assert_array_equal(got[name], array)


@given(TENSORS)
def test_a_binary_message_is_read_as_it_was_written(tensors: dict[str, np.ndarray]) -> None:
    parts, headers = oip.format_message({"id": "q"}, tensors, "inputs")
    message, read = oip.parse_message(b"".join(parts), headers[oip.HEADER_LENGTH], "inputs")
    assert message == {"id": "q"}
    assert_same(read, tensors)


@given(TENSORS)
def test_a_json_message_is_read_as_it_was_written(tensors: dict[str, np.ndarray]) -> None:
    body = json.dumps(oip.format_json({"id": "q"}, tensors, "outputs")).encode()
    message, read = oip.parse_message(body, None, "outputs")
    assert message == {"id": "q"}
    assert_same(read, tensors)


@given(TENSORS, st.data())
def test_a_message_of_both_kinds_is_read_as_it_was_written(
    tensors: dict[str, np.ndarray], draw: st.DataObject
) -> None:
    listed = draw.draw(st.sets(st.sampled_from(sorted(tensors)))) if tensors else set()
    parts, headers = oip.format_message({"id": "q"}, tensors, "outputs", listed)
    body, length = b"".join(parts), headers[oip.HEADER_LENGTH]
    assert len(body) - int(length) == sum(8 * a.size for n, a in tensors.items() if n not in listed)
    message, read = oip.parse_message(body, length, "outputs")
    assert message == {"id": "q"}
    assert_same(read, tensors)


def test_json_data_may_be_nested_as_the_protocol_allows() -> None:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "INT64", "data": [[1, 2], [3, 4]]}
    _, read = oip.parse_message(json.dumps({"inputs": [tensor]}).encode(), None, "inputs")
    np.testing.assert_array_equal(read["x"], [[1, 2], [3, 4]])


def test_an_array_in_another_memory_order_is_sent_in_its_own() -> None:
    array = np.arange(12).reshape(3, 4).T
    parts, headers = oip.format_message({}, {"x": array}, "inputs")
    _, read = oip.parse_message(b"".join(parts), headers[oip.HEADER_LENGTH], "inputs")
    np.testing.assert_array_equal(read["x"], array)


def tensor(**changes: object) -> dict[str, object]:
    fields = {"name": "x", "shape": [1, 2], "datatype": "INT64", "data": [1, 2], **changes}
    return {key: value for key, value in fields.items() if value is not None}


BAD_TENSORS = {
    "no name": (tensor(name=None), "no name"),
    "a number as name": (tensor(name=3), "no name"),
    "a tensor that is a list": ([], "no name"),
    "floats": (tensor(datatype="FP32"), "must be a share, not a plaintext"),
    "no datatype": (tensor(datatype=None), "is not INT64"),
    "a datatype that is none": (tensor(datatype="INT65"), "protocol has no datatype 'INT65'"),
    "a list as datatype": (tensor(datatype=["INT64"]), "is not INT64"),
    "small numbers": (tensor(datatype="INT32"), "INT32 holds no share, which has 64 bits"),
    "unsigned words": (tensor(datatype="UINT64"), "send the same 64 bits as the signed"),
    "text": (tensor(datatype="BYTES"), "BYTES holds no share"),
    "an unknown field": (tensor(dataa=[1, 2]), "may not have 'dataa'; known here: data, data"),
    "an unknown parameter": (tensor(parameters={"size": 1}), "may not have 'size'"),
    "parameters that are none": (tensor(parameters=[]), "are no JSON object"),
    "shared memory": (
        tensor(data=None, parameters={"shared_memory_region": "r"}),
        "in shared memory, which a party has with no client",
    ),
    "no shape": (tensor(shape=None), "no valid shape"),
    "a negative axis": (tensor(shape=[-1, 2]), "no valid shape"),
    "a float axis": (tensor(shape=[1.0, 2]), "no valid shape"),
    "a true axis": (tensor(shape=[True, 2]), "no valid shape"),
    "a huge axis": (tensor(shape=[2**31, 2]), "no valid shape"),
    "too many axes": (tensor(shape=[1] * 17), "no valid shape"),
    "too few numbers": (tensor(data=[1]), "needs 2 integers"),
    "too many numbers": (tensor(data=[1, 2, 3]), "needs 2 integers"),
    "a number beyond 64 bits": (tensor(data=[1, 2**63]), "integers of 64 bits"),
    "a float": (tensor(data=[1, 2.0]), "integers of 64 bits"),
    "a boolean": (tensor(data=[1, True]), "integers of 64 bits"),
    "a text": (tensor(data="12"), "needs 2 integers"),
    "no data": (tensor(data=None), "needs 2 integers"),
    "binary data that is not there": (
        tensor(data=None, parameters={"binary_data_size": 16}),
        "needs 16 bytes",
    ),
    "binary data of the wrong size": (
        tensor(data=None, parameters={"binary_data_size": 8}),
        "needs 16 bytes",
    ),
    "a negative size": (
        tensor(data=None, parameters={"binary_data_size": -16}),
        "needs 16 bytes",
    ),
}


@pytest.mark.parametrize(("bad", "complaint"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_malformed_tensor_is_refused_with_its_cause(bad: object, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        oip.parse_message(json.dumps({"inputs": [bad]}).encode(), None, "inputs")


def test_data_in_the_json_and_behind_it_are_refused() -> None:
    twice = {"inputs": [tensor(parameters={"binary_data_size": 16})]}
    head = json.dumps(twice).encode()
    with pytest.raises(InputError, match="has its data twice"):
        oip.parse_message(head + bytes(16), str(len(head)), "inputs")


BAD_BODIES = {
    "nothing": (b"", None, "JSON object"),
    "no JSON": (b"{inputs", None, "JSON object"),
    "no text": (b"\xff\xfe", None, "JSON object"),
    "a deep nest": (b"[" * 200_000, None, "JSON object"),
    "a list": (b"[]", None, "list of 'inputs'"),
    "no tensors": (b"{}", None, "list of 'inputs'"),
    "tensors that are no list": (b'{"inputs": {}}', None, "list of 'inputs'"),
    "bytes behind the last tensor": (b'{"inputs": []}xx', "14", "2 bytes follow"),
    "a header longer than the body": (b'{"inputs": []}', "15", "length within the body"),
    "a header that is no number": (b'{"inputs": []}', "x", "length within the body"),
    "a negative header": (b'{"inputs": []}', "-1", "length within the body"),
    "a superscript header": (b'{"inputs": []}', "\u00b2", "length within the body"),
}


@pytest.mark.parametrize(("body", "length", "complaint"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_malformed_body_is_refused_with_its_cause(
    body: bytes, length: str | None, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        oip.parse_message(body, length, "inputs")


def test_a_tensor_that_is_given_twice_is_refused() -> None:
    body = json.dumps({"inputs": [tensor(), tensor()]}).encode()
    with pytest.raises(InputError, match="given twice"):
        oip.parse_message(body, None, "inputs")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["inputs", "name", "shape", "datatype", "data", "parameters"]), inner
        )
    ),
    max_leaves=20,
)


@given(JSON, st.binary(max_size=20), st.none() | st.integers(0, 200).map(str))
def test_whatever_is_sent_is_read_or_refused(fields: object, tail: bytes, length: str) -> None:
    body = json.dumps({"inputs": fields}).encode() + tail
    with contextlib.suppress(InputError):
        oip.parse_message(body, length, "inputs")
