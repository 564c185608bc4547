"""Several models on one cluster of real processes: asked, stopped, replaced, limited, listed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from serving import free_workers, wait_until
from several import Askers, is_served, net, numbers_for, quiet, served

import privserve as ps
from privserve import clients, models
from privserve.config import Timeouts
from privserve.credentials import Limits

X4, X6 = numbers_for("four"), numbers_for("six", 2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ps.Cluster]:
    """One cluster for all tests here; each of them leaves no model on it."""
    home = tmp_path_factory.mktemp("several")
    with ps.Cluster(*free_workers(), directory=home, timeouts=Timeouts(share=2)) as running:
        yield running


@pytest.fixture(autouse=True)
def clean(cluster: ps.Cluster) -> Iterator[None]:
    yield
    for model in cluster.models():
        if model.is_alive:
            cluster.stop_model(model.name)


@pytest.fixture
def pair(cluster: ps.Cluster) -> Iterator[tuple[ps.SecureModel, ps.SecureModel]]:
    """Two models of different shapes, both shared and served."""
    with net("four") as four, net("six") as six:
        four.share(cluster, report=quiet)
        six.share(cluster, report=quiet)
        with served(cluster, four), served(cluster, six):
            yield four, six


def stranger(cluster: ps.Cluster, home: Path, model: str) -> ps.Client:
    """A client with the cluster's certificate and no key."""
    ca = home / "ca.pem"
    shutil.copy(cluster.config.ca, ca)
    addresses = [party.address for party in cluster.config.compute]
    return ps.Client(addresses, ca=ca, timeout=20, model=model)


def test_two_models_of_different_shapes_answer_many_threads_at_once(
    cluster: ps.Cluster, pair: tuple[ps.SecureModel, ps.SecureModel]
) -> None:
    four, six = pair
    groups = []
    with (
        ps.Client(cluster, model="four") as a,
        ps.Client(cluster, model="six") as b,
        ps.Client(cluster, model="six", http=True) as c,
    ):
        for model, x, asked in ((four, X4, [a, a]), (six, X6, [b, b, c])):
            right = [model.converted.predict(x)]
            groups.append(Askers([partial(client.query_model, x) for client in asked], right))
        for group in groups:
            group.wait_for(0, 60)
        for group in groups:
            group.stop()
    answered = {m.name: m.answered for m in cluster.models()}
    assert answered["four"] == groups[0].counts[0]
    assert answered["six"] == 2 * groups[1].counts[0], "two rows each"


@pytest.mark.parametrize("http", [False, True])
def test_who_names_no_model_is_told_which_there_are(
    cluster: ps.Cluster, pair: tuple[ps.SecureModel, ps.SecureModel], http: bool
) -> None:
    with ps.Client(cluster, http=http) as client:
        with pytest.raises(ps.QueryError, match=r"'four', 'six'; .*Client\(\.\.\., model=\"four\""):
            client.query_model(X4)
        assert client.models() == client.models(served=True) == ["four", "six"]
    with (
        ps.Client(cluster, model="five", http=http) as client,
        pytest.raises(ps.QueryError, match="there is no model 'five'; 'four', 'six' are") as error,
    ):
        client.query_model(X4)
    assert error.value.status == 404


def test_who_named_none_keeps_to_the_model_that_was_alone_when_it_came(
    cluster: ps.Cluster,
) -> None:
    with net("four") as four, net("six") as six, ps.Client(cluster) as client:
        four.share(cluster, report=quiet)
        with served(cluster, four):
            client.query_model(X4)
            six.share(cluster, report=quiet)
            with served(cluster, six):
                client.read_model(again=True)
                np.testing.assert_allclose(
                    client.query_model(X4), four.converted.predict(X4), atol=1e-2
                )
                four.stop()
                with pytest.raises(ps.QueryError, match="'six' is served now"):
                    client.query_model(X4)


def test_one_is_stopped_while_the_other_goes_on(
    cluster: ps.Cluster, pair: tuple[ps.SecureModel, ps.SecureModel]
) -> None:
    with ps.Client(cluster, model="four") as a, ps.Client(cluster, model="six") as b:
        asking = Askers([partial(a.query_model, X4)], [pair[0].converted.predict(X4)])
        b.query_model(X6)
        cluster.stop_model("six")
        with pytest.raises(ps.NotServing, match="the model owner stopped the model"):
            b.query_model(X6)
        asking.wait_for(0)
        asking.stop()
    found = {m.name: m.state for m in cluster.models()}
    assert found["four"] == "loaded"
    assert found["six"] == "ended"


