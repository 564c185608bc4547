"""Attacks on CrypTen's dealer: each was possible once, and is run here to see it fail."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from connected import Parties, at_once
from hypothesis import given
from hypothesis import strategies as st
from parties import answer_batches

import converters
from privserve import sharing
from privserve.bench.processes import Member, PartyProcesses
from privserve.engines import Prepared
from privserve.engines.crypten import engine as crypten_engine
from privserve.engines.crypten.compat import LANE, receive, receive_key
from privserve.engines.crypten.dealing import (
    BILINEAR_OPS,
    MAX_ELEMENTS,
    OPERANDS,
    Request,
    agreed,
    format_request,
    read_request,
)
from privserve.engines.crypten.session import deal_session
from privserve.errors import ClusterError, PeerLost
from privserve.fixedpoint import encode
from privserve.party.lane_mesh import LaneMesh
from privserve.prg import Prg


def ask_zero(words: int) -> dict[str, Any]:
    """A product that is zero, so that its correction is minus the sum of the others' words."""
    return {"function": "additive", "args": [[words, 0], [0, 1], "matmul"], "kwargs": {}}


def ask_bits(words: int) -> dict[str, Any]:
    """A bit from a byte per party, less the others' next words: these, but for one unit."""
    return {"function": "B2A", "args": [[words + -words % 8]], "kwargs": {}}


ATTACKS = {"a product of nothing": ask_zero, "bits in another ring": ask_bits}


