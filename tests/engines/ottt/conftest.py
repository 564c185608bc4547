"""Kernels are compiled by whoever runs a session; these tests call them directly too."""

from __future__ import annotations

import pytest

from privserve.engines.ottt import ops
from privserve.engines.ottt.jit import compile_kernels


@pytest.fixture(scope="session", autouse=True)
def _kernels() -> None:
    assert ops.TUPLE_OPS  # whose import has defined them all
    compile_kernels()
