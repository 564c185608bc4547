"""How the fused kernels are compiled: for the host, without the GIL, cached on disk.

All kernels work on int64 with wraparound. Numba promotes mixed int64/uint64 arithmetic to
floats, so unsigned words never appear: a logical shift is an arithmetic one and a mask.

A kernel's annotations are its signature. It is compiled for them alone, by `compile_kernels`, and
not when its module is imported: whoever only asks what a program costs compiles nothing. Called
with other types, or too early, it raises instead of compiling a version of its own.

What is on the disk counts for exactly these sources: Numba compares a kernel's own file alone, but
its code holds that of all kernels that it calls.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import numba
import numpy as np
from numpy.typing import NDArray

from privserve.fixedpoint import RingArray

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_INT64 = numba.types.int64
_ARRAY = numba.types.Array

Words = Annotated[RingArray, _ARRAY(_INT64, 1, "C")]
Rows = Annotated[RingArray, _ARRAY(_INT64, 2, "C")]
Planes = Annotated[RingArray, _ARRAY(_INT64, 3, "C")]
Indices = Annotated[NDArray[np.int32], _ARRAY(numba.types.int32, 2, "C")]
ReceivedRows = Annotated[RingArray, _ARRAY(_INT64, 2, "C", readonly=True)]
"""Of a frame or a cached table: read only."""

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
_HERE = Path(__file__).parent
_SOURCES = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(_HERE.rglob("*.py")))).digest()
"""Of all files that kernels are in."""
_lock = threading.Lock()
_waiting: list[tuple[Any, tuple[Any, ...]]] = []
"""Kernels that are not compiled yet, with the types of their arguments, in order of definition."""


def kernel(function: Kernel) -> Kernel:
    """Make a kernel of a function whose arguments are annotated with `int` and the types above.

    Kernels write into their arguments and return nothing. A kernel may call those defined
    before it.
    """
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return")
    signature = tuple(_INT64 if hint is int else hint.__metadata__[0] for hint in hints.values())
    dispatcher = numba.njit(function, **_OPTIONS)
    # What `disable_compile` does, which wants a compiled version first.
    dispatcher._can_compile = False
    # Added to the stamp of the kernel's own file; no public way leads there.
    cached = dispatcher._cache._cache_file
    cached._source_stamp = (cached._source_stamp, _SOURCES)
    _waiting.append((dispatcher, signature))
    return cast(Kernel, dispatcher)


def inlined(function: Kernel) -> Kernel:
    """Make a part of kernels: it becomes part of each one that calls it, constants folded."""
    return cast(Kernel, numba.njit(function, inline="always", **_OPTIONS))


def compile_kernels() -> None:
    """Compile all kernels that were defined so far, or load them from the disk.

    Takes a minute without a cache. Every thread that calls kernels calls this before.
    """
    with _lock:
        while _waiting:
            dispatcher, signature = _waiting[0]
            dispatcher.disable_compile(False)
            dispatcher.compile(signature)
            dispatcher.disable_compile()
            del _waiting[0]
