"""What a query may ask for besides its shares, held against plain rules; and compressed bodies."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privserve import oip
from privserve.description import Description
from privserve.errors import InputError, QueryError
from privserve.party.bodies import Body
from privserve.party.infer import MAX_JSON_NUMBERS, Asked, read_asked, read_query

NAMES = ["first", "second"]


def described(*, guards: bool = False, width: int = 2) -> Description:
    outputs: list[Any] = [
        {"name": name, "shape": [width], "activation": None, "rounded_bits": 3} for name in NAMES
    ]
    return Description(
        inputs=[{"name": "x", "shape": [3]}],
        outputs=outputs,
        fraction_bits=16,
        output_fraction_bits=16,
        input_range=[-8.0, 8.0],
        guards=["layer"] if guards else [],
        notes=[],
    )


def asked(guards: bool = False, **fields: Any) -> Asked:
    return read_asked(fields, described(guards=guards))


FLAGS = st.none() | st.booleans()


@given(FLAGS, st.none() | st.dictionaries(st.sampled_from(NAMES), FLAGS), st.booleans())
def test_outputs_are_those_that_are_named_and_as_they_are_asked_for(
    default: bool | None, named: dict[str, bool | None] | None, guards: bool
) -> None:
    fields: dict[str, Any] = {}
    if default is not None:
        fields["parameters"] = {"binary_data_output": default}
    if named is not None:
        fields["outputs"] = [
            {"name": name, **({} if raw is None else {"parameters": {"binary_data": raw}})}
            for name, raw in named.items()
        ]
    found = asked(guards, **fields).outputs
    for name in NAMES:
        if named and name not in named:
            assert name not in found
        else:
            own = named.get(name) if named else None
            assert found[name] is (bool(default) if own is None else own)
    assert (oip.GUARDS in found) is guards
    if guards:
        assert found[oip.GUARDS] is any(raw for name, raw in found.items() if name != oip.GUARDS)
    assert not named or [name for name in found if name != oip.GUARDS] == list(named)


def test_the_guards_can_be_asked_for_where_there_are_any() -> None:
    wanted = [{"name": oip.GUARDS, "parameters": {"binary_data": True}}, {"name": "first"}]
    assert asked(True, outputs=wanted).outputs == {oip.GUARDS: True, "first": False}
    with pytest.raises(InputError, match="the model has no output 'privserve/guards'"):
        asked(False, outputs=wanted)


BAD_WISHES: dict[str, tuple[dict[str, Any], str]] = {
    "an output that is not there": (
        {"outputs": [{"name": "y"}]},
        "no output 'y'; it has 'first', 'second'",
    ),
    "an output twice": ({"outputs": [{"name": "first"}] * 2}, "'first' is asked for twice"),
    "no list": ({"outputs": {"name": "first"}}, "must be a list"),
    "no name": ({"outputs": [{}]}, "has no name"),
    "an output that is a text": ({"outputs": ["first"]}, "has no name"),
    "a class": (
        {"outputs": [{"name": "first", "parameters": {"classification": 3}}]},
        "may not have 'classification'",
    ),
    "shared memory": (
        {"outputs": [{"name": "first", "parameters": {"shared_memory_region": "x"}}]},
        "may not have 'shared_memory_region'",
    ),
    "no flag": (
        {"outputs": [{"name": "first", "parameters": {"binary_data": 1}}]},
        "'binary_data' of output 'first' must be true or false",
    ),
    "another field": ({"outputs": [{"name": "first", "data": []}]}, "may not have 'data'"),
    "no general flag": ({"parameters": {"binary_data_output": None}}, "must be true or false"),
    "parameters that are none": ({"parameters": []}, "the parameters of the query are no JSON"),
    "a parameter of one's own": ({"parameters": {"mine": 0}}, "knows no parameter 'mine'"),
    "a priority": ({"parameters": {"priority": 1}}, "does not hold to the parameter 'priority'"),
    "a priority that is a flag": ({"parameters": {"priority": False}}, "'priority'"),
    "a sequence": ({"parameters": {"sequence_id": 7}}, "'sequence_id'"),
    "a sequence's name": ({"parameters": {"sequence_id": "s"}}, "'sequence_id'"),
    "a sequence's start": ({"parameters": {"sequence_start": True}}, "'sequence_start'"),
    "a sequence's end": ({"parameters": {"sequence_end": True}}, "'sequence_end'"),
    "a time that is over": ({"parameters": {"timeout": -1}}, "'timeout' is a number of micro"),
    "a time that is a flag": ({"parameters": {"timeout": True}}, "'timeout' is a number"),
    "half a microsecond": ({"parameters": {"timeout": 0.5}}, "'timeout' is a number"),
    "a time without end": ({"parameters": {"timeout": 10**400}}, "'timeout' is a number"),
}


@pytest.mark.parametrize(("fields", "complaint"), BAD_WISHES.values(), ids=BAD_WISHES)
def test_what_would_be_ignored_is_refused_by_name(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        asked(**fields)


def test_parameters_that_ask_for_nothing_pass() -> None:
    nothing = {"priority": 0, "sequence_id": 0, "sequence_start": False, "sequence_end": False}
    assert asked(parameters={**nothing, "timeout": 0}) == asked()
    assert asked(parameters={"sequence_id": ""}) == asked()


def test_a_timeout_is_a_deadline_in_microseconds() -> None:
    before = time.monotonic()
    deadline = asked(parameters={"timeout": 2_500_000}).deadline
    assert deadline is not None
    assert before + 2.5 <= deadline <= time.monotonic() + 2.5


def read(message: dict[str, Any], rows: int = 1, width: int = 2) -> object:
    share = {"x": np.zeros((rows, 3), np.int64)}
    return read_query(message, share, described(width=width), "lab")


def test_a_query_without_an_id_is_refused_since_nobody_could_find_its_other_share() -> None:
    for message in ({}, {"id": ""}):
        with pytest.raises(InputError, match="needs an 'id', the same one at every"):
            read(message)


def test_a_query_with_a_field_that_is_none_of_the_protocols_is_refused() -> None:
    with pytest.raises(InputError, match="a query may not have 'output'; known here: id, inputs"):
        read({"id": "q", "output": []})


def test_an_answer_that_is_slow_to_write_has_to_be_asked_for_as_bytes() -> None:
    width = MAX_JSON_NUMBERS // 4
    read({"id": "q"}, 2, width)
    for message in ({"id": "q"}, {"id": "q", "outputs": [{"name": "first"}, {"name": "second"}]}):
        with pytest.raises(InputError, match="ask for bytes with the parameter 'binary_data_out"):
            read(message, 3, width)
    read({"id": "q", "outputs": [{"name": "first"}]}, 3, width)
    read({"id": "q", "parameters": {"binary_data_output": True}}, 3, width)


# -- compressed bodies ----------------------------------------------------------------------

PACKED = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}


@given(st.binary(max_size=300), st.sampled_from(sorted(PACKED)), st.integers(0, 300))
def test_a_body_is_unpacked_if_it_is_no_longer_than_it_may_be(
    data: bytes, encoding: str, limit: int
) -> None:
    body = Body(bytearray(PACKED[encoding](data)), limit, encoding)
    if len(data) <= limit:
        assert body.plain() == data
    else:
        with pytest.raises(QueryError, match=f"longer than the {limit} bytes") as refused:
            body.plain()
        assert refused.value.status == 413


@given(st.binary(max_size=60), st.sampled_from(sorted(PACKED)), st.data())
def test_a_damaged_body_is_refused(data: bytes, encoding: str, draw: st.DataObject) -> None:
    whole = PACKED[encoding](data)
    cut = whole[: draw.draw(st.integers(0, len(whole) - 1))]
    more = whole + draw.draw(st.binary(min_size=1, max_size=9))
    for bad in (cut, more, b"\x00" + whole):
        with pytest.raises(InputError, match=encoding):
            Body(bytearray(bad), 1000, encoding).plain()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_takes_no_more_memory_than_a_body_may_have(encoding: str) -> None:
    limit = 1 << 20
    bomb = bytearray(PACKED[encoding](bytes(200 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(QueryError) as refused:
            Body(bomb, limit, encoding).plain()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.value.status == 413
    assert most < 4 * limit
