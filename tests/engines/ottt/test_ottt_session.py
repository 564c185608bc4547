"""Whole sessions over an in-memory mesh: answers, transcripts, costs, failures."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from onnx import helper
from ottt_models import (
    MNIST_MODEL,
    float_logits,
    graph,
    mnist_images,
    mnist_weights,
    random_weights,
    tutorial_net,
)
from ottt_openings import online_values
from ottt_session import MemoryMesh, Session, Wire, uniform

from privserve.engines.ottt import dealer
from privserve.engines.ottt.costs import cost_of_op
from privserve.engines.ottt.ops.comparison import plan_comparison
from privserve.engines.ottt.pool import Pool
from privserve.engines.ottt.stats import Stats
from privserve.errors import ClusterError, InputError, PeerLost, TooManyRows
from privserve.program import LAN, PROFILES
from privserve.sharing import split

WEIGHTS = random_weights()
NET = tutorial_net(WEIGHTS)


def small_net() -> object:
    return graph(
        [
            helper.make_node("Gemm", ["x", "w"], ["g"]),
            helper.make_node("Relu", ["g"], ["r"]),
            helper.make_node("Gemm", ["r", "v"], ["y"]),
        ],
        {"w": np.eye(6) * 0.5, "v": np.ones((6, 3)) * 0.25},
        (6,),
    )


@pytest.mark.parametrize("parties", [2, 3, 4])
def test_the_tutorials_net_gives_the_float_logits(parties):
    x = uniform((5, 28, 28, 1), 0, 1)
    with Session(NET, parties) as session:
        (out,) = session.query(x)
    assert np.abs(out - float_logits(WEIGHTS, x)).max() < 1e-3


def test_batches_of_any_size_wrap_around_the_pool():
    x = uniform((40, 6), -8, 8)
    with Session(small_net(), options={"pool_queries": 7}) as session:
        for batch in (1, 3, 7, 5, 2, 40, 7):
            (out,) = session.query(x[:batch])
            expected = np.maximum(x[:batch] * 0.5, 0).sum(1, keepdims=True) * 0.25
            assert np.abs(out - expected).max() < 2e-3


def bending_net() -> object:
    """A hidden tanh, a product of branches with a factor per channel, a lookup that is cut."""
    return graph(
        [
            helper.make_node("Tanh", ["x"], ["t"]),
            helper.make_node("GlobalAveragePool", ["t"], ["g"]),
            helper.make_node("Mul", ["x", "g"], ["m"]),
            helper.make_node("Elu", ["m"], ["e"]),
            helper.make_node("Relu", ["e"], ["y"]),
        ],
        {},
        (3, 4, 4),
    )


def guarded_net() -> object:
    """So deep that no sound bound fits: its later comparisons are guarded."""
    generator = np.random.default_rng(3)
    nodes, constants, last = [], {}, "x"
    for i in range(30):
        constants[f"w{i}"] = generator.normal(size=(16, 16)) * 0.35
        nodes += [
            helper.make_node("Gemm", [last, f"w{i}"], [f"g{i}"], name=f"dense {i}"),
            helper.make_node("Relu", [f"g{i}"], [f"r{i}"], name=f"relu {i}"),
        ]
        last = f"r{i}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return graph(nodes, constants, (16,))


@pytest.mark.parametrize(
    ("net", "exchanges"), [(NET, 9), (bending_net(), None), (guarded_net(), 61)]
)
def test_what_goes_over_the_wire_is_what_the_program_states(net, exchanges):
    with Session(net, 3) as session:
        online = session.wires["online"]
        before = len(online.sent)
        shape = session.program.values[session.program.inputs[0].value].shape
        session.query(uniform((4, *shape), 0, 1))
        costs = [cost_of_op(session.program, op) for op in session.program.ops]
        sent = [len(f) for a, b, f in online.sent[before:] if (a, b) == (0, 1)]
        assert len(sent) == sum(c.exchanges for c in costs)
        assert exchanges in (None, len(sent))
        assert sum(sent) == 4 * sum(c.bytes_online for c in costs) + 8  # the pack number
        assert session.computes[0].stats.exchanges == len(sent)
        assert bool(session.program.guards) == (exchanges == 61)
    dealt = [f for a, b, f in session.wires["deal"].sent if a == 3 and b == 0][1:]
    per_pack = sum(c.bytes_dealt for c in costs)
    assert sum(map(len, dealt)) == per_pack * session.computes[0].pool.made


@pytest.mark.parametrize("offset", [8, 9])
def test_frames_may_come_in_one_view_again_and_again(offset, monkeypatch):
    """As channels hand them out; at an odd address they have to be copied every time."""

    class ReusingMesh(MemoryMesh):
        def exchange(self, payload):
            self.__dict__.setdefault("views", {})
            received = super().exchange(payload)
            for peer, frame in enumerate(received):
                if frame is not None:
                    new = memoryview(bytearray(offset + len(frame)))[offset:]
                    view = self.views.setdefault((peer, len(frame)), new)
                    view[:] = frame
                    received[peer] = view
            return received

    monkeypatch.setattr(Wire, "mesh", lambda wire, rank: ReusingMesh(wire, rank))
    with Session(NET) as session:
        for _ in range(3):
            x = uniform((1, 28, 28, 1), 0, 1)
            (out,) = session.query(x)
            assert np.abs(out - float_logits(WEIGHTS, x)).max() < 1e-3


def test_the_costs_of_the_tutorials_net_stay_within_their_limits():
    with Session(NET) as session:
        costs = [cost_of_op(session.program, op) for op in session.program.ops]
        assert sum(c.bytes_online for c in costs) <= 43_000
        assert sum(c.bytes_dealt for c in costs) <= 180_000
        assert sum(c.exchanges for c in costs) <= 9
        assert session.computes[0].pool.packs.nbytes / session.computes[0].pool.slots <= 600_000


def test_the_dealer_receives_pack_credits_and_nothing_else():
    with Session(NET, 3) as session:
        session.query(uniform((60, 28, 28, 1), 0, 1))
    received = [(a, f) for a, b, f in session.wires["deal"].sent if b == 3]
    assert received
    assert all(a == 0 and len(f) == dealer.CREDIT.size for a, f in received)
    assert not any(3 in (a, b) for a, b, _ in session.wires["online"].sent)


def exchanges_of(program):
    """(count, bits, xor) of all that is opened in a run, in order."""
    for op in program.ops:
        count, bits = program.values[op.inputs[0]].size, program.values[op.output].bits
        if op.kind == "linear":
            yield count, bits, False
        elif op.kind in ("relu", "relu_linear"):
            plan = plan_comparison(op.attributes["comparison_bits"])
            yield count, plan.comparison_bits, False
            yield count, plan.opened_bits, True
            if op.kind == "relu_linear":
                yield from ((count, bits, False),) * 2


@pytest.mark.parametrize("exchange_bytes", [0, LAN])
@pytest.mark.parametrize("x", [np.zeros((60, 6)), np.full((60, 6), 7.9)])
def test_every_share_and_every_opened_value_is_made_of_fair_coins(x, exchange_bytes, monkeypatch):
    monkeypatch.setitem(PROFILES, "lan", exchange_bytes)
    with Session(small_net()) as session:
        online = session.wires["online"]
        session.query(x)
        frames = [[f for a, _, f in online.sent if a == rank] for rank in (0, 1)]
        opened = [list(online_values(session.program, f, [60])) for f in frames]
        formats = list(exchanges_of(session.program))
    assert [len(f) - 1 for f in frames] == [4 if exchange_bytes == 0 else 3] * 2
    assert [(o.count, o.bits, o.xor) for o, _ in opened[0]] == formats
    for (opening, one), (_, other) in zip(*opened, strict=True):
        total = one ^ other if opening.xor else one + other
        for values in (one, other, total):
            ones = [((values >> bit) & 1).mean() for bit in range(opening.bits)]
            assert max(abs(share - 0.5) for share in ones) < 0.5 * 5.5 / np.sqrt(values.size)


def test_two_sessions_of_one_model_share_no_key_and_no_pack():
    x = uniform((3, 6), -8, 8)
    model = small_net()
    transcripts = []
    for _ in range(2):
        with Session(model) as session:
            session.query(x)
            deal = [f for a, _, f in session.wires["deal"].sent if a == 2]
            online = [f for _, _, f in session.wires["online"].sent]
            transcripts.append((deal, online, session.computes[1].pool.packs[:3].copy()))
    (deal1, online1, packs1), (deal2, online2, packs2) = transcripts
    keys = {f[i : i + 32] for f in deal1[:2] + deal2[:2] for i in (0, 32)}
    assert len(keys) == 8
    assert not set(deal1) & set(deal2)
    assert not set(online1) & set(online2)
    assert not np.intersect1d(packs1, packs2).size


def test_all_packs_of_a_session_differ_and_no_number_is_handed_out_twice():
    with Session(small_net(), options={"pool_queries": 8}) as session:
        pool = session.computes[1].pool
        taken, seen = [], []
        original = pool.take

        def take(count):
            first, waited = original(count)
            taken.extend(range(first, first + count))
            seen.extend(pool.packs[(first + k) % pool.slots].tobytes() for k in range(count))
            return first, waited

        pool.take = take
        for batch in (1, 5, 8, 3, 8, 8, 2):
            session.query(uniform((batch, 6), -1, 1))
    assert taken == list(range(35))
    assert len(set(seen)) == 35


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_party_that_dies_between_exchanges_voids_the_session(after):
    with Session(small_net(), 3) as session:
        mesh = session.computes[1]._mesh
        original, count = mesh.exchange, [0]

        def exchange(payload):
            if count[0] == after:
                for wire in session.wires.values():
                    wire.cut(1)
            count[0] += 1
            return original(payload)

        mesh.exchange = exchange
        with pytest.raises(PeerLost):
            session.query(uniform((2, 6), -1, 1))
        session.failures.clear()
        used = [c.stats.packs_used for c in session.computes]
        with pytest.raises(ClusterError, match="share the model again"):
            session.computes[0].run([np.zeros((1, 6), np.int64)])
        assert [c.stats.packs_used for c in session.computes] == used


def test_parties_whose_packs_are_out_of_step_refuse_to_go_on():
    with Session(small_net()) as session:
        session.computes[1].pool.take(1)
        with pytest.raises(ClusterError, match="out of step"):
            session.query(uniform((1, 6), -1, 1))
        session.failures.clear()


def test_a_wrong_shape_is_refused_before_a_pack_is_spent():
    with Session(small_net()) as session:
        with pytest.raises(InputError):
            session.computes[0].run([np.zeros((1, 7), np.int64)])
        assert session.computes[0].stats.packs_used == 0


def test_the_pool_never_holds_more_than_its_slots_and_refills_after_use():
    with Session(small_net(), options={"pool_queries": 12}) as session:
        for _ in range(4):
            session.query(uniform((10, 6), -1, 1))
        pool = session.computes[0].pool
        deadline = time.monotonic() + 10
        while pool.made < 48 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 48 <= pool.made <= 40 + pool.slots
        assert pool.free() >= 0


def test_a_bounded_memory_bounds_the_slots():
    with Session(NET, options={"pool_bytes": 2 << 20, "pool_queries": 512}) as session:
        assert session.computes[0].pool.packs.nbytes <= 2 << 20


def test_a_dealer_that_leaves_is_noticed_once_the_packs_are_gone():
    session = Session(small_net(), options={"pool_queries": 8})
    session.wires["deal"].cut(2)
    with pytest.raises((PeerLost, ClusterError)):
        session.query(uniform((40, 6), -1, 1))
    session.failures.clear()
    session.close()


def test_a_taker_waits_until_packs_are_made():
    pool = Pool(4, 2)
    got = []
    taker = threading.Thread(target=lambda: got.append(pool.take(3)))
    taker.start()
    assert pool.room(2, 0) == 4
    pool.publish(2)
    time.sleep(0.05)
    assert not got
    pool.publish(1)
    taker.join(5)
    assert got == [(0, True)]
    assert pool.take(0) == (3, False)


@pytest.mark.skipif(not MNIST_MODEL.exists(), reason="the tutorial's trained model is not here")
def test_mnist_predictions_are_those_of_the_float_model():
    weights = mnist_weights()
    images, _ = mnist_images()
    with Session(tutorial_net(weights)) as session:
        (out,) = session.query(images[:60])
    expected = float_logits(weights, images[:60])
    assert np.abs(out - expected).max() < 1e-3
    assert np.array_equal(out.argmax(1), expected.argmax(1))


@pytest.mark.slow
@pytest.mark.skipif(not MNIST_MODEL.exists(), reason="the tutorial's trained model is not here")
def test_all_mnist_test_images_keep_their_predictions():
    weights = mnist_weights()
    images, labels = mnist_images()
    wrong = np.zeros(2)
    worst = 0.0
    with Session(tutorial_net(weights), options={"pool_queries": 128}) as session:
        for at in range(0, len(images), 100):
            x = images[at : at + 100]
            (out,) = session.query(x)
            expected = float_logits(weights, x)
            worst = max(worst, float(np.abs(out - expected).max()))
            for i, logits in enumerate((out, expected)):
                wrong[i] += (logits.argmax(1) != labels[at : at + 100]).sum()
    print(f"largest error {worst:.2e}, wrong {wrong}")
    assert worst < 5e-3
    assert wrong[0] == wrong[1]


def test_the_stats_count_packs_bytes_and_time():
    with Session(small_net()) as session:
        session.query(uniform((3, 6), -1, 1))
        stats = session.computes[0].stats
    assert isinstance(stats, Stats)
    assert stats.packs_used == 3
    assert stats.bytes_sent == stats.bytes_received > 0
    assert 0 < stats.exchange_seconds <= stats.run_seconds


@pytest.mark.parametrize("short", [0, 1, 2])
def test_a_party_without_memory_for_a_batch_declines_it_and_the_session_goes_on(short, monkeypatch):
    """All parties alike, so that packs stay in step; smaller batches are answered as before."""
    with Session(NET, 3, input_range=(0, 1)) as session:
        poor = session.computes[short]
        bind = type(poor)._evaluation

        def scarce(self, batch):
            return None if self is poor and batch > 3 else bind(self, batch)

        monkeypatch.setattr(type(poor), "_evaluation", scarce)
        x = uniform((6, 28, 28, 1), 0, 1)
        encoded = np.rint(x * 2.0**session.program.fraction_bits).astype(np.int64)
        told: list[BaseException] = []

        def ask(rank: int) -> None:
            try:
                session.computes[rank].run([split(encoded, 3)[rank]])
            except TooManyRows as refusal:
                told.append(refusal)

        before = session.query(x[:3])[0]
        for declined in range(1, 3):
            session.everyone(ask)
            assert len(told) == 3 * declined
            (got,) = session.query(x[:3])
            assert np.abs(got - before).max() < 5e-3
        assert "6 rows" in str(told[0])
        used = {compute.stats.packs_used for compute in session.computes}
        assert used == {3 * 3 + 2 * 6}
