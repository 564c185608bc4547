"""Pseudorandom streams from AES-256 in counter mode (NIST SP 800-38A), and fresh keys.

Everything secret that privserve draws comes from here: a key from the operating system's
CSPRNG, stretched with AES-CTR. Two holders of one key draw the same stream as long as
they draw the same sizes in the same order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32
_ZEROS = memoryview(bytes(1 << 15))


def fresh_key() -> bytes:
    """A 256-bit key from the operating system's CSPRNG."""
    return os.urandom(KEY_BYTES)


class Prg:
    """One AES-256-CTR keystream, read from its beginning; not thread-safe.

    The counter starts at zero, so a key must serve one stream only: derive or draw a new
    key for every further stream.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """key: 32 bytes; a fresh one when None (then nobody else can draw this stream)."""
        if key is not None and len(key) != KEY_BYTES:
            raise ValueError(f"a PRG key has {KEY_BYTES} bytes, not {len(key)}")
        cipher = Cipher(algorithms.AES(key or fresh_key()), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def fill(self, out: memoryview) -> None:
        """Overwrite `out` (writable, contiguous) with the next bytes of the stream."""
        if not out.nbytes:
            return
        flat = out.cast("B")
        # The keystream is the encryption of zeros; a block of them stays in the cache.
        for start in range(0, len(flat), len(_ZEROS)):
            piece = flat[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(piece)], piece)

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes of the stream."""
        return self._encryptor.update(bytes(count))

    def int64(self, shape: int | Sequence[int]) -> NDArray[np.int64]:
        """int64[shape], uniform over the ring Z_2^64."""
        out = np.empty(shape, dtype=np.int64)
        self.fill(out.reshape(-1).data)
        return out

    def uint8(self, shape: int | Sequence[int]) -> NDArray[np.uint8]:
        """uint8[shape], uniform."""
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        return np.frombuffer(bytearray(self.bytes(math.prod(dims))), dtype=np.uint8).reshape(dims)
