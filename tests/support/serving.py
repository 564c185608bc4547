"""What the tests of serving share: files of a cluster, running parties, proof of their end."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import httpx
import numpy as np
import torch

import privserve as ps
from privserve.certificates import OWNER_KEY, write_cluster
from privserve.config import ClusterConfig, party_names, read_config
from privserve.credentials import KEY_FILE, ClientKey
from privserve.owner_calls import Boot, Signer, load_owner_key

ROOT = Path(__file__).parents[2]
SAMPLE_MODEL = ROOT / "examples" / "digits-model.h5"
SAMPLE_DIGITS = ROOT / "examples" / "digits.npz"
TAG = "PRIVSERVE_TEST_TAG"


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Poll `condition` until it holds; fails naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        time.sleep(0.02)


def tagged_processes(tag: str) -> list[int]:
    """Living processes that inherited `tag` in their environment, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            environment = (entry / "environ").read_bytes().split(b"\0")
            if f"{TAG}={tag}".encode() in environment:
                found.append(int(entry.name))
    return found


def make_config(directory: Path, addresses: list[str]) -> ClusterConfig:
    """A new cluster's files below `directory`."""
    names = party_names(len(addresses))
    return read_config(write_cluster(directory, list(zip(names, addresses, strict=True))))


class Digits:
    """A running cluster of three with the sample model shared, and digits to ask it."""

    def __init__(self, cluster: ps.Cluster, model: ps.SecureModel) -> None:
        self.cluster = cluster
        self.model = model
        with np.load(SAMPLE_DIGITS) as samples:
            self.images = samples["images"]
            self.labels = samples["labels"]

    @contextlib.contextmanager
    def serving(self, num_requests: int | None = None) -> Iterator[threading.Thread]:
        """The model is served in the background while the block runs."""
        with serving(self.cluster, self.model, num_requests) as thread:
            yield thread


@contextlib.contextmanager
def serving(
    cluster: ps.Cluster, model: ps.SecureModel, num_requests: int | None = None
) -> Iterator[threading.Thread]:
    """`model.serve(num_requests)` in the background; stopped at the end of the block."""
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            model.serve(num_requests, tell=lambda line: None)
        except BaseException as error:
            failed.append(error)

    leader = cluster.config.compute[0]

    def status() -> dict[str, Any]:
        path = "/privserve/status"
        return cluster.call(leader, "GET", path, session=model._sessions[0].id).json()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        wait_until(
            lambda: failed or status()["serving"],
            "the model is served",
        )
        assert not failed, failed
        yield thread
    finally:
        with contextlib.suppress(ps.ClusterError, ps.QueryError):
            model.stop_serving()
        thread.join(20)
        assert not thread.is_alive(), "serve() did not return"


def free_workers(count: int = 3) -> list[ps.Worker]:
    return [ps.Worker("localhost:0") for _ in range(count)]


SMALL = np.array([[0.5, -1.0, 2.0, 0.25]])
"""A query for `small_model`."""


def small_model() -> ps.SecureModel:
    """A model that is quick to share: four numbers to two."""
    torch.manual_seed(1)
    return ps.load_model(torch.nn.Linear(4, 2), input_shape=(4,))


def write_unsupported_layer(path: Path) -> None:
    """The sample model with a layer that no converter knows."""
    path.write_bytes(SAMPLE_MODEL.read_bytes())
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        config = config.decode() if isinstance(config, bytes) else config
        file.attrs["model_config"] = config.replace('"AveragePooling2D"', '"Teleport2D"')


def client_headers(config: ClusterConfig, party: str) -> dict[str, str]:
    """What shows the cluster's default client to a party in a plain HTTP call."""
    key = ClientKey.read(config.path.parent / KEY_FILE)
    return {"Authorization": key.authorization(config.cluster, party)}


class SignedBy(httpx.Auth):
    """Signs plain HTTP calls to one party as the model owner does."""

    requires_request_body = True

    def __init__(self, config: ClusterConfig, party: str, boot: Boot, session: str = "") -> None:
        self._signer = Signer(load_owner_key(config.path.parent / OWNER_KEY), config.cluster)
        self._where = (party, boot)
        self._session = session

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        request.headers["Authorization"] = self._signer.authorization(
            *self._where,
            request.method,
            request.url.raw_path.decode(),
            self._session,
            request.content,
        )
        yield request
