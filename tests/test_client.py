"""The client against running parties, and its checks before anything is sent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving import Digits, make_config, wait_until

import privserve as ps
from privserve.activations import apply_activation
from privserve.calls import raise_for_answer


def predicted(digits: Digits, rows: slice) -> np.ndarray:
    return digits.model.converted.predict(digits.images[rows])


def log_probabilities_of(digits: Digits, rows: slice) -> np.ndarray:
    """What goes into the softmax, up to a constant."""
    return np.log(predicted(digits, rows))


def test_the_answer_is_what_keras_would_predict(digits: Digits, client: ps.Client) -> None:
    with digits.serving():
        answer = client.query_model(digits.images[:3])
    assert answer.shape == (3, 10)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, predicted(digits, slice(3)), atol=2e-2)
    np.testing.assert_allclose(answer.sum(-1), 1, atol=1e-5)
    assert (answer.argmax(-1) == digits.labels[:3]).all()


def test_logits_before_a_softmax_are_log_probabilities(digits: Digits, client: ps.Client) -> None:
    with digits.serving():
        logits = client.query_model(digits.images[:3], logits=True)
    assert logits.dtype == np.float32
    assert (logits <= 0).all()
    np.testing.assert_allclose(np.exp(logits.astype(np.float64)).sum(-1), 1, atol=1e-6)
    expected = log_probabilities_of(digits, slice(3))
    likely = expected > -10
    np.testing.assert_allclose(logits[likely], expected[likely], atol=5e-2)


def test_the_future_of_a_query_gives_its_answer(digits: Digits, client: ps.Client) -> None:
    with digits.serving():
        futures = [client.query_model_async(digits.images[i : i + 1]) for i in range(4)]
        answers = np.concatenate([future.result(30) for future in futures])
    np.testing.assert_allclose(answers, predicted(digits, slice(4)), atol=2e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8, bool])
def test_any_real_dtype_is_taken(digits: Digits, client: ps.Client, dtype: type) -> None:
    x = (digits.images[:1] > 0.5).astype(dtype)
    with digits.serving():
        answer = client.query_model(x)
    expected = digits.model.converted.predict(x.astype(np.float32))
    np.testing.assert_allclose(answer, expected, atol=2e-2)


def test_lists_and_dicts_are_taken_as_arrays_are(digits: Digits, client: ps.Client) -> None:
    x = digits.images[:1]
    with digits.serving():
        by_name = client.query_model({digits.model.converted.inputs[0].name: x})
        nested = client.query_model(x.tolist())
    np.testing.assert_allclose(by_name, nested, atol=1e-2)


def test_a_list_of_one_array_is_that_array_as_for_keras(digits: Digits, client: ps.Client) -> None:
    with digits.serving():
        answer = client.query_model([digits.images[:2]])
    np.testing.assert_allclose(answer, predicted(digits, slice(2)), atol=2e-2)


def test_a_client_is_made_from_a_file_or_from_addresses(digits: Digits) -> None:
    config = digits.cluster.config
    addresses = [p.address for p in config.compute]
    with (
        digits.serving(),
        ps.Client(config.path) as first,
        ps.Client(str(config.path)) as second,
        ps.Client(addresses, ca=config.ca) as third,
    ):
        answers = [c.query_model(digits.images[:1]) for c in (first, second, third)]
    for answer in answers:
        assert answer.argmax() == digits.labels[0]


def test_many_clients_at_once_get_their_own_answers(digits: Digits) -> None:
    def ask(number: int) -> np.ndarray:
        with ps.Client(digits.cluster, timeout=60) as own:
            rows = [own.query_model(digits.images[i : i + 1]) for i in (number, number + 8)]
        return np.concatenate(rows)

    with digits.serving(), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for number, answer in enumerate(answers):
        expected = digits.model.converted.predict(digits.images[[number, number + 8]])
        np.testing.assert_allclose(answer, expected, atol=2e-2)


def test_clients_of_one_limit_get_exactly_that_many_answers(digits: Digits) -> None:
    outcomes: list[str] = []

    def ask(number: int) -> None:
        with ps.Client(digits.cluster, timeout=30) as own:
            try:
                answer = own.query_model(digits.images[number : number + 1])
            except ps.LimitReached as error:
                outcomes.append(str(error))
                return
        expected = predicted(digits, slice(number, number + 1))
        np.testing.assert_allclose(answer, expected, atol=2e-2)
        outcomes.append("answered")

    with digits.serving(5) as serve:
        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        wait_until(lambda: not serve.is_alive(), "serve() returns at the limit")
    assert outcomes.count("answered") == 5
    refused = [outcome for outcome in outcomes if "limit of 5 rows is reached" in outcome]
    assert len(refused) == 7


def test_a_late_client_is_refused_and_served_again_later(digits: Digits, client: ps.Client) -> None:
    with digits.serving(1) as serve:
        client.query_model(digits.images[:1])
        wait_until(lambda: not serve.is_alive(), "the limit is reached")
        with pytest.raises(ps.LimitReached, match="ask the model owner to serve again"):
            client.query_model(digits.images[:1])
    with digits.serving(1):
        assert client.query_model(digits.images[:1]).argmax() == digits.labels[0]


BAD_INPUTS = {
    "no batch axis": (np.zeros((28, 28, 1)), r"shape \(B, 28, 28, 1\), not \(28, 28, 1\); add a"),
    "another size": (np.zeros((1, 27, 28, 1)), r"not \(1, 27, 28, 1\)$"),
    "channels first": (np.zeros((1, 1, 28, 28)), "must have the shape"),
    "no rows": (np.zeros((0, 28, 28, 1)), "1 to 1024 rows, not 0"),
    "too many rows": (np.zeros((1025, 28, 28, 1), np.uint8), "not 1025; split it"),
    "complex numbers": (np.zeros((1, 28, 28, 1), complex), "real numbers, not complex128"),
    "texts": (np.full((1, 28, 28, 1), "a"), "must hold real numbers"),
    "objects": (np.full((1, 28, 28, 1), None), "must hold real numbers, not object"),
    "a ragged list": ([[1.0], [1.0, 2.0]], "not a rectangular array"),
    "nothing": (None, "must hold real numbers"),
    "another name": ({"z": np.zeros((1, 28, 28, 1))}, r"takes the inputs .*, not \['z'\]"),
}


@pytest.mark.parametrize(("x", "complaint"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_an_input_that_does_not_fit_is_refused_with_its_cause(
    client: ps.Client, x: object, complaint: str
) -> None:
    with pytest.raises(ps.InputError, match=complaint):
        client.query_model(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(client: ps.Client, bad: float) -> None:
    x = np.zeros((1, 28, 28, 1))
    x[0, 3, 4, 0] = bad
    with pytest.raises(ps.RangeError, match="NaN or infinity"):
        client.query_model(x)


@pytest.mark.parametrize("bad", [8.5, -8.5, 255, 1e30])
def test_values_outside_the_shared_range_are_refused(client: ps.Client, bad: float) -> None:
    x = np.zeros((1, 28, 28, 1))
    x[0, 3, 4, 0] = bad
    with pytest.raises(ps.RangeError, match=r"outside \[-8, 8\].*scale the input"):
        client.query_model(x)


def test_a_refused_input_uses_no_query_of_the_limit(digits: Digits, client: ps.Client) -> None:
    with digits.serving(1):
        with pytest.raises(ps.InputError):
            client.query_model(np.zeros((28, 28, 1)))
        assert client.query_model(digits.images[:1]).argmax() == digits.labels[0]


def test_a_query_before_serve_is_refused(digits: Digits, client: ps.Client) -> None:
    with digits.serving():
        pass
    with pytest.raises(ps.NotServing, match="stopped serving"):
        client.query_model(digits.images[:1])


def test_pointing_at_the_dealer_names_the_parties_to_ask(digits: Digits) -> None:
    config = digits.cluster.config
    addresses = [config.parties[0].address, config.dealer.address]
    with (
        ps.Client(addresses, ca=config.ca) as wrong,
        pytest.raises(ps.ConfigError, match=r"carol at .* is the dealer .*\(alice, bob\)"),
    ):
        wrong.query_model(digits.images[:1])


@pytest.mark.parametrize("chosen", [[0], [1]])
def test_too_few_parties_are_refused(digits: Digits, chosen: list[int]) -> None:
    config = digits.cluster.config
    addresses = [config.compute[i].address for i in chosen]
    with (
        ps.Client(addresses, ca=config.ca) as wrong,
        pytest.raises(ps.ConfigError, match=r"needs every compute party \(alice, bob\)"),
    ):
        wrong.query_model(digits.images[:1])


def test_the_authority_of_another_cluster_is_not_enough(digits: Digits, tmp_path: Path) -> None:
    config = digits.cluster.config
    other = make_config(tmp_path, [p.address for p in config.parties])
    with (
        ps.Client(other) as wrong,
        pytest.raises(ps.ClusterError, match=r"another cluster than the ca\.pem in use"),
    ):
        wrong.query_model(digits.images[:1])


def test_nobody_listening_is_said_with_the_remedy(digits: Digits, tmp_path: Path) -> None:
    config = make_config(tmp_path, ["localhost:1", "localhost:2", "localhost:3"])
    with (
        ps.Client(config) as nobody,
        pytest.raises(ps.ClusterError, match=r"cannot reach alice at localhost:1.*launch"),
    ):
        nobody.query_model(digits.images[:1])


def test_a_missing_cluster_file_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ps.ConfigError, match=r"there is no .*start a cluster with"):
        ps.Client(tmp_path / "cluster.toml")


def test_a_missing_authority_is_said(tmp_path: Path) -> None:
    config = make_config(tmp_path, ["localhost:1", "localhost:2", "localhost:3"])
    config.ca.unlink()
    with pytest.raises(ps.ConfigError, match=r"ca\.pem is missing or holds no certificate"):
        ps.Client(config)
    with pytest.raises(ps.ConfigError, match="name the cluster"):
        ps.Client(["localhost:1", "localhost:2"])


def test_a_closed_client_says_so(digits: Digits) -> None:
    client = ps.Client(digits.cluster)
    client.close()
    client.close()
    with pytest.raises((ps.ClusterError, RuntimeError), match=r"closed|shutdown"):
        client.query_model(digits.images[:1])


@given(st.lists(st.floats(-500, 500), min_size=2, max_size=5))
def test_activations_are_those_of_keras(values: list[float]) -> None:
    x = np.array([values])
    softmax = apply_activation(x, {"op": "Softmax", "axis": -1})
    assert abs(softmax.sum() - 1) < 1e-9
    assert softmax[x == x.max()].min() == softmax.max()
    sigmoid = apply_activation(x, {"op": "Sigmoid"})
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-x)), atol=1e-12)
    assert apply_activation(x, None) is x
    for name in ("tanh", "softplus", "softsign"):
        expected = getattr(torch.nn.functional, name)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(apply_activation(x, {"op": name.title()}), expected, atol=1e-12)
    powers = apply_activation(x, {"op": "Exp"})
    np.testing.assert_allclose(powers, np.exp(x), rtol=1e-12)


def test_an_unknown_activation_is_not_ignored() -> None:
    with pytest.raises(ps.ClusterError, match="unknown activation Hardmax"):
        apply_activation(np.zeros((1, 2)), {"op": "Hardmax"})


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (429, "limit_reached", ps.LimitReached),
        (503, "not_serving", ps.NotServing),
        (400, "bad_input", ps.InputError),
        (504, "refused", ps.QueryError),
    ],
)
def test_a_partys_refusal_becomes_the_typed_error(status: int, code: str, kind: type) -> None:
    response = httpx.Response(status, json={"error": "because", "code": code})
    with pytest.raises(kind, match="because"):
        raise_for_answer(response, "alice")


def test_an_answer_of_something_else_is_called_that() -> None:
    with pytest.raises(ps.QueryError, match="alice answers HTTP 502; is it privserve"):
        raise_for_answer(httpx.Response(502, text="<html>"), "alice")
