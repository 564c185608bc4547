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
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch.distributed import ReduceOp

from privserve.errors import ClusterError
from privserve.mesh import Mesh
from privserve.prg import KEY_BYTES, Prg, fresh_key

LANE = "crypten"

# What the dealer does on request: CrypTen's own list, and the bilinear maps of its triples.
DEALER_FUNCTIONS = frozenset({"additive", "square", "binary", "wraps", "B2A"})
BILINEAR_OPS = frozenset(
    {"mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"}
)


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

    Collective operations run among the compute parties; `dealer_request` and
    `dealer_requests` are the only traffic with the dealer.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.exchanges = 0

    def get_rank(self) -> int:
        """Return 0..n-1 for compute parties, n for the dealer."""
        return self.mesh.rank

    def get_world_size(self) -> int:
        """Return the number of compute parties."""
        return self.mesh.n

    def get_ttp_rank(self) -> int:
        """Return the dealer's rank."""
        return self.mesh.n

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Combine everyone's tensors with `op`; a batch of tensors takes one exchange."""
        tensors = input if batched else [input]
        flat = torch.cat([t.reshape(-1) for t in tensors]) if len(tensors) > 1 else tensors[0]
        flat = flat.contiguous()
        self.exchanges += 1
        total = flat.clone().reshape(-1)
        for frame in self.mesh.exchange(_bytes(flat)):
            if frame is not None:
                _combine(total, torch.frombuffer(frame, dtype=torch.int64), op)
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
            self.mesh.send(dst, _bytes(tensor))
            return [None]
        return [
            tensor if peer == dst else _tensor(self.mesh.recv(peer), tensor.shape)
            for peer in range(self.mesh.n)
        ]

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return everyone's tensors, by rank."""
        self.exchanges += 1
        frames = self.mesh.exchange(_bytes(tensor))
        return [tensor if f is None else _tensor(f, tensor.shape) for f in frames]

    def dealer_request(
        self, function: str, shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Ask the dealer for party 0's correction, an int64 tensor of the given shape.

        The request holds shapes and the name of a bilinear map, all of them public.
        """
        message = {"function": function, "args": args, "kwargs": kwargs}
        self.mesh.send(self.get_ttp_rank(), json.dumps(message).encode())
        return _tensor(self.mesh.recv(self.get_ttp_rank()), shape)

    def __getattr__(self, name: str) -> Any:
        raise ClusterError(
            f"CrypTen wants the communicator's '{name}', which moves pickled objects or data "
            "that privserve does not send; the model uses an op that the crypten engine lacks"
        )


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().numpy()).cast("B")  # type: ignore[arg-type]


def _tensor(frame: memoryview, shape: Sequence[int]) -> torch.Tensor:
    return torch.frombuffer(bytearray(frame), dtype=torch.int64).reshape(tuple(shape))


def _combine(total: torch.Tensor, other: torch.Tensor, op: Any) -> None:
    if op == ReduceOp.SUM:
        total += other.reshape(total.shape)
    elif op == ReduceOp.BXOR:
        total ^= other.reshape(total.shape)
    else:
        raise ValueError(f"CrypTen asked for the reduction {op}, which is not used in inference")


def _product_shape(op: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> torch.Size:
    """The shape of op(left, right), without computing it."""
    operands = (
        torch.empty(tuple(size), dtype=torch.float32, device="meta") for size in (left, right)
    )
    shape: torch.Size = getattr(torch, op)(*operands, *args, **kwargs).shape
    return shape


def _make_provider(communicator: MeshCommunicator, stream: Stream) -> Any:
    """CrypTen's TrustedThirdParty provider over our channels.

    Every party draws its share of a triple from the stream that it has in common with the
    dealer; party 0 gets its share of the product, the correction, from the dealer.
    """
    from crypten.mpc.primitives import ArithmeticSharedTensor
    from crypten.mpc.provider import ttp_provider

    class DealerClient:
        """Stands where CrypTen looks for its TTPClient."""

        def get_generator(self, device: Any = None) -> Stream:
            return stream

        def ttp_request(self, function: str, device: Any, *args: Any, **kwargs: Any) -> Any:
            sizes = [tuple(a) if isinstance(a, torch.Size) else a for a in args]
            if function == "additive":
                left, right, op, *rest = sizes
                shape = _product_shape(op, left, right, *rest, **kwargs)
            elif function == "binary":
                shape = _product_shape("mul", sizes[0], sizes[1])
            else:
                shape = torch.Size(sizes[0])
            return communicator.dealer_request(function, shape, *sizes, **kwargs)

    class Provider(ttp_provider.TrustedThirdParty):  # type: ignore[misc]
        """As CrypTen's, but the other parties need not compute the product for its shape."""

        def generate_additive_triple(
            self, size0: Any, size1: Any, op: str, device: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            if communicator.get_rank() == 0:
                return super().generate_additive_triple(size0, size1, op, device, *args, **kwargs)
            shape = _product_shape(op, size0, size1, *args, **kwargs)
            return tuple(
                ArithmeticSharedTensor.from_shares(stream_tensor(size), precision=0)
                for size in (size0, size1, shape)
            )

    def stream_tensor(size: Any) -> torch.Tensor:
        return generate_random_ring_element(size, generator=stream)

    ttp_provider.TTPClient._TTPClient__instance = DealerClient()
    return Provider()


def join_session(mesh: Mesh) -> MeshCommunicator:
    """Make this process a compute party of a CrypTen session on `mesh`; collective.

    Each party gets one 256-bit key from the dealer, for the triples, and exchanges keys
    with its neighbours for CrypTen's pseudorandom sharings of zero.
    """
    crypten = import_crypten()
    from crypten import communicator, mpc

    comm = MeshCommunicator(mesh)
    communicator.get = lambda: comm
    communicator.is_initialized = lambda: True
    crypten.cfg.mpc.provider = "TTP"
    key = bytes(mesh.recv(mesh.n))
    if len(key) != KEY_BYTES:
        raise ClusterError("the dealer sent a malformed key; do all parties run one version?")
    provider = _make_provider(comm, Stream(key))
    mpc.get_default_provider = lambda: provider
    next_key = fresh_key()
    mesh.send((mesh.rank + 1) % mesh.n, next_key)
    previous_key = bytes(mesh.recv((mesh.rank - 1) % mesh.n))
    device = torch.device("cpu")
    crypten.generators["next"] = {device: Stream(next_key)}
    crypten.generators["prev"] = {device: Stream(previous_key)}
    crypten.generators["local"] = {device: Stream()}
    # Nothing in inference draws from the generator that all parties share.
    crypten.generators["global"] = {}
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))
    return comm


def deal_session(mesh: Mesh) -> None:
    """Be the dealer of a CrypTen session on `mesh` until its parties leave.

    Sends each compute party a fresh key, then answers party 0's requests. Nothing else is
    ever received: the dealer reads shapes, not shares.
    """
    import_crypten()
    from crypten.mpc.provider import ttp_provider

    keys = [fresh_key() for _ in range(mesh.n)]

    class Server(ttp_provider.TTPServer):  # type: ignore[misc]
        """CrypTen's server functions, without its message loop."""

        def __init__(self) -> None:
            self.device = "cpu"
            self.generators = [Stream(key) for key in keys]

    server = Server()
    for peer, key in enumerate(keys):
        mesh.send(peer, key)
    while True:
        message = json.loads(bytes(mesh.recv(0)))
        function, args = message["function"], message["args"]
        if function not in DEALER_FUNCTIONS or (
            function == "additive" and args[2] not in BILINEAR_OPS
        ):
            raise ClusterError("party 0 asked the dealer for a function that it does not offer")
        correction = getattr(server, function)(*args, **message["kwargs"])
        mesh.send(0, _bytes(correction))
