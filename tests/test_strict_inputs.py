"""A client that makes its shares itself: with strict inputs it learns what an input teaches.

Served by parties, with both engines. Two models differ by 2^-18 in one weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from reference_program import signed
from serving import SAMPLE_MODEL, free_workers, serving, small_model
from torch import nn

import privserve as ps
from privserve import launch, sharing
from privserve.credentials import Limits
from privserve.engines import ENGINES
from privserve.fixedpoint import RingArray, decode, encode
from privserve.lane_client import LaneClient
from privserve.lift import read_lift
from privserve.prg import Prg
from privserve.program import Lift
from privserve.query_frames import Kind

BITS = 18
SMALLEST = 2.0**-18
TOLERANCE = 2e-3
HONEST = np.linspace(-8, 8, 40).reshape(10, 4)


def net(change: float) -> ps.SecureModel:
    """Dense, ReLU, dense; `change` is added to one weight of the first layer."""
    torch.manual_seed(6)
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        module[0].weight[0, 0] += change
        module[0].bias[0] += 20.0  # its unit is on for every input, so that the change is seen
    return ps.load_model(module, input_shape=(4,), name="attacked")


def words() -> RingArray:
    """Inputs that our client would never send: all powers of two, and any ring elements."""
    alone = np.zeros((128, 4), np.int64)
    alone[:64, 0] = np.left_shift(np.int64(1), np.arange(64))
    alone[64:, 0] = alone[:64, 0] - 1
    return np.concatenate([alone, -alone, Prg().int64((128, 4))])


def ask(client: ps.Client, shares: list[RingArray]) -> np.ndarray:
    """The answer to shares of the caller's own making, one per compute party."""
    model, way = client.read_model(), client._cells[0].open()
    assert isinstance(way, LaneClient)
    (tensor,) = model.description["inputs"]
    split = [{tensor["name"]: share} for share in shares]
    payloads = client._cells[0].payloads(model, os.urandom(16), split, 60)
    given = client._cells[0].read(
        model, way.finish(way.begin(Kind.QUERY, payloads), 60), len(shares[0])
    )
    answers = [parts[0] for parts in given]
    return decode(sharing.join(answers), model.description["output_fraction_bits"])


def taken_for(engine: str, lift: Lift, element: int) -> int:
    """What a strict input is lifted to, by the public formulas of docs/protocol.md."""
    moved = element - lift.start
    if engine == "ottt":
        return lift.start + max(signed(moved, lift.bits + 1), 0)
    return lift.start + moved % 2**lift.bits


@dataclass
class Asked:
    """What one served model answered."""

    hostile: np.ndarray
    lopsided: np.ndarray
    """To the same elements, all of which one party got alone, beside a share of zeros."""
    honest: np.ndarray


@dataclass
class Attack:
    """An engine's answers, by whether inputs are strict and which of the models it is."""

    sent: RingArray
    lifted: np.ndarray
    answers: dict[tuple[bool, float], Asked]

    def meant(self, change: float) -> np.ndarray:
        """The float model's answers to what the elements are lifted to."""
        return np.asarray(net(change).converted.predict(self.lifted))


@pytest.fixture(scope="module")
def cluster() -> Iterator[ps.Cluster]:
    with ps.Cluster(*free_workers()) as running:
        yield running


@pytest.fixture(scope="module", params=ENGINES)
def attack(request: pytest.FixtureRequest, cluster: ps.Cluster) -> Attack:
    engine, sent, answers = request.param, words(), {}
    for is_strict in (True, False):
        for change in (0.0, SMALLEST):
            with net(change) as model, ps.Client(cluster, timeout=120) as client:
                model.share(cluster, engine=engine, fraction_bits=BITS, strict_inputs=is_strict)
                with serving(cluster, model):
                    answers[is_strict, change] = Asked(
                        ask(client, sharing.split(sent, 2)),
                        ask(client, [sent, np.zeros_like(sent)]),
                        client.query_model(HONEST),
                    )
    public = net(0.0).prepare(engine, fraction_bits=BITS, strict_inputs=True).description
    lift = read_lift(public["lift"])
    assert lift is not None
    units = [[taken_for(engine, lift, int(v)) for v in row] for row in sent]
    return Attack(sent, np.array(units) * 2.0 ** -public["fraction_bits"], answers)


def test_the_answer_to_any_shares_is_that_to_an_input_within_twice_the_range(
    attack: Attack,
) -> None:
    assert np.abs(attack.lifted).max() <= 16
    for change in (0.0, SMALLEST):
        asked, meant = attack.answers[True, change], attack.meant(change)
        for got in (asked.hostile, asked.lopsided):
            np.testing.assert_allclose(got, meant, rtol=0, atol=TOLERANCE)


def test_two_models_that_hardly_differ_are_told_apart_by_wrapped_inputs_unless_these_are_strict(
    attack: Attack,
) -> None:
    one, other = (attack.answers[True, change].hostile for change in (0.0, SMALLEST))
    assert np.abs(one - other).max() < TOLERANCE
    one, other = (attack.answers[False, change].hostile for change in (0.0, SMALLEST))
    assert np.abs(one - other).max() > 10 * TOLERANCE
    assert np.abs(one - attack.meant(0.0)).max() > 0.5


def test_honest_queries_are_answered_as_without(attack: Attack) -> None:
    strict, plain = (attack.answers[is_strict, 0.0].honest for is_strict in (True, False))
    np.testing.assert_allclose(strict, plain, rtol=0, atol=1e-4)
    np.testing.assert_allclose(strict, net(0.0).converted.predict(HONEST), rtol=0, atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_are_strict_where_everybody_may_ask_unless_the_owner_says_otherwise(
    engine: str, cluster: ps.Cluster
) -> None:
    """As the parties have it: by what they answer to 2^40 units, a number of 2^24 and more."""
    far = encode(np.zeros((1, 4)), 0)
    far[0, 0] = 1 << 40
    ways: list[tuple[Limits | None, bool | None, bool]] = [
        (None, None, False),
        (None, True, True),
        (Limits(), None, True),
        (Limits(), False, False),
    ]
    with small_model() as model:
        for everybody, asked_for, is_strict in ways:
            said: list[str] = []
            model.share(
                cluster,
                engine=engine,
                everybody=everybody,
                strict_inputs=asked_for,
                report=said.append,
            )
            assert any("inputs are strict" in line for line in said) == is_strict
            with serving(cluster, model), ps.Client(cluster, timeout=120) as client:
                got = ask(client, sharing.split(far, 2))
            assert (np.abs(got).max() < 16) == is_strict


@pytest.mark.parametrize(
    ("options", "is_strict"),
    [
        ([], False),
        (["--strict-inputs"], True),
        (["--open"], True),
        (["--open", "--no-strict-inputs"], False),
        (["--open", "--engine", "crypten"], True),
    ],
)
def test_a_dry_run_says_whether_inputs_would_be_strict(
    options: list[str], is_strict: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["--model", str(SAMPLE_MODEL), "--dry-run", *options]) == 0
    out = capsys.readouterr().out
    assert ("inputs are strict: whatever a client sends" in out) == is_strict
