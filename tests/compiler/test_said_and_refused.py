"""What a user is told instead of being answered wrongly, through running parties."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import free_workers, serving

import privserve as ps
from privserve import launch
from privserve.addresses import bind
from privserve.engines import ottt

X = np.linspace(-1, 1, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ps.Cluster]:
    with ps.Cluster(*free_workers()) as running:
        yield running


@pytest.fixture(scope="module")
def small() -> ps.SecureModel:
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return ps.load_model(net, input_shape=(4,), name="small")


@pytest.fixture(scope="module")
def deep() -> ps.SecureModel:
    """So deep that no sound bound fits in the ring."""
    torch.manual_seed(1)
    layers: list[torch.nn.Module] = []
    for _ in range(30):
        linear = torch.nn.Linear(16, 16)
        torch.nn.init.normal_(linear.weight, std=0.35)
        layers += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
    return ps.load_model(net, input_shape=(16,), name="deep")


@pytest.fixture(autouse=True)
def _one_model_at_a_time(small: ps.SecureModel, deep: ps.SecureModel) -> Iterator[None]:
    """Clients here name none."""
    yield
    small.stop()
    deep.stop()


def test_a_client_that_outlives_a_model_is_answered_rightly(
    cluster: ps.Cluster, small: ps.SecureModel
) -> None:
    """The same name, shared again with other fraction bits, another range, another engine."""
    expected = small.converted.predict(X)
    ways = [
        {},
        {"fraction_bits": 9},
        {"input_range": (-1, 1), "fraction_bits": 18},
        {"engine": "crypten"},
        {},
    ]
    with ps.Client(cluster) as client:
        for way in ways:
            small.share(cluster, **way)
            with serving(cluster, small):
                for _ in range(4):
                    assert np.abs(client.query_model(X) - expected).max() < 2e-2, way


def test_clients_that_ask_while_a_model_is_shared_anew_are_right_or_refused(
    cluster: ps.Cluster, small: ps.SecureModel
) -> None:
    expected = small.converted.predict(X)
    stop, wrong, answered = threading.Event(), [], [0] * 4

    def ask(number: int) -> None:
        with ps.Client(cluster) as client:
            while not stop.is_set():
                try:
                    got = client.query_model(X)
                except (ps.NotServing, ps.ClusterError, ps.QueryError):
                    stop.wait(0.02)
                    continue
                answered[number] += 1
                if np.abs(got - expected).max() > 2e-2:
                    wrong.append(got)

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    for bits in (8, 14, 10, 18):
        small.share(cluster, fraction_bits=bits)
        before = sum(answered)
        with serving(cluster, small):
            while sum(answered) < before + 8 and not wrong:
                stop.wait(0.01)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_a_query_without_its_session_is_refused_with_the_way_out(
    cluster: ps.Cluster, small: ps.SecureModel
) -> None:
    small.share(cluster)
    leader = cluster.config.compute[0]
    with pytest.raises(ps.QueryError, match="versions/"):
        cluster.call(leader, "POST", "/v2/models/small/infer", json={"inputs": []})


def test_what_was_guessed_is_said_when_a_model_is_shared(
    cluster: ps.Cluster, deep: ps.SecureModel, small: ps.SecureModel
) -> None:
    with pytest.warns(UserWarning, match=r"guessed from calibration samples.*Relu"):
        deep.share(cluster)
    lines: list[str] = []
    deep.share(cluster, report=lines.append)
    assert any("expected error" in line for line in lines)
    assert any("guessed" in line and "RangeError" in line for line in lines)
    deep.share(cluster, range_check=False, report=lines.append)
    assert any("NOT CHECKED" in line for line in lines)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.share(cluster)


def test_an_input_that_leaves_a_guessed_range_gets_an_error_that_names_rows_and_layer(
    cluster: ps.Cluster, deep: ps.SecureModel
) -> None:
    """Samples near zero, then an input that is large but inside the declared range."""
    generator = np.random.default_rng(4)
    samples = generator.uniform(-0.01, 0.01, (8, 16))
    x = generator.uniform(-0.01, 0.01, (5, 16))
    deep.share(cluster, calibration=samples, report=lambda line: None)
    with serving(cluster, deep), ps.Client(cluster) as client:
        expected = deep.converted.predict(x.astype(np.float32))
        assert np.abs(client.query_model(x) - expected).max() < 1e-2
        far = x.copy()
        far[3] = 8.0
        with pytest.raises(ps.GuessedRangeError, match=r"row 3 of 5") as refusal:
            client.query_model(far)
        assert isinstance(refusal.value, ps.RangeError)
        assert list(refusal.value.layers) == [3]
        assert "calibration" in str(refusal.value)
        assert refusal.value.layers[3][0] in str(refusal.value)
        # The others of that query are answered when they come alone.
        rest = np.delete(far, 3, 0)
        assert np.abs(client.query_model(rest) - np.delete(expected, 3, 0)).max() < 1e-2


def test_answers_go_out_at_once_from_a_party_that_binds_its_own_port() -> None:
    """Manual mode: asyncio turns Nagle's algorithm off only where it sees TCP named."""
    found: list[int] = []

    async def connect() -> None:
        sock = bind(("127.0.0.1", 0), "alice (http)")
        done = asyncio.Event()

        def seen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            done.set()

        async with await asyncio.start_server(seen, sock=sock):
            _, writer = await asyncio.open_connection(*sock.getsockname())
            await done.wait()
            writer.close()

    asyncio.run(connect())
    assert found[0]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--input-range", "-8,8"], (-8.0, 8.0)),
        (["--input-range=-8,8"], (-8.0, 8.0)),
        (["--input-range", "-0.5,.5"], (-0.5, 0.5)),
        (["--input-range", "-1e-3,1e3", "--parties", "3"], (-1e-3, 1e3)),
        (["--parties", "3", "--input-range", "0,255"], (0.0, 255.0)),
    ],
)
def test_a_range_may_begin_with_a_minus(typed: list[str], meant: tuple[float, float]) -> None:
    assert launch.parse_range(launch.parse(typed).input_range) == meant


