"""An engine that answers twice its input: it makes sessions testable without any protocol.

Its compute parties exchange one frame per batch, as real engines do, and its dealer waits
for them to leave. Negative shares of one element make it misbehave; see `Compute.run`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from privserve.engines import RunStats
from privserve.mesh import Mesh

LANES = ("echo",)
PROCESS_BYTES = 1 << 20
NAME = "echo"
CRASH, HANG = -1, -2
SECRET = "share 8675309"

DESCRIPTION = {
    "inputs": [{"name": "x", "shape": [2]}],
    "outputs": [{"name": "y", "shape": [2], "activation": None, "rounded_bits": 0}],
    "fraction_bits": 0,
    "output_fraction_bits": 0,
    "input_range": [-8.0, 8.0],
    "guards": [],
    "notes": [],
}

batches: list[list[int]] = []
"""Rank and rows of every batch that was run in this process."""
hold = threading.Event()
"""Set while batches may run; clear it to let queries pile up."""
hold.set()
released = threading.Event()
"""Ends every hang."""


def frame_limits(description: Mapping[str, Any], **_: Any) -> Mapping[str, int]:
    return {}


def memory(description: Mapping[str, Any], parties: int, **_: Any) -> tuple[int, int]:
    return PROCESS_BYTES + 1000, PROCESS_BYTES + 500


def fingerprint(description: Mapping[str, Any], **_: Any) -> str:
    return "echo"


class Compute:
    """One party's side; see `engines.Compute`."""

    def __init__(
        self,
        description: Mapping[str, Any],
        shares: Mapping[str, np.ndarray],
        meshes: Mapping[str, Mesh],
        **options: Any,
    ) -> None:
        if options.get("fail"):
            raise ValueError(SECRET)
        self.mesh = meshes["echo"]
        self.stats = RunStats()

    def packs(self) -> None:
        return None

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        hold.wait(30)
        batches.append([self.mesh.rank, len(inputs[0])])
        if (inputs[0] == CRASH).all():
            raise ValueError(SECRET)
        if (inputs[0] == HANG).all():
            released.wait(30)
        self.mesh.exchange(b"x")
        self.stats.exchanges += 1
        return [inputs[0] * 2]

    def close(self) -> None:
        pass


def deal(description: Mapping[str, Any], meshes: Mapping[str, Mesh], **options: Any) -> None:
    while True:
        meshes["echo"].recv(0)
