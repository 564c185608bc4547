"""Reads HDF5 without trusting it.

A file is followed through hard links only: soft and external links, virtual and
external datasets can point out of the file and Keras writes none of them. What a
dataset claims to hold is compared with the size of the file before it is read, so a
small file cannot ask for all of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError

MAX_BYTES = 8 << 30  # of all weights of a model
MAX_RATIO = 64  # unpacked to stored, beyond the first FREE_BYTES
FREE_BYTES = 64 << 20
MAX_TEXT = 64 << 20  # of a configuration

DAMAGED = "the file is damaged (truncated, or changed in transfer); fetch it again in binary mode"


@dataclass(frozen=True)
class Branch:
    """A group that exists in names only: tf.keras on Windows joined names by backslashes.

    What should be the group `dense` in the group `layers` is called `layers\\dense` there.
    """

    root: h5py.Group
    path: str

    def onwards(self, name: str) -> Branch | None:
        """Return the branch or group `name` below, or None."""
        path = f"{self.path}\\{name}"
        exists = any(key == path or key.startswith(f"{path}\\") for key in self.root)
        return Branch(self.root, path) if exists else None

    def __contains__(self, name: str) -> bool:
        return self.onwards(name) is not None

    def __len__(self) -> int:
        start = f"{self.path}\\"
        return len({key[len(start) :].split("\\")[0] for key in self.root if key.startswith(start)})


class Hdf5:
    """An open HDF5 file and what may still be read from it.

    budget: bytes of datasets that may still be unpacked.
    """

    def __init__(self, root: h5py.Group, stored_bytes: int) -> None:
        self.root = root
        self.budget = min(MAX_BYTES, FREE_BYTES + MAX_RATIO * stored_bytes)

    def text(self, group: h5py.Group, name: str) -> str | None:
        """Return a string attribute, or None if there is none."""
        if name not in group.attrs:
            return None
        value = group.attrs[name]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]
        if not isinstance(value, str | bytes) or len(value) > MAX_TEXT:
            raise ConversionError(f"its attribute {name!r} is not a text of acceptable length")
        try:
            return value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise ConversionError(f"its attribute {name!r} is not text; {DAMAGED}") from None

    def names(self, group: h5py.Group, attribute: str) -> list[str] | None:
        """Return a list of names; Keras spreads a long one over `attribute`0, `attribute`1, ..."""
        if attribute in group.attrs:
            return _as_names(group.attrs[attribute])
        names: list[str] = []
        part = 0
        while f"{attribute}{part}" in group.attrs:
            names += _as_names(group.attrs[f"{attribute}{part}"])
            part += 1
        return names if part else None

    def group(self, parent: h5py.Group | Branch, name: str) -> h5py.Group | Branch | None:
        """Return the group `name` directly under `parent`, or None if there is none."""
        if isinstance(parent, Branch):
            found = self._on_branch(parent, name)
        else:
            found = self._child(parent, name)
            if found is None and any(key.startswith(f"{name}\\") for key in parent):
                found = Branch(parent, name)
        if isinstance(found, Branch):
            return found
        if found is not None and not isinstance(found, h5py.Group):
            raise ConversionError(f"{name!r} in the file is not a group; {DAMAGED}")
        return found

    def _on_branch(self, branch: Branch, name: str) -> Any:
        inner = self._child(branch.root, branch.path)
        if isinstance(inner, h5py.Group) and (found := self._child(inner, name)) is not None:
            return found
        return branch.onwards(name)

    def array(self, parent: h5py.Group, path: str) -> NDArray[np.generic]:
        """Return the numbers at `path` under `parent`."""
        found: Any = parent
        for name in path.split("/"):
            if not name or name == "." or not isinstance(found, h5py.Group):
                raise ConversionError(f"the weight name {path!r} is malformed")
            found = self._child(found, name)
            if found is None:
                raise ConversionError(f"the weight {path!r} is missing; {DAMAGED}")
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu":
            raise ConversionError(f"the weight {path!r} is not an array of numbers")
        if found.is_virtual or found.external:
            raise ConversionError(f"the weight {path!r} is kept outside of the file; save it anew")
        self.budget -= found.nbytes
        if self.budget < 0:
            raise ConversionError(
                f"the weight {path!r} unpacks to far more than the file holds; it is not read"
            )
        return np.asarray(found[()])

    @staticmethod
    def _child(parent: h5py.Group, name: str) -> Any:
        link = parent.get(name, getlink=True) if name in parent.keys() else None  # noqa: SIM118
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ConversionError(f"{name!r} in the file is a link elsewhere; save it anew")
        return parent[name]


@contextmanager
def open_hdf5(file: Path | IO[bytes], stored_bytes: int) -> Iterator[Hdf5]:
    """Open an HDF5 file and turn what h5py says about damage into a ConversionError."""
    try:
        with h5py.File(file, "r") as root:
            yield Hdf5(root, stored_bytes)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise ConversionError(f"{DAMAGED} ({error})") from None


def _as_names(value: object) -> list[str]:
    items = value.ravel().tolist() if isinstance(value, np.ndarray) else []
    names = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in items]
    if not all(isinstance(name, str) for name in names):
        raise ConversionError(f"a list of names in the file is malformed; {DAMAGED}")
    return names
