"""Frames of the query lane: cut as they were joined, whatever the pieces; too long ones refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privserve.errors import InputError
from privserve.query_frames import HEADER, FrameReader, Kind, frame, json_frame, read_json

LIMIT = 300
FRAMES = st.lists(
    st.tuples(st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=LIMIT)),
    max_size=8,
)


@given(FRAMES, st.lists(st.integers(1, 400), max_size=30))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    sent: list[tuple[Kind, int, bytes]], sizes: list[int]
) -> None:
    data = b"".join(frame(*each) for each in sent)
    reader, found, start = FrameReader(LIMIT), [], 0
    for size in [*sizes, len(data)]:
        piece = bytearray(data[start : start + size])
        for kind, number, payload in reader.frames(memoryview(piece)):
            found.append((kind, number, bytes(payload)))
        piece[:] = bytes(len(piece))  # the room is used again
        start += size
    assert found == sent
    assert reader.held == 0


@given(st.integers(LIMIT + 1, 2**32 - 1), st.integers(1, 20))
def test_a_frame_that_announces_too_much_is_refused_before_it_comes(length: int, cut: int) -> None:
    header = HEADER.pack(length, Kind.QUERY, 1)
    reader = FrameReader(LIMIT)
    pieces = [memoryview(header)[start : start + cut] for start in range(0, len(header), cut)]
    with pytest.raises(InputError, match=f"of {length} bytes was announced, more than the {LIMIT}"):
        _ = [list(reader.frames(piece)) for piece in pieces]
    assert reader.held <= HEADER.size


@given(st.binary(max_size=600))
def test_garbage_is_frames_or_refused_and_never_held_beyond_the_limit(garbage: bytes) -> None:
    reader = FrameReader(LIMIT)
    try:
        for _, number, payload in reader.frames(memoryview(garbage)):
            assert number >= 0
            assert len(payload) <= LIMIT
    except InputError:
        pass
    assert reader.held <= LIMIT + HEADER.size


def test_json_payloads_are_objects() -> None:
    data = json_frame(Kind.HELLO, 0, {"authorization": "é"})
    (_, _, payload) = next(FrameReader(LIMIT).frames(memoryview(data)))
    assert read_json(payload) == {"authorization": "é"}
    for bad in (b"", b"[]", b"1", b"\xff", b"{", b'"x"', b"[" * 5000):
        with pytest.raises(InputError, match="not a JSON object"):
            read_json(memoryview(bad))
