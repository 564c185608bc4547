"""Everything that CrypTen 0.4.1 needs before it runs here, in one place.

CrypTen as released (a) does not import on torch >= 2.9, (b) moves pickled objects between
processes over plaintext gloo, and (c) draws shares and triples from `torch.Generator`, a
Mersenne Twister. This module gives it (a) the import path that it expects, (b) a
communicator on our TLS channels, and (c) AES-CTR streams keyed by the operating system.
CrypTen keeps its state in module globals, so a process takes part in one session at a
time.
"""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch.distributed import ReduceOp

from privserve.errors import ClusterError
from privserve.mesh import Mesh
from privserve.prg import KEY_BYTES, Prg

LANE = "crypten"

WORD_BYTES = 8


def import_crypten() -> ModuleType:
    """Import CrypTen with our randomness in place of its own; safe to call again."""
    moved = "torch.onnx._internal.registration"
    if moved not in sys.modules:
        try:
            importlib.import_module(moved)
        except ModuleNotFoundError:
            sys.modules[moved] = importlib.import_module(
                "torch.onnx._internal.torchscript_exporter.registration"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crypten = importlib.import_module("crypten")
    for name in (
        "crypten.common.rng",
        "crypten.mpc.primitives.arithmetic",
        "crypten.mpc.primitives.binary",
        "crypten.mpc.provider.ttp_provider",
        "crypten.mpc.provider.tfp_provider",
    ):
        module = importlib.import_module(name)
        for function in (generate_random_ring_element, generate_kbit_random_tensor):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)
    return crypten


class Stream(Prg):
    """A keystream in the place of a `torch.Generator`; CrypTen asks it for its device."""

    device = torch.device("cpu")


def generate_random_ring_element(
    size: Any,
    ring_size: int = 2**64,
    generator: Stream | None = None,
    device: Any = None,
) -> torch.Tensor:
    """Return int64[size], uniform over Z_2^64, from `generator` or a fresh key.

    Replaces `crypten.common.rng.generate_random_ring_element`, which draws from a Mersenne
    Twister and never yields the largest element.
    """
    if ring_size != 2**64:
        raise ValueError("only the ring Z_2^64 is drawn from")
    return torch.from_numpy((generator or Prg()).int64(_shape(size)))


def generate_kbit_random_tensor(
    size: Any,
    bitlength: int | None = None,
    generator: Stream | None = None,
    device: Any = None,
) -> torch.Tensor:
    """Return int64[size], uniform in 0..2^bitlength - 1; see `generate_random_ring_element`."""
    if bitlength is None or bitlength == 64:
        return generate_random_ring_element(size, generator=generator)
    stream = generator or Prg()
    mask = (1 << bitlength) - 1
    if bitlength <= 8:
        return torch.from_numpy(stream.uint8(_shape(size))).bitwise_and_(mask).long()
    return torch.from_numpy(stream.int64(_shape(size))).bitwise_and_(mask)


def _shape(size: Any) -> tuple[int, ...]:
    return (int(size),) if isinstance(size, int) else tuple(int(d) for d in size)


class MeshCommunicator:
    """CrypTen's `Communicator` on a mesh of our channels: tensors travel raw, never pickled.

    Collective operations run among the compute parties. What a peer sends has the size that this
    party expects at that step, or ends the session: a larger frame is not even received.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.exchanges = 0
        self._peers = [peer for peer in range(mesh.n) if peer != mesh.rank]

    def get_rank(self) -> int:
        """Return 0..n-1 for compute parties."""
        return self.mesh.rank

    def get_world_size(self) -> int:
        """Return the number of compute parties."""
        return self.mesh.n

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Combine everyone's tensors with `op`; a batch of tensors takes one exchange."""
        tensors = input if batched else [input]
        flat = torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0]
        flat = flat.contiguous().reshape(-1)
        total = flat.clone()
        for theirs in self._exchanged(flat):
            if theirs is not None:
                _combine(total, theirs, op)
        if not batched:
            return total.reshape(input.shape)
        sizes = [t.numel() for t in tensors]
        return [p.reshape(t.shape) for p, t in zip(total.split(sizes), tensors, strict=True)]

    def reduce(
        self,
        input: Any,
        dst: int,
        op: Any = ReduceOp.SUM,
        batched: bool = False,
    ) -> Any:
        """Combine everyone's tensors at party `dst` alone; None elsewhere."""
        tensors = input if batched else [input]
        results = []
        for tensor in tensors:
            parts = self.gather(tensor, dst)
            if self.get_rank() == dst:
                total = parts[0].clone()
                for part in parts[1:]:
                    _combine(total, part, op)
                results.append(total)
        if self.get_rank() != dst:
            return None
        return results if batched else results[0]

    def gather(self, tensor: torch.Tensor, dst: int) -> list[Any]:
        """Return everyone's tensors, by rank, at party `dst`; [None] elsewhere."""
        self.exchanges += 1
        if self.get_rank() != dst:
            self.mesh.send(dst, bytes_of(tensor))
            return [None]
        return [
            tensor if peer == dst else receive(self.mesh, peer, tensor.shape)
            for peer in range(self.mesh.n)
        ]

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return everyone's tensors, by rank."""
        return [tensor if t is None else t.clone() for t in self._exchanged(tensor)]

    def _exchanged(self, tensor: torch.Tensor) -> list[torch.Tensor | None]:
        """The others' tensors of this shape, until the next exchange; None at the own rank."""
        self.exchanges += 1
        payload = bytes_of(tensor)
        for peer in self._peers:
            self.mesh.limit(peer, payload.nbytes)
        return [
            None if frame is None else _tensor(frame, tensor.shape, self.mesh.name(peer))
            for peer, frame in enumerate(self.mesh.exchange(payload))
        ]

    def __getattr__(self, name: str) -> Any:
        raise ClusterError(
            f"CrypTen wants the communicator's '{name}', which moves pickled objects or data "
            "that privserve does not send; the model uses an op that the crypten engine lacks"
        )


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the words of an int64 tensor as they are sent."""
    return memoryview(tensor.contiguous().numpy()).cast("B")  # type: ignore[arg-type]


def receive(mesh: Mesh, peer: int, shape: Sequence[int]) -> torch.Tensor:
    """Return the next frame from `peer` as int64[shape]; ClusterError where it is another."""
    mesh.limit(peer, WORD_BYTES * math.prod(shape))
    return _tensor(mesh.recv(peer), shape, mesh.name(peer)).clone()


def receive_key(mesh: Mesh, peer: int) -> bytes:
    """Return the next frame from `peer` as a key; ClusterError where it is none."""
    mesh.limit(peer, KEY_BYTES)
    key = bytes(mesh.recv(peer))
    if len(key) != KEY_BYTES:
        raise ClusterError(
            f"{mesh.name(peer)} sent a malformed key; do all parties run one version?"
        )
    return key


def _tensor(frame: memoryview, shape: Sequence[int], sender: str) -> torch.Tensor:
    """A frame as int64[shape], without a copy."""
    expected = WORD_BYTES * math.prod(shape)
    if frame.nbytes != expected:
        raise ClusterError(
            f"{sender} sent {frame.nbytes} bytes where {expected} were to come: it is at another "
            "step, or runs other code; share the model again"
        )
    return torch.frombuffer(frame, dtype=torch.int64).reshape(tuple(shape))


def _combine(total: torch.Tensor, other: torch.Tensor, op: Any) -> None:
    if op == ReduceOp.SUM:
        total += other
    elif op == ReduceOp.BXOR:
        total ^= other
    else:
        raise ValueError(f"CrypTen asked for the reduction {op}, which is not used in inference")
