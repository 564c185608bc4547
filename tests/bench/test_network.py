"""`python -m privserve.bench --network`: parties and a client with lines between them."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import converters
from privserve.bench.links import Line, Links, Network, bound, measured_round_trip
from privserve.bench.network import NETWORKS, network

COMMAND = [sys.executable, "-m", "privserve.bench", "--network"]
SLOW = Network("slow", 0.05, 1e9)


@pytest.mark.parametrize("text", ["", "far", "80", "0,10", "80,0", "-1,5", "80,20,1", "nan,5"])
def test_a_network_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 80,20"):
        network(text)


def test_networks_are_said_by_name_or_by_round_trip_and_rate() -> None:
    assert network("80,20") == Network("80,20", 0.08, 2.5e6)
    assert network("wan") is NETWORKS["wan"]
    assert network("none") is None


def test_what_is_sent_arrives_after_the_delay() -> None:
    taken = measured_round_trip(SLOW)
    assert SLOW.round_trip <= taken < 2 * SLOW.round_trip


def test_a_line_carries_all_bytes_in_order_at_its_rate_and_both_ends_see_the_end() -> None:
    data = bytes(range(256)) * 2048  # half a megabyte, at 2 MB/s
    port, address = bound()
    with socket.create_server(("127.0.0.1", 0)) as there:
        target = f"127.0.0.1:{there.getsockname()[1]}"
        got: list[bytes] = []

        def take() -> None:
            with there.accept()[0] as end:
                while part := end.recv(1 << 16):
                    got.append(part)
                end.sendall(b"that was all")

        thread = threading.Thread(target=take)
        thread.start()
        with Links([Line(port, target)], Network("thin", 0.0, 2e6)):
            host, number = address.split(":")
            with socket.create_connection((host, int(number)), timeout=30) as here:
                began = time.perf_counter()
                here.sendall(data)
                here.shutdown(socket.SHUT_WR)
                answer = b""
                while part := here.recv(64):
                    answer += part
                seconds = time.perf_counter() - began
            thread.join(10)
    assert b"".join(got) == data
    assert answer == b"that was all"
    assert seconds >= len(data) / 2e6


def test_whoever_dials_a_line_to_nobody_is_cut_off() -> None:
    port, address = bound()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        target = f"127.0.0.1:{nobody.getsockname()[1]}"
    with Links([Line(port, target)], SLOW):
        host, number = address.split(":")
        with socket.create_connection((host, int(number)), timeout=10) as here:
            assert here.recv(1) == b""


@pytest.mark.slow
@pytest.mark.usefixtures("tag")
def test_a_query_takes_half_a_round_trip_for_each_exchange_at_least(tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    path = tmp_path / "small.onnx"
    path.write_bytes(converters.convert(net, input_shape=(4,)).onnx.SerializeToString())
    arguments = ["40,1000", "--model", str(path), "--seconds", "0.5", "--json"]
    ran = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    (found,) = json.loads(ran.stdout)["results"]
    assert found["network"] == "40,1000"
    assert found["same_class"]
    assert found["round_trip"] >= 0.04
    assert found["exchanges"] >= 3
    assert found["one_row"] >= (found["exchanges"] / 2 + 1) * 0.04
    assert 0 < found["bytes_dealt"] < 20_000, "what is dealt ahead is not a query's"
    assert found["max_abs_error"] < 1e-2
