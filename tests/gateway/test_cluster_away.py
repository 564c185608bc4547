"""The gateway outlives its cluster: parties that are gone, come back, share anew, or hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gateway_process import GatewayProcess, gateway
from serving import SMALL, Digits, serving, small_model, wait_until
from test_http_front import ONE, ask, request_of
from test_launch import free_ports

import privserve as ps
from privserve.certificates import write_cluster


@contextlib.contextmanager
def parties(files: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The parties of a cluster, each by its own files; ended with the block."""
    command = [sys.executable, "-m", "privserve.party"]
    running = [
        subprocess.Popen(
            [*command, "--name", name, "--config", str(files / name / "cluster.toml")],
            stderr=subprocess.DEVNULL,
        )
        for name in ("alice", "bob", "carol")
    ]
    try:
        yield running
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.wait(30)


def shared(model: ps.SecureModel, front: GatewayProcess, word: str) -> None:
    """Wait until the gateway serves this model, and ask it."""
    wait_until(lambda: ask(front.http, "GET", f"/v2/models/{model.name}/ready")[0] == 200, word, 60)
    path, body = f"/v2/models/{model.name}/infer", request_of(SMALL, model.converted.inputs[0].name)
    status, _, said = ask(front.http, "POST", path, body)
    assert status == 200, said
    expected = model.converted.predict(SMALL)
    np.testing.assert_allclose([said["outputs"][0]["data"]], expected, atol=1e-2)


def other_model() -> ps.SecureModel:
    torch.manual_seed(2)
    return ps.load_model(torch.nn.Linear(4, 3), input_shape=(4,), name="other")


def test_the_gateway_waits_for_its_cluster_and_follows_it(tag: str, tmp_path: Path) -> None:
    files, ports = tmp_path / "files", free_ports(3)
    hosts = [
        (name, f"localhost:{port}")
        for name, port in zip(("alice", "bob", "carol"), ports, strict=True)
    ]
    config = write_cluster(files, hosts)
    with gateway(config, serves=False) as front:
        assert "alice" in front.hear("not serving now")
        assert ask(front.http, "GET", "/v2/health/live")[0] == 200
        assert ask(front.http, "GET", "/v2/health/ready")[0] == 503
        status, _, said = ask(front.http, "POST", "/v2/models/any/infer", b"{}")
        assert status == 503
        assert "alice" in said["error"]
        with parties(files):
            front.hear("call share")
            cluster = ps.Cluster.connect(config)
            with small_model() as model:
                for _ in range(2):  # the second time, it is shared anew under the gateway
                    model.share(cluster)
                    with serving(cluster, model):
                        shared(model, front, "the model is found")
            with other_model() as model:
                model.share(cluster)
                with serving(cluster, model):
                    shared(model, front, "the other model is found")
                    assert ask(front.http, "POST", "/v2/models/model/infer", b"{}")[0] == 404
            cluster.stop()
        assert ask(front.http, "GET", "/v2/health/ready")[0] == 503
        status, _, said = ask(
            front.http, "POST", "/v2/models/other/infer", request_of(SMALL, "input_0")
        )
        assert status == 503
        with parties(files):
            cluster = ps.Cluster.connect(config)
            with small_model() as model:
                model.share(cluster)
                with serving(cluster, model):
                    shared(model, front, "the model is found again")
            cluster.stop()
        front.stop()


def test_a_party_that_hangs_costs_a_time_out_and_nothing_else(digits: Digits) -> None:
    path = "/v2/models/digits-model/infer"
    with digits.serving(), gateway(digits.cluster.config.path, "--timeout", "2") as front:
        assert ask(front.http, "POST", path, ONE)[0] == 200
        pid = digits.cluster.process_ids["bob"]
        os.kill(pid, signal.SIGSTOP)
        try:
            status, _, said = ask(front.http, "POST", path, ONE)
            assert status == 504, said
            started = time.monotonic()
            assert ask(front.http, "GET", "/v2/health/live")[0] == 200
            assert time.monotonic() - started < 1.5
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: ask(front.http, "POST", path, ONE)[0] == 200, "it is answered again", 30)
        front.stop()


def test_ctrl_c_ends_the_gateway_also_while_it_waits_for_an_answer(digits: Digits) -> None:
    import http.client

    with digits.serving(), gateway(digits.cluster.config.path) as front:
        pid = digits.cluster.process_ids["bob"]
        os.kill(pid, signal.SIGSTOP)
        try:
            waits = http.client.HTTPConnection(front.http, timeout=30)
            waits.request("POST", "/v2/models/digits-model/infer", ONE)
            assert ask(front.http, "GET", "/v2/health/live")[0] == 200
            assert front.stop().endswith("stopped")
            waits.close()
        finally:
            os.kill(pid, signal.SIGCONT)
