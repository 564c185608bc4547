"""Large packs come in pieces: the same tuples, the same answers, less memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from ottt_models import float_logits, graph, random_weights, tutorial_net
from ottt_session import Session, uniform

from privserve.engines import ottt
from privserve.engines.ottt import layout
from privserve.engines.ottt.buffers import Buffers, expiring, last_readers
from privserve.engines.ottt.dealer import PackMaker
from privserve.engines.ottt.layout import (
    PackLayout,
    lay_out,
    mask_words,
    ready_words,
    tuple_words,
)
from privserve.engines.ottt.ops.linear import masks_of_weights
from privserve.prg import Prg, fresh_key
from privserve.program import OP_KINDS, Program
from privserve.validation import read_program

WEIGHTS = random_weights()


def branching_net() -> onnx.ModelProto:
    """Two paths that meet, pooling, a hidden sigmoid, a product: ops of every kind."""
    prg = np.random.default_rng(3)
    return graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "v"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["b", "c"], ["d"]),
            helper.make_node("Sigmoid", ["d"], ["e"]),
            helper.make_node("Mul", ["e", "b"], ["f"]),
            helper.make_node("MaxPool", ["f"], ["g"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["g"], ["h"]),
            helper.make_node("Gemm", ["h", "u"], ["y"]),
        ],
        {
            "w": prg.normal(size=(4, 2, 3, 3)) / 4,
            "v": prg.normal(size=(4, 4, 3, 3)) / 6,
            "u": prg.normal(size=(36, 5)) / 6,
        },
        (2, 6, 6),
    )


@pytest.fixture(scope="module")
def program() -> Program:
    return read_program(ottt.prepare(branching_net()).description)


def parts(pack: PackLayout, program: Program) -> list[tuple[int, int]]:
    """(first word, words) of every op's masks and fields, in the order of the words."""
    masks = [(word, mask_words(program, program.ops[i])) for i, word in pack.masks.items()]
    fields = [(word, tuple_words(program, program.ops[i])) for i, word in pack.fields.items()]
    ready = [(word, ready_words(program, program.ops[i])) for i, word in pack.ready.items()]
    return sorted(masks + fields + ready)


@given(piece_bytes=st.integers(1, 200_000))
@settings(max_examples=60, deadline=None)
def test_however_a_pack_is_cut_its_parts_do_not_overlap(program, piece_bytes):
    pack = lay_out(program, piece_bytes)
    assert pack.pieces[0].first == 0
    assert pack.pieces[-1].last == len(program.ops)
    word = 0
    for piece, following in zip(pack.pieces, [*pack.pieces[1:], None], strict=True):
        assert piece.start == word
        assert following is None or following.first == piece.last
        word += piece.words
        for index in range(piece.first, piece.last):
            start = piece.start
            if index in pack.masks:
                assert start <= pack.masks[index] < start + piece.mask_words
            if index in pack.fields:
                drawn = start + piece.drawn_words
                assert start + piece.mask_words <= pack.fields[index] < drawn
            if index in pack.ready:
                assert start + piece.drawn_words <= pack.ready[index] < start + piece.words
    assert pack.words == word
    found = parts(pack, program)
    for (at, words), (after, _) in zip(found, [*found[1:], (word, 0)], strict=True):
        assert at + words <= after
    assert pack.corrected_words == lay_out(program, 1 << 40).corrected_words


class Constant:
    """A stream of one word, so that what is drawn does not depend on where it goes."""

    def __init__(self, word: int) -> None:
        self.word = word

    def fill(self, out: memoryview) -> None:
        np.frombuffer(out, dtype=np.int64)[:] = self.word


