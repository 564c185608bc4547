"""What a client of running parties gets of an answer, at every engine: no more than it needs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from serving import Digits, free_workers, serving
from torch import nn

import privserve as ps
from privserve import sharing
from privserve.bench.subjects import Subject
from privserve.engines import ENGINES
from privserve.fixedpoint import decode

TOLERANCE = 2e-3
QUERIES, ROWS = 4, 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[ps.Cluster]:
    with ps.Cluster(*free_workers()) as running:
        yield running


def net(*last: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), *last).eval()


def raw(client: ps.Client, x: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The words that the client joins, how many fraction bits they have, and how many are rounded.

    What any client may do with the shares that it is sent.
    """
    model, shares = client._asked(x)
    (output,) = model.description["outputs"]
    bits = model.description["output_fraction_bits"]
    return sharing.join([parts[0] for parts in shares]), bits, output["rounded_bits"]


@pytest.mark.parametrize("engine", ENGINES)
def test_of_a_served_softmaxs_logits_a_client_gets_differences_only(
    cluster: ps.Cluster, engine: str
) -> None:
    x = np.random.default_rng(5).uniform(-2, 2, (ROWS, 6)).astype(np.float32)
    with torch.no_grad():
        logits = net()(torch.from_numpy(x)).numpy().astype(np.float64)
        expected = torch.softmax(net()(torch.from_numpy(x)), -1).numpy()
    module = net(nn.Softmax(-1))
    with ps.load_model(module, input_shape=(6,)) as model, ps.Client(cluster) as client:
        model.share(cluster, engine=engine, input_range=(-2, 2))
        with serving(cluster, model):
            words = []
            for _ in range(QUERIES):
                elements, bits, rounded = raw(client, x)
                assert rounded == (bits - 17 if engine == "ottt" else 0)
                assert not (elements & ((1 << rounded) - 1)).any()
                differences = decode(elements - elements[:, :1], bits)
                np.testing.assert_allclose(
                    differences, logits - logits[:, :1], rtol=0, atol=TOLERANCE
                )
                words.append(elements)
            answer = client.query_model(x)
            logs = client.query_model(x, logits=True)
    # A constant of 64 bits: another one for every row of every query, and never near zero.
    firsts = np.stack(words)[:, :, 0].ravel()
    assert len(np.unique(firsts)) == QUERIES * ROWS
    assert np.diff(np.sort(firsts.astype(np.float64))).min() > 2.0**30
    assert np.abs(decode(firsts, bits)).min() > 10 * np.abs(logits).max()
    np.testing.assert_allclose(answer, expected, atol=TOLERANCE)
    np.testing.assert_allclose(logs, np.log(expected), atol=4 * TOLERANCE)
    np.testing.assert_allclose(np.exp(logs).sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("last", [[], [nn.Sigmoid()]], ids=["linear", "sigmoid"])
def test_other_heads_are_told_in_full_rounded_to_what_they_need(
    cluster: ps.Cluster, engine: str, last: list[nn.Module]
) -> None:
    x = np.random.default_rng(6).uniform(-2, 2, (ROWS, 6)).astype(np.float32)
    with torch.no_grad():
        logits = net()(torch.from_numpy(x)).numpy().astype(np.float64)
        expected = net(*last)(torch.from_numpy(x)).numpy()
    module = net(*last)
    with ps.load_model(module, input_shape=(6,)) as model, ps.Client(cluster) as client:
        model.share(cluster, engine=engine, input_range=(-2, 2))
        with serving(cluster, model):
            asked = [raw(client, x) for _ in range(QUERIES)]
            answer = client.query_model(x)
            before = client.query_model(x, logits=True)
    words = np.stack([elements for elements, _, _ in asked])
    _, bits, rounded = asked[0]
    assert not (words & ((1 << rounded) - 1)).any()
    np.testing.assert_allclose(
        decode(words, bits), np.tile(logits, (QUERIES, 1, 1)), atol=TOLERANCE
    )
    if rounded:
        assert (words[1:] != words[0]).any()  # the same query is rounded anew
    np.testing.assert_allclose(answer, expected, atol=TOLERANCE)
    np.testing.assert_allclose(before, logits, atol=TOLERANCE)


def test_the_sample_nets_probabilities_are_those_of_its_logits(
    digits: Digits, client: ps.Client
) -> None:
    x = digits.images[:20]
    logits = Subject("digits", digits.model.converted, x).logits(x)
    with digits.serving():
        answer = client.query_model(x)
        elements, bits, rounded = raw(client, x)
    assert rounded == bits - 17
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(answer, powers / powers.sum(-1, keepdims=True), atol=1e-4)
    centred = logits - logits[:, :1]
    np.testing.assert_allclose(decode(elements - elements[:, :1], bits), centred, atol=5e-3)
