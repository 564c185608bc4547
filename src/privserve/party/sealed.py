"""Files at rest that only the holder of a key can read or change: AES-256-GCM in chunks.

    magic, file id (16 random bytes), then chunks: nonce (12 random bytes), length (4), ciphertext

Each chunk's associated data names what the file is about, its id, the chunk's number and whether
it is the last one: no chunk can be moved, left away or taken from another file, another party or
another cluster. An older file of the same name passes: nothing on one disk can tell.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privserve.errors import ConfigError
from privserve.files import sync_directory

MAGIC = b"privserve-sealed/1\n"
ID_BYTES, NONCE_BYTES, TAG_BYTES = 16, 12, 16
LENGTH = struct.Struct("<I")
CHUNK_BYTES = 16 << 20


def derived_key(key: bytes, *purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose; whoever has it learns nothing of the others."""
    info = json.dumps(["privserve", *purpose]).encode()
    return HKDF(hashes.SHA256(), 32, None, info).derive(key)


def write_sealed(
    path: Path, key: bytes, about: Sequence[str], parts: Sequence[bytes | memoryview]
) -> None:
    """Write the parts, one after the other, whole and durably or not at all; mode 0600.

    about: what the file is, which whoever reads it has to know.
    """
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    cipher, file_id = AESGCM(key), os.urandom(ID_BYTES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(MAGIC + file_id)
        for number, (chunk, is_last) in enumerate(_chunks(parts)):
            nonce = os.urandom(NONCE_BYTES)
            data = _associated(about, file_id, number, is_last)
            sealed = cipher.encrypt(nonce, chunk, data)
            file.write(nonce + LENGTH.pack(len(sealed)))
            file.write(sealed)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def read_sealed(path: Path, key: bytes, about: Sequence[str]) -> bytearray:
    """Return what was written; raises ConfigError for another key, or a file that was changed."""
    cipher, content, found = AESGCM(key), path.read_bytes(), bytearray()
    at = len(MAGIC) + ID_BYTES
    if not content.startswith(MAGIC) or len(content) < at:
        raise ConfigError(f"{path} is no state of a privserve party of this version")
    file_id, number, is_last = content[len(MAGIC) : at], 0, False
    while not is_last:
        head = content[at : at + NONCE_BYTES + LENGTH.size]
        if len(head) < NONCE_BYTES + LENGTH.size:
            raise _damaged(path)
        nonce, (size,) = head[:NONCE_BYTES], LENGTH.unpack(head[NONCE_BYTES:])
        at += len(head)
        sealed = memoryview(content)[at : at + size]
        at += size
        is_last = at == len(content)
        if at > len(content):
            raise _damaged(path)
        try:
            found += cipher.decrypt(nonce, sealed, _associated(about, file_id, number, is_last))
        except (InvalidTag, ValueError):
            raise _damaged(path) from None
        number += 1
    return found


def _damaged(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} cannot be decrypted: the key is another one than it was written with, or the file "
        "is damaged or of another party. It was left as it is: start the party with the right "
        "key, or without this file, and the model owner shares the model again"
    )


def _associated(about: Sequence[str], file_id: bytes, number: int, is_last: bool) -> bytes:
    return json.dumps([*about, file_id.hex(), number, is_last]).encode()


def _chunks(parts: Sequence[bytes | memoryview]) -> Iterator[tuple[bytes, bool]]:
    """The parts, joined and cut into chunks; whether each is the last one."""
    buffer = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            buffer += view[start : start + CHUNK_BYTES]
            while len(buffer) > CHUNK_BYTES:
                yield bytes(buffer[:CHUNK_BYTES]), False
                del buffer[:CHUNK_BYTES]
    yield bytes(buffer), True
