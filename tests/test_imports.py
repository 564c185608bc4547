"""What each program loads: a client needs no torch, a party nothing that only its owner needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = {
    "privserve": ("numpy", "torch", "onnx", "numba", "httpx", "converters"),
    "privserve.party.__main__": (
        *("torch", "onnx", "numba", "httpx", "converters", "prometheus_client"),
        "opentelemetry",
    ),
    "privserve.engines": ("torch", "onnx", "numba", "httpx"),
    "privserve.client": ("torch", "onnx", "numba", "converters", "privserve.party"),
    "privserve.cluster": ("torch", "onnx", "numba", "converters", "privserve.party"),
    "privserve.engines.ottt.compute": ("torch", "onnx", "httpx", "privserve.compiler"),
    "privserve.engines.ottt.dealer": ("torch", "onnx", "httpx", "privserve.compiler"),
    "privserve.gateway.__main__": (
        *("torch", "onnx", "numba", "httpx", "grpc", "converters", "privserve.party"),
    ),
    "privserve.commands": ("numpy", "torch", "argparse", "runpy", "importlib.metadata"),
    "privserve.batch.__main__": (
        *("torch", "onnx", "numba", "httpx", "converters", "privserve.party", "pyarrow", "ray"),
    ),
    "privserve.status": (
        *("torch", "onnx", "numba", "converters", "privserve.party", "prometheus_client"),
    ),
    "privserve.launch": ("torch", "onnx", "numba", "httpx", "converters"),
}


@pytest.mark.parametrize(("module", "forbidden"), FORBIDDEN.items(), ids=FORBIDDEN)
def test_a_program_loads_nothing_that_it_does_not_need(
    module: str, forbidden: tuple[str, ...]
) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout == "[]\n", ran.stdout + ran.stderr