def test_an_option_after_a_missing_range_is_not_taken_for_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        launch.parse(["--input-range", "--parties", "3"])
    assert "expected one argument" in capsys.readouterr().err


def test_a_model_that_hosts_have_no_memory_for_is_refused_unless_forced(
    cluster: ps.Cluster, small: ps.SecureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ottt, "memory", lambda *_, **__: (5 * 10**12, 10**9))
    with pytest.raises(
        ps.ClusterError, match=r"alice and bob and carol .* 1000\d\.\d GB .*--force"
    ):
        small.share(cluster)
    small.share(cluster, force=True)


def test_memory_is_estimated_as_it_is_used(cluster: ps.Cluster, small: ps.SecureModel) -> None:
    """A dense layer of four million weights."""
    net = torch.nn.Sequential(
        torch.nn.Linear(2048, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 2)
    )
    wide = ps.load_model(net, input_shape=(2048,), name="wide")
    prepared = wide.prepare(input_range=(0, 1))
    each, dealer = ottt.memory(prepared.description, 2)
    with ps.Cluster(*free_workers()) as own:
        wide.share(own, input_range=(0, 1))
        for name, expected in (("alice", each), ("bob", each), ("carol", dealer)):
            status = Path(f"/proc/{own.process_ids[name]}/status").read_text()
            peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]
            assert 0.5 < peak / expected < 1.5, (name, peak, expected)


def test_a_party_that_was_killed_is_said_to_be_killed() -> None:
    with ps.Cluster(*free_workers()) as own:
        process = own.cells[0]._processes["bob"]
        process.kill()
        process.wait(10)
        with pytest.raises(ps.ClusterError, match=r"bob was killed \(signal 9\).*memory"):
            own.check_processes()
