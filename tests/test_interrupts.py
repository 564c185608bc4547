"""An interrupt that Python would drop arrives all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, signal, sys, time
from privserve.interrupts import keep_interrupts

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGNAL)

def in_a_finaliser():
    Dropped()

def in_a_callback_from_c():
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGNAL))()

keep_interrupts()
try:
    WHERE()
    print("dropped", flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("arrived", flush=True)
"""


@pytest.mark.parametrize("where", ["in_a_finaliser", "in_a_callback_from_c"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_python_drops_is_raised_again(where: str, number: str) -> None:
    program = PROGRAM.replace("WHERE", where).replace("SIGNAL", number)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert run.stdout.split() == ["dropped", "arrived"]
    assert not run.stderr


def test_other_exceptions_in_a_finaliser_are_still_told() -> None:
    program = PROGRAM.replace("signal.raise_signal(signal.SIGNAL)", "int('seen')")
    program = program.replace("WHERE", "in_a_finaliser").replace("signal.pause()", "pass")
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert "ValueError: invalid literal" in run.stderr