def test_a_model_is_replaced_under_load_and_nobody_sees_it(cluster: ps.Cluster) -> None:
    first, second = net("four", 1), net("four", 2)
    right = [first.converted.predict(X4), second.converted.predict(X4)]
    first.share(cluster, report=quiet)
    with (
        ps.Client(cluster, model="four") as lanes,
        ps.Client(cluster) as nameless,
        ps.Client(cluster, model="four", http=True) as http,
        served(cluster, first) as ended,
    ):
        asks = [partial(client.query_model, X4) for client in (lanes, lanes, nameless, http)]
        asks.append(lambda: lanes.query_model_async(X4).result(30))
        asking = Askers(asks, right)
        asking.wait_for(0)
        second.share(cluster, report=quiet)
        asking.wait_for(0)
        assert asking.counts[1] == 0, "the old one goes on until the new one is served"
        with served(cluster, second, 100_000) as still:
            asking.wait_for(1)
            wait_until(lambda: ended, "the old one's serve() has ended")
            asking.stop()
            assert not still
            (told,) = [m for m in cluster.models() if m.name == "four" and m.place == "current"]
            assert (told.answered, told.limit) == (asking.counts[1], 100_000)
    (error,) = ended
    assert isinstance(error, ps.ClusterError)
    assert f"answered {asking.counts[0]} rows" in str(error), "none is lost, none counted twice"
    first.stop()
    assert is_served(cluster, "four") is False
    assert [m.state for m in cluster.models() if m.name == "four"] == ["loaded"]
    second.stop()


def test_one_that_is_shared_and_not_served_is_replaced_at_once(cluster: ps.Cluster) -> None:
    first, second = net("four", 1), net("four", 2)
    first.share(cluster, report=quiet)
    second.share(cluster, report=quiet)
    assert [(m.place, m.state) for m in cluster.models() if m.name == "four"] == [
        ("current", "loaded")
    ]
    with ps.Client(cluster, model="four") as client, served(cluster, second):
        np.testing.assert_allclose(client.query_model(X4), second.converted.predict(X4), atol=1e-2)
    with pytest.raises(ps.QueryError):
        first.serve(1)


def test_who_gives_up_a_replacement_leaves_the_old_one_alone(cluster: ps.Cluster) -> None:
    first, second = net("four", 1), net("four", 2)
    first.share(cluster, report=quiet)
    with served(cluster, first), ps.Client(cluster) as client:
        second.share(cluster, report=quiet)
        second.stop()
        np.testing.assert_allclose(client.query_model(X4), first.converted.predict(X4), atol=1e-2)
        assert len([m for m in cluster.models() if m.is_alive]) == 1


def test_each_model_has_a_limit_of_its_own(cluster: ps.Cluster) -> None:
    with net("four") as four, net("six") as six:
        four.share(cluster, report=quiet)
        six.share(cluster, report=quiet)
        with (
            ps.Client(cluster, model="four") as a,
            ps.Client(cluster, model="six") as b,
            served(cluster, four, 2) as first,
            served(cluster, six, 6),
        ):
            for _ in range(2):
                a.query_model(X4)
            with pytest.raises(ps.LimitReached):
                a.query_model(X4)
            wait_until(lambda: first == [2], "serve() says how many")
            for _ in range(3):
                b.query_model(X6)
            with pytest.raises(ps.LimitReached):
                b.query_model(X6)


def test_everybody_may_ask_the_open_model_only_and_is_counted_there(
    cluster: ps.Cluster, tmp_path: Path
) -> None:
    with net("four") as four, net("six") as six:
        four.share(cluster, report=quiet, everybody=Limits(rows=3))
        six.share(cluster, report=quiet)
        with (
            served(cluster, four),
            served(cluster, six),
            stranger(cluster, tmp_path, "four") as open_one,
            stranger(cluster, tmp_path, "six") as closed,
        ):
            for _ in range(3):
                open_one.query_model(X4)
            with pytest.raises(ps.LimitReached, match="0 of the 3 rows of client 'anonymous'"):
                open_one.query_model(X4)
            with pytest.raises(ps.UnknownClient):
                closed.query_model(X6)
            assert open_one.models() == ["four"], "the one that it may ask"
            told = four.status()[0]["clients"]["anonymous"]
            assert told == {"rows": 3, "limit": 3}
            assert "anonymous" not in six.status()[0]["clients"]


