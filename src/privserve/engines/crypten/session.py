"""A CrypTen session: how a compute party joins it, gets its tuples, and how they are dealt."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from privserve.engines.crypten.compat import (
    MeshCommunicator,
    Stream,
    bytes_of,
    generate_kbit_random_tensor,
    generate_random_ring_element,
    import_crypten,
    receive,
    receive_key,
)
from privserve.engines.crypten.dealing import (
    REQUEST_BYTES,
    Request,
    agreed,
    format_request,
    read_request,
)
from privserve.mesh import Mesh
from privserve.prg import fresh_key


class Provider:
    """In the place of CrypTen's TrustedThirdParty provider: tuples from the dealer.

    Every party says which tuple it is at and draws its shares from the stream that it has in
    common with the dealer; party 0 gets its share of the last tensor, the correction, from the
    dealer. The others wait for nothing.
    """

    def __init__(self, mesh: Mesh, stream: Stream) -> None:
        self._mesh = mesh
        self._stream = stream
        self._dealer = mesh.n

    def generate_additive_triple(
        self,
        size0: Sequence[int],
        size1: Sequence[int],
        op: str,
        device: Any = None,
        **options: Any,
    ) -> tuple[Any, Any, Any]:
        """Return shares of uniform a and b of these sizes, and of c = op(a, b)."""
        request = self._ask("additive", (size0, size1), op, options)
        a, b = self._ring(size0), self._ring(size1)
        return _arithmetic(a), _arithmetic(b), _arithmetic(self._last(request))

    def square(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        """Return shares of a uniform r and of r^2."""
        request = self._ask("square", (size,))
        r = self._ring(size)
        return _arithmetic(r), _arithmetic(self._last(request))

    def generate_binary_triple(
        self, size0: Sequence[int], size1: Sequence[int], device: Any = None
    ) -> tuple[Any, Any, Any]:
        """Return XOR shares of uniform a and b of these sizes, and of c = a & b."""
        request = self._ask("binary", (size0, size1))
        a, b = self._ring(size0), self._ring(size1)
        return _binary(a), _binary(b), _binary(self._last(request))

    def wrap_rng(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:
        """Return shares of a uniform r, and of how often their sum leaves the ring."""
        request = self._ask("wraps", (size,))
        r = self._ring(size)
        return _arithmetic(r), _arithmetic(self._last(request))

    def B2A_rng(self, size: Sequence[int], device: Any = None) -> tuple[Any, Any]:  # noqa: N802
        """Return additive and XOR shares of the same uniform bits."""
        request = self._ask("B2A", (size,))
        bits = generate_kbit_random_tensor(size, bitlength=1, generator=self._stream)
        return _arithmetic(self._last(request)), _binary(bits)

    def _ask(
        self,
        function: str,
        sizes: Sequence[Sequence[int]],
        op: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Request:
        """Tell the dealer what this party is at, before its words for it are drawn."""
        frame = format_request(function, sizes, op, options)
        request = read_request(frame)
        self._mesh.send(self._dealer, frame)
        return request

    def _ring(self, size: Sequence[int]) -> torch.Tensor:
        return generate_random_ring_element(size, generator=self._stream)

    def _last(self, request: Request) -> torch.Tensor:
        if self._mesh.rank == 0:
            return receive(self._mesh, self._dealer, request.shape)
        return self._ring(request.shape)


def _arithmetic(share: torch.Tensor) -> Any:
    from crypten.mpc.primitives import ArithmeticSharedTensor

    return ArithmeticSharedTensor.from_shares(share, precision=0)


def _binary(share: torch.Tensor) -> Any:
    from crypten.mpc.primitives import BinarySharedTensor

    return BinarySharedTensor.from_shares(share)


def join_session(mesh: Mesh) -> MeshCommunicator:
    """Make this process a compute party of a CrypTen session on `mesh`; collective.

    Each party gets one 256-bit key from the dealer, for the tuples, and exchanges keys
    with its neighbours for CrypTen's pseudorandom sharings of zero.
    """
    crypten = import_crypten()
    from crypten import communicator, mpc

    comm = MeshCommunicator(mesh)
    communicator.get = lambda: comm
    communicator.is_initialized = lambda: True
    provider = Provider(mesh, Stream(receive_key(mesh, mesh.n)))
    mpc.get_default_provider = lambda: provider
    next_key = fresh_key()
    mesh.send((mesh.rank + 1) % mesh.n, next_key)
    previous_key = receive_key(mesh, (mesh.rank - 1) % mesh.n)
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

    Sends each compute party a fresh key, then answers what all of them ask for, to party 0.
    Nothing else is ever received: the dealer reads shapes, not shares. It reads one request of
    each party and then the next ones; whoever is ahead has nothing to wait for until it needs
    the others, so nobody waits in a circle. Raises ClusterError where the parties ask for
    different things, or for what is no request; then nothing is dealt any more.
    """
    import_crypten()
    from crypten.mpc.provider import ttp_provider

    keys = [fresh_key() for _ in range(mesh.n)]

    class Server(ttp_provider.TTPServer):  # type: ignore[misc]
        """CrypTen's server functions, without its message loop."""

        def __init__(self) -> None:
            self.device = "cpu"
            self.generators = [Stream(key) for key in keys]

    server, names = Server(), [mesh.name(peer) for peer in range(mesh.n)]
    for peer, key in enumerate(keys):
        mesh.limit(peer, REQUEST_BYTES)
        mesh.send(peer, key)
    while True:
        request = agreed([bytes(mesh.recv(peer)) for peer in range(mesh.n)], names)
        correction = getattr(server, request.function)(*request.arguments, **request.options)
        mesh.send(0, bytes_of(correction))
