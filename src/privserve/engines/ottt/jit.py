"""How the fused kernels are compiled: eagerly, for the host, without the GIL, cached on disk.

All kernels work on int64 with wraparound. Numba promotes mixed int64/uint64 arithmetic to
floats, so unsigned words never appear: a logical shift is an arithmetic one and a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


INT64 = numba.types.int64
WORDS = numba.types.Array(INT64, 1, "C")
ROWS = numba.types.Array(INT64, 2, "C")
PLANES = numba.types.Array(INT64, 3, "C")
RECEIVED_WORDS = numba.types.Array(INT64, 1, "C", readonly=True)
RECEIVED_ROWS = numba.types.Array(INT64, 2, "C", readonly=True)
NOTHING = numba.types.void


def kernel(signature: Any = None) -> Callable[[Kernel], Kernel]:
    """Compile a function for `signature` at import, or inline it where it is None."""
    options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
    if signature is None:
        compiled: Any = numba.njit(inline="always", **options)
    else:
        compiled = numba.njit(signature, **options)
    return cast(Callable[[Kernel], Kernel], compiled)