def test_a_client_may_be_let_in_for_some_models_only(
    cluster: ps.Cluster,
    pair: tuple[ps.SecureModel, ps.SecureModel],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = cluster.config.path
    assert clients.main(["--config", str(config), "add", "lab", "--models", "six,other"]) == 0
    home = config.parent / "clients" / "lab" / "cluster.toml"
    with ps.Client(home) as client:
        client.query_model(X6)  # the only one that it may ask need not be named
        assert client.models() == ["six"]
    for http in (False, True):
        with (
            ps.Client(home, model="four", http=http) as client,
            pytest.raises(ps.QueryError, match="'lab' may ask 'six', 'other', and not 'four'") as e,
        ):
            client.query_model(X4)
        assert e.value.status == 403
    assert clients.main(["--config", str(config), "list"]) == 0
    assert "six, other" in capsys.readouterr().out
    assert clients.main(["--config", str(config), "limit", "lab"]) == 0
    with ps.Client(home, model="four") as client:
        client.query_model(X4)
    assert clients.main(["--config", str(config), "revoke", "lab"]) == 0


def test_the_models_are_listed_and_stopped_from_the_command_line(
    cluster: ps.Cluster,
    pair: tuple[ps.SecureModel, ps.SecureModel],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = ["--config", str(cluster.config.path)]
    assert models.main(config) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0]: line[2:4] for line in lines if line[0] in ("four", "six")} == {
        "four": ["loaded", "yes"],
        "six": ["loaded", "yes"],
    }
    assert models.main([*config, "stop", "four"]) == 0
    assert not is_served(cluster, "four")
    assert is_served(cluster, "six")
    assert models.main([*config, "stop", "seven"]) == 2
    assert "there is no model 'seven' here; there are:" in capsys.readouterr().err


def test_the_status_says_what_each_model_takes_and_the_calls_need_a_session(
    cluster: ps.Cluster, pair: tuple[ps.SecureModel, ps.SecureModel]
) -> None:
    leader = cluster.config.compute[0]
    for status in pair[0].status():
        assert status["model"] == "four"
        assert {m["model"] for m in status["models"] if m["state"] == "loaded"} == {"four", "six"}
        assert all(m["memory"] > 1_000_000 for m in status["models"] if m["state"] == "loaded")
        assert status["memory_promised"] >= 0
        assert status["memory_available"] > 0
    plain = cluster.call(leader, "GET", "/privserve/status").json()
    assert plain["state"] == "loaded"
    assert "session" not in plain, "which one of them would be a guess"
    with pytest.raises(ps.QueryError, match="has to name a session: 'four', 'six' are"):
        cluster.call(leader, "POST", "/privserve/stop")
    with pytest.raises(ps.InputError, match="name the session"):
        cluster.call(leader, "POST", "/privserve/switch")


def test_an_engine_with_global_state_has_one_model_and_is_replaced_with_a_gap(
    cluster: ps.Cluster,
) -> None:
    said: list[str] = []
    with net("four") as four, net("six") as six, net("four", 2) as again:
        four.share(cluster, engine="crypten", report=quiet)
        with pytest.raises(ps.ClusterError, match=r"'four' is one; stop that first"):
            six.share(cluster, engine="crypten", report=quiet)
        six.share(cluster, report=quiet)
        again.share(cluster, engine="crypten", report=said.append)
        assert any("nobody answers until the new one" in line for line in said)
        with (
            served(cluster, six),
            served(cluster, again),
            ps.Client(cluster, model="four") as a,
            ps.Client(cluster, model="six") as b,
        ):
            np.testing.assert_allclose(a.query_model(X4), again.converted.predict(X4), atol=5e-2)
            np.testing.assert_allclose(b.query_model(X6), six.converted.predict(X6), atol=1e-2)


def test_a_loaded_cluster_takes_more_models_while_clients_ask(cluster: ps.Cluster) -> None:
    """Sessions come and go while queries run: they move from poller to poller, and none is lost."""
    four = net("four")
    four.share(cluster, report=quiet)
    with served(cluster, four), ps.Client(cluster, model="four") as client:
        asking = Askers([partial(client.query_model, X4)] * 3, [four.converted.predict(X4)])
        for _ in range(3):
            with net("six") as six:
                six.share(cluster, report=quiet)
                asking.wait_for(0, 5)
            asking.wait_for(0, 5)
        asking.stop()
    four.stop()
    assert threading.active_count() < 50
