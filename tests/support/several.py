"""Models of different shapes on one cluster, and threads that ask them all the while."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import torch
from serving import wait_until

import privserve as ps

SHAPES = {"four": (4, 2), "six": (6, 3)}
"""By model: how many numbers go in, and come out."""


def net(name: str, seed: int = 1) -> ps.SecureModel:
    """A linear model of this name; another seed, other weights."""
    taken, given = SHAPES[name]
    torch.manual_seed(seed)
    return ps.load_model(torch.nn.Linear(taken, given), input_shape=(taken,), name=name)


def numbers_for(name: str, rows: int = 1, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, SHAPES[name][0]))


def quiet(line: str) -> None:
    """Takes what `share` reports."""


@contextlib.contextmanager
def served(
    cluster: ps.Cluster, model: ps.SecureModel, limit: int | None = None
) -> Iterator[list[object]]:
    """The model is served in the background while the block runs; what serve() came to."""
    outcome: list[object] = []

    def serve() -> None:
        try:
            outcome.append(model.serve(limit))
        except ps.PrivserveError as error:
            outcome.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        wait_until(lambda: outcome or is_served(cluster, model.name), f"'{model.name}' is served")
        yield outcome
    finally:
        with contextlib.suppress(ps.ClusterError, ps.QueryError):
            model.stop_serving()
        thread.join(20)
        assert not thread.is_alive(), "serve() did not return"


def is_served(cluster: ps.Cluster, name: str) -> bool:
    return any(m.name == name and m.serving and m.place == "current" for m in cluster.models())


class Askers:
    """Threads that ask until they are told to stop, and what came of it."""

    def __init__(self, asks: list[Callable[[], np.ndarray]], right: list[np.ndarray]) -> None:
        """right: the answers that are allowed."""
        self.errors: list[BaseException] = []
        self.wrong: list[np.ndarray] = []
        self.counts: Counter[int] = Counter()
        """How often each of the right answers came."""
        self._over = threading.Event()
        self._right = right
        self._threads = [threading.Thread(target=self._ask, args=(a,), daemon=True) for a in asks]
        for thread in self._threads:
            thread.start()

    def _ask(self, ask: Callable[[], np.ndarray]) -> None:
        while not self._over.is_set():
            try:
                answer = ask()
            except BaseException as error:
                self.errors.append(error)
                return
            near = [i for i, y in enumerate(self._right) if np.allclose(answer, y, atol=1e-2)]
            if len(near) == 1:
                self.counts[near[0]] += 1
            else:
                self.wrong.append(answer)

    def wait_for(self, which: int, more: int = 20) -> None:
        """Wait until one of the right answers came some times more."""
        before = self.counts[which]
        wait_until(
            lambda: self.counts[which] >= before + more or self.errors, f"answers of {which}", 30
        )

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a query waits for ever"
        assert not self.errors, self.errors
        assert not self.wrong, self.wrong
