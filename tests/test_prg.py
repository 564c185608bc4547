from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privserve.prg import KEY_BYTES, Prg, fresh_key

KEY = bytes(range(KEY_BYTES))


def reference(key: bytes, count: int) -> bytes:
    """AES-CTR written out: the encryption of the numbers 0, 1, 2, ..., one block each."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = (block.update(i.to_bytes(16, "big")) for i in range(count // 16 + 1))
    return b"".join(blocks)[:count]


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    assert Prg(KEY).bytes(1000) == reference(KEY, 1000)


@pytest.mark.parametrize("count", [0, 1, 15, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 100_000])
def test_filling_draws_the_same_stream_as_bytes(count: int) -> None:
    buffer = bytearray(b"\xff" * count)
    stream = Prg(KEY)
    stream.fill(memoryview(buffer))
    assert bytes(buffer) + stream.bytes(7) == Prg(KEY).bytes(count + 7)


def test_arrays_are_read_off_the_same_stream() -> None:
    stream = Prg(KEY)
    words, small = stream.int64((2, 3)), stream.uint8((5,))
    expected = Prg(KEY).bytes(6 * 8 + 5)
    assert words.tobytes() + small.tobytes() == expected
    assert words.shape == (2, 3)
    assert words.dtype == np.int64
    words[0, 0] = 1  # the arrays belong to the caller


def test_streams_without_a_key_differ_from_each_other() -> None:
    assert Prg().bytes(32) != Prg().bytes(32)
    assert fresh_key() != fresh_key()
    assert len(fresh_key()) == KEY_BYTES


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_the_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Prg(bytes(size))