class Snoop:
    """Party 0's mesh: once armed, it asks the dealer for the words that hide the others' shares.

    The others are about to take a triple of [B, K] x [K, M] from their streams, a, b and c. Asked
    for something else instead, the dealer answers with their next words: with a and b, which mask
    what they open, and with c, from which party 0 works out the answer that it would have got, so
    that nobody notices.
    """

    def __init__(self, mesh: LaneMesh, attack: str) -> None:
        self.mesh, self.rank, self.n = mesh, mesh.rank, mesh.n
        self.armed = False
        self.seen: tuple[np.ndarray, np.ndarray] | None = None
        """The others' shares of the input and of the weights, summed."""
        self._ask = ATTACKS[attack]
        self._stream: Prg | None = None
        self._mine: list[np.ndarray] = []
        self._theirs: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mesh, name)

    def send(self, peer: int, *buffers: Any) -> None:
        if peer != self.n:
            return self.mesh.send(peer, *buffers)
        request = json.loads(b"".join(bytes(b) for b in buffers))
        assert self._stream is not None
        if request["function"] == "additive":
            self._shapes = request["args"][:2]
            self._mine = [self._stream.int64(shape) for shape in self._shapes]
            if self.armed:
                (b, k), (_, m) = self._shapes
                request = self._ask(b * k + k * m + b * m)
        self.mesh.send(peer, json.dumps(request).encode())

    def recv(self, peer: int) -> memoryview:
        frame = self.mesh.recv(peer)
        if peer == self.n and self._stream is None:
            self._stream = Prg(bytes(frame))
        elif peer == self.n and self.armed and not self._theirs:
            left, right = self._mine
            words = -np.frombuffer(frame, np.int64)
            if self._ask is ask_bits:  # a byte of each party for every element came first
                words = np.concatenate([np.zeros(len(words) // 8, np.int64), words])
            product = np.zeros((len(left), right.shape[1]), np.int64)
            ends = np.cumsum([left.size, right.size, product.size])
            a, b, c, _ = np.split(words, ends)
            self._theirs = [a.reshape(left.shape), b.reshape(right.shape)]
            product = (left + self._theirs[0]) @ (right + self._theirs[1])
            return memoryview(bytearray((product - c.reshape(product.shape)).tobytes()))
        return frame

    def exchange(self, payload: Any) -> list[memoryview | None]:
        frames = self.mesh.exchange(payload)
        if self.armed and self._theirs and self.seen is None:
            opened = sum(np.frombuffer(f, np.int64) for f in frames if f is not None)
            x, w = np.split(opened, [self._theirs[0].size])
            masks = self._theirs
            self.seen = x.reshape(masks[0].shape) + masks[0], w.reshape(masks[1].shape) + masks[1]
        return frames


def answer_and_snoop(member: Member) -> None:
    """A party's process, as `answer_batches`; alice snoops, and tells what she learnt."""
    if member.name != "alice":
        return answer_batches(member)
    (attack, batches), snoop = member.pipe.recv(), None
    try:
        snoop = Snoop(member.open("test", 60)[LANE], attack)
        compute = member.compute({LANE: snoop})
        snoop.armed = True
        for batch in batches:
            compute.run(batch)
        member.pipe.send(("done", snoop.seen, []))
    except BaseException:
        member.pipe.send(("failed", snoop and snoop.seen, traceback.format_exc()))


def linear() -> Prepared:
    torch.manual_seed(1)
    converted = converters.convert(torch.nn.Linear(4, 2), input_shape=(4,))
    return crypten_engine.prepare(converted.onnx)


@pytest.mark.parametrize(
    ("attack", "compute_parties"),
    [
        ("a product of nothing", 2),
        pytest.param("bits in another ring", 2, marks=pytest.mark.slow),
        pytest.param("a product of nothing", 3, marks=pytest.mark.slow),
    ],
)
def test_party_0_cannot_ask_for_the_words_that_hide_its_peers_shares(
    attack: str, compute_parties: int
) -> None:
    """It learnt query and weights: all to the last bit, or most of them up to one unit."""
    prepared = linear()
    x = encode(np.random.default_rng(2).uniform(-1, 1, (3, 4)), 16)
    shares = sharing.split(x, compute_parties)
    with PartyProcesses(prepared, compute_parties + 1, answer_and_snoop) as processes:
        processes.start_all(prepared.parameters)
        for rank, name in enumerate(processes.names):
            batches = [] if name == "carol" else [[shares[rank]]]
            processes.tell(name, (attack, batches) if name == "alice" else batches)
        heard = {name: processes.hear(name, 60) for name in processes.names}
    if heard["alice"][1] is not None:
        missed = np.abs(heard["alice"][1][0] + shares[0] - x)
        pytest.fail(f"alice saw {(missed <= 1).mean():.0%} of the query")
    assert heard["alice"][0] == "failed"
    state, why, _ = heard["carol"]
    assert state == "failed"
    assert "ask the dealer for different things (alice: " in why
    assert "additive (matmul) of [3, 4] and [4, 2]" in why, "it says what the others are at"


# -- what is no request, and who differs ----------------------------------------------------


def frame(function: Any, args: Any, **kwargs: Any) -> bytes:
    return json.dumps({"function": function, "args": args, "kwargs": kwargs}).encode()


IMAGE, KERNEL = [1, 2, 8, 8], [3, 2, 3, 3]
REFUSED = {
    "nothing": b"",
    "no JSON": b"\xff\xfe{",
    "a deep nest": b"[" * 4096,
    "no object": b"[]",
    "a key more": b'{"function": "square", "args": [[1]], "kwargs": {}, "device": "cpu"}',
    "an unknown function": frame("get_generators", [[1]]),
    "a method": frame("__init__", []),
    "a function that is no text": frame(["square"], [[1]]),
    "arguments that are no list": frame("square", {"size": 1}),
    "a size that is no list": frame("square", [4]),
    "a size too many": frame("square", [[1], [1]]),
    "2^60 elements": frame("square", [[1 << 30, 1 << 30]]),
    "one element too many": frame("B2A", [[MAX_ELEMENTS + 1]]),
    "a product of 2^60 elements": frame("additive", [[1 << 28, 1], [1, 1 << 28], "matmul"]),
    "2^30 by broadcasting": frame("binary", [[1 << 15, 1], [1 << 15]]),
    "no elements": frame("additive", [[14, 0], [0, 1], "matmul"]),
    "a negative size": frame("wraps", [[-1]]),
    "a size of true": frame("wraps", [[True]]),
    "a size of 1.0": frame("wraps", [[1.0]]),
    "nine axes": frame("wraps", [[1] * 9]),
    "another op of torch": frame("additive", [[1], [1], "save"]),
    "an op where none belongs": frame("binary", [[1], [1], "mul"]),
    "no op": frame("additive", [[1], [1]]),
    "sizes that do not fit": frame("additive", [[2, 3], [4, 5], "matmul"]),
    "an unknown setting": frame("additive", [IMAGE, KERNEL, "conv2d"], bias=1),
    "a setting of another op": frame("additive", [[1], [1], "mul"], stride=1),
    "a setting of no op": frame("square", [[1]], size=2),
    "a stride of zero": frame("additive", [IMAGE, KERNEL, "conv2d"], stride=0),
    "a setting that is a text": frame("additive", [IMAGE, KERNEL, "conv2d"], padding="same"),
    "a setting per axis of none": frame("additive", [IMAGE, KERNEL, "conv2d"], stride=[]),
    "padding beyond measure": frame("additive", [IMAGE, KERNEL, "conv2d"], padding=1 << 40),
    "padding to 2^34 elements": frame("additive", [IMAGE, KERNEL, "conv2d"], padding=1 << 16),
    "groups that do not divide": frame("additive", [IMAGE, KERNEL, "conv2d"], groups=3),
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused_before_anything_is_drawn(sent: bytes) -> None:
    with pytest.raises(ClusterError, match="the dealer"):
        read_request(sent)


numbers = st.integers(-2, 9) | st.sampled_from([1 << 28, 1 << 60, 1 << 70])
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
sizes = st.lists(st.lists(numbers | anything, max_size=5), max_size=3)
settings = st.dictionaries(
    st.sampled_from(["stride", "padding", "dilation", "groups", "out"]),
    numbers | st.lists(numbers, max_size=3) | anything,
    max_size=3,
)


@given(
    st.sampled_from([*OPERANDS, "deal"]) | anything,
    st.tuples(sizes, st.sampled_from([*BILINEAR_OPS, "save", None])) | anything,
    settings | anything,
)
def test_whatever_is_sent_is_a_request_that_can_be_dealt_or_is_refused(
    function: Any, args: Any, kwargs: Any
) -> None:
    if isinstance(args, tuple):
        args = [*args[0], args[1]] if args[1] else args[0]
    sent = json.dumps({"function": function, "args": args, "kwargs": kwargs}).encode()
    try:
        request = read_request(sent)
    except ClusterError:
        return
    assert read_request(bytes_of(request)) == request
    assert all(1 <= np.prod(size) <= MAX_ELEMENTS for size in (*request.sizes, request.shape))


def bytes_of(request: Request) -> bytes:
    return format_request(request.function, request.sizes, request.op, request.options)


REQUESTS = [
    Request("additive", ((2, 3), (3, 4)), "matmul"),
    Request("additive", ((2, 3), (1, 3)), "mul"),
    Request("additive", ((1, 4, 8), (6, 2, 3)), "conv1d", {"stride": 2, "groups": 2}),
    Request("additive", ((1, 2, 8, 8), (3, 2, 3, 3)), "conv2d", {"padding": [1, 0]}),
    Request("square", ((5,),)),
    Request("binary", ((2, 3), (2, 3))),
    Request("wraps", ((4,),)),
    Request("B2A", ((2, 7),)),
]


def test_a_party_that_differs_is_named_with_what_it_asks_for() -> None:
    same, other = bytes_of(REQUESTS[0]), bytes_of(REQUESTS[4])
    names = ("alice", "bob", "dave")
    assert agreed([same] * 3, names) == REQUESTS[0]
    with pytest.raises(
        ClusterError,
        match=r"\(alice and dave: additive \(matmul\) of \[2, 3\] and \[3, 4\]; "
        r"bob: square of \[5\]\)",
    ):
        agreed([same, other, same], names)
    with pytest.raises(ClusterError, match="bob: no request that it knows") as raised:
        agreed([same, b"a text of bob's", same], names)
    assert "text of bob" not in str(raised.value)


# -- the dealer over real channels ----------------------------------------------------------


@pytest.fixture(params=[2, 3])
def parties(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parties]:
    connected = Parties(tmp_path, request.param + 1)
    connected.open()
    yield connected
    connected.close()


def deal(parties: Parties) -> str:
    """Be the dealer until the parties leave; returns why it ended."""
    try:
        deal_session(parties.mesh(len(parties.lanes) - 1))
    except ClusterError as error:
        parties.mesh(len(parties.lanes) - 1).close()
        return f"{type(error).__name__}: {error}"


def padded(request: Request) -> bytes:
    """A request as large as one may be: JSON may end in blanks."""
    return bytes_of(request).ljust(4096)


def test_a_party_far_ahead_of_the_dealer_holds_nobody_up(parties: Parties) -> None:
    """The others send 12 MB of requests, more than sockets hold, before party 0 sends one."""
    n, count = len(parties.lanes) - 1, 3000
    square = Request("square", ((2,),))

    def run_ahead(rank: int) -> bytes:
        key = receive_key(parties.mesh(rank), n)
        for _ in range(count):
            parties.mesh(rank).send(n, padded(square))
        return key

    def follow() -> tuple[bytes, list[np.ndarray]]:
        mesh = parties.mesh(0)
        key, corrections = receive_key(mesh, n), []
        for _ in range(count):
            mesh.send(n, padded(square))
            corrections.append(receive(mesh, n, (2,)).numpy())
        mesh.close()
        return key, corrections

    ahead = [lambda rank=rank: run_ahead(rank) for rank in range(1, n)]
    why, (own, corrections), *keys = at_once([lambda: deal(parties), follow, *ahead])
    assert why.startswith("PeerLost")
    streams = [Prg(key) for key in (own, *keys)]
    for correction in corrections:
        r = sum(stream.int64(2) for stream in streams)
        assert (correction + sum(s.int64(2) for s in streams[1:]) == r * r).all()


def test_nothing_is_dealt_where_a_party_is_at_something_else(parties: Parties) -> None:
    n = len(parties.lanes) - 1

    def ask(rank: int, request: Request) -> None:
        receive_key(parties.mesh(rank), n)
        parties.mesh(rank).send(n, bytes_of(request))

    def ask_and_wait() -> str:
        ask(0, REQUESTS[0])
        with pytest.raises(PeerLost) as raised:
            parties.mesh(0).recv(n)
        return str(raised.value)

    others = [lambda rank=rank: ask(rank, REQUESTS[4]) for rank in range(1, n)]
    why, *_ = at_once([lambda: deal(parties), ask_and_wait, *others])
    assert why.startswith("ClusterError: the compute parties ask the dealer for different things")


def test_the_dealer_takes_no_frame_larger_than_a_request(parties: Parties) -> None:
    n = len(parties.lanes) - 1

    def flood() -> None:
        receive_key(parties.mesh(0), n)
        parties.mesh(0).send(n, bytes(4097))

    why, _ = at_once([lambda: deal(parties), flood])
    assert why.startswith("BadFrame")
    assert "alice" in why
    assert "4097 bytes, more than the 4096" in why


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_the_shape_of_what_party_0_gets_is_known_beforehand(request_: Request) -> None:
    assert read_request(bytes_of(request_)).shape == request_.shape
    if request_.op:
        tensors = [torch.zeros(size, dtype=torch.int64) for size in request_.sizes]
        computed = getattr(torch, request_.op)(*tensors, **request_.options)
        assert request_.shape == tuple(computed.shape)