def corrections(
    program: Program, piece_bytes: int, words: list[int], masks: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """What party 0 is sent of one pack, by op."""
    maker = PackMaker(program, [fresh_key() for _ in words], masks, piece_bytes)
    maker._streams = [Constant(word) for word in words]  # type: ignore[misc]
    sent = {}
    for piece, made in zip(maker.layout.pieces, maker.make(1), strict=True):
        places = {i: w for i, w in maker.layout.fields.items() if piece.first <= i < piece.last}
        ends = [*sorted(places.values())[1:], piece.start + piece.drawn_words]
        for (index, word), end in zip(sorted(places.items()), ends, strict=True):
            skipped = piece.start + piece.mask_words
            sent[index] = made[0, word - skipped : end - skipped].copy()
    return sent


def test_a_dealer_holds_room_for_the_most_packs_at_a_time_whatever_numbers_came(program):
    """Under load every number comes; one set of buffers for each filled the memory."""
    masks = dict(masks_of_weights(program, Prg()))
    maker = PackMaker(program, [fresh_key(), fresh_key()], masks)
    tracemalloc.start()
    for made in maker.make(40):
        assert len(made) == 40
    once, _ = tracemalloc.get_traced_memory()
    for count in (*range(1, 41), 7, 40):
        for made in maker.make(count):
            assert len(made) == count
    often, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert often < 1.2 * once


@given(
    piece_bytes=st.integers(1, 200_000),
    words=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_dealing_in_pieces_is_dealing_at_once(program, piece_bytes, words):
    masks = dict(masks_of_weights(program, Prg()))
    whole = corrections(program, 1 << 40, words, masks)
    pieces = corrections(program, piece_bytes, words, masks)
    assert whole.keys() == pieces.keys()
    assert all(np.array_equal(whole[index], pieces[index]) for index in whole)


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("piece_bytes", [1, 20_000])
def test_a_net_in_pieces_answers_alike_and_sends_alike(parties, piece_bytes):
    net, x = tutorial_net(WEIGHTS), uniform((3, 28, 28, 1), 0, 1)
    sizes = []
    for options in ({"piece_bytes": piece_bytes, "pool_queries": 2}, {"pool_queries": 2}):
        with Session(net, parties, options=options) as session:
            for _ in range(3):
                (out,) = session.query(x)
                assert np.abs(out - float_logits(WEIGHTS, x)).max() < 1e-3
        # After the end, when party 0 has taken whatever the dealer had sent.
        online = session.wires["online"].sent
        frames = [len(f) for a, b, f in session.wires["deal"].sent if (a, b) == (parties, 0)]
        made = session.computes[0].pool.made
        pack = session.computes[0].layout
        sizes.append([len(f) for a, b, f in online if (a, b) == (0, 1)])
        assert sum(frames[1:]) == 8 * pack.corrected_words * made
        if "piece_bytes" in options:
            assert len(frames) - 1 == len(pack.pieces) * made
            assert len(pack.pieces) > 2
    assert sizes[0] == sizes[1]


def test_a_single_packs_piece_travels_in_small_frames(monkeypatch):
    monkeypatch.setattr(layout, "FRAME_WORDS", 1000)
    net, x = tutorial_net(WEIGHTS), uniform((2, 28, 28, 1), 0, 1)
    with Session(net, options={"pool_queries": 1}) as session:
        (out,) = session.query(x)
        assert np.abs(out - float_logits(WEIGHTS, x)).max() < 1e-3
    frames = [len(f) for a, b, f in session.wires["deal"].sent if (a, b) == (2, 0)]
    assert max(frames) == 8 * 1000
    assert len(frames) > 15 * session.computes[0].pool.made


def test_every_kind_of_op_works_in_pieces():
    x = uniform((2, 2, 6, 6), -1, 1)
    with Session(branching_net(), options={"piece_bytes": 1}) as session:
        (pieces,) = session.query(x)
    with Session(branching_net()) as session:
        (whole,) = session.query(x)
    assert np.abs(pieces - whole).max() < 5e-3


def test_results_that_are_still_read_share_no_memory(program):
    """Every buffer is filled with its op's number; readers must find it unharmed."""
    buffers = Buffers.for_batch(program, 2).of
    last, gone = last_readers(program), expiring(program)
    values: dict[int, np.ndarray] = {p.value: np.zeros(0) for p in program.inputs}
    made: dict[int, int] = {}
    for index, op in enumerate(program.ops):
        for number in op.inputs:
            if number in made:
                assert (values[number] == made[number]).all()
        if OP_KINDS[op.kind].communicates:
            buffers[index].out[:] = index
            values[op.output], made[op.output] = buffers[index].out, index
        else:
            # The worst case: every local op returns a view of its first input.
            source = op.inputs[0]
            values[op.output] = values[source]
            if source in made and op.kind in ("reshape", "transpose", "slice", "offset", "expand"):
                made[op.output] = made[source]
        for number in gone[index]:
            assert last[number] == index
            del values[number]
    assert all(port.value in values for port in program.outputs)
    outs = [id(b.out.base) for b in buffers.values()]
    assert len(set(outs)) < len(outs)
