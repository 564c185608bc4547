"""Who answers a batch job's rows in tests without a cluster, and remembers what was asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from privserve.batch.sources import Rows
from privserve.errors import PrivserveError
from privserve.served_model import ServedModel

WIDTH = 2


def served_model(session: str = "one", name: str = "twice", max_rows: int = 64) -> ServedModel:
    """A model whose output 'y' is twice its input 'x', of WIDTH numbers in [-8, 8]."""
    description: Any = {
        "inputs": [{"name": "x", "shape": [WIDTH]}],
        "outputs": [{"name": "y", "shape": [WIDTH], "activation": None, "rounded_bits": 0}],
        "fraction_bits": 16,
        "output_fraction_bits": 16,
        "input_range": [-8.0, 8.0],
        "guards": [],
        "notes": [],
    }
    return ServedModel(name, session, description, max_rows)


class FakeAsker:
    """Answers twice each row, at once. Rows are known by their first number, which is their own."""

    def __init__(
        self, refuse: Callable[[list[float]], PrivserveError | None] = lambda _: None
    ) -> None:
        """refuse: what a query for these rows fails with, if it does."""
        self.served = served_model()
        self.asked: list[list[float]] = []
        """By query: the first number of each of its rows."""
        self.answered: list[float] = []
        self._refuse = refuse

    @property
    def rows_asked(self) -> list[float]:
        """Of all queries, in the order in which they were asked."""
        return [key for query in self.asked for key in query]

    def model(self, *, again: bool = False) -> ServedModel:
        return self.served

    def begin(self, rows: Rows) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self.served.encode(rows)
            keys = [float(value) for value in rows["x"][:, 0]]
            self.asked.append(keys)
            error = self._refuse(keys)
            if error is not None:
                raise error
        except PrivserveError as error:
            future.set_exception(error)
        else:
            self.answered += keys
            future.set_result({"y": (2 * rows["x"]).astype(np.float32)})
        return future

    def close(self) -> None:
        pass


def numbered(rows: int) -> np.ndarray:
    """Rows that differ, float64[rows, WIDTH] within the model's range."""
    return np.stack([np.arange(rows) / 256, np.ones(rows)], axis=1)


def save_numbered(path: Path, rows: int) -> np.ndarray:
    """Write `numbered` rows as .npy, and return them."""
    array = numbered(rows)
    np.save(path, array)
    return array
