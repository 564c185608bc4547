"""Ctrl-C that arrives where Python cannot raise it, and comes again a moment later."""

from __future__ import annotations

import signal
import sys
from types import FrameType

AGAIN_SECONDS = 0.05


def interrupt(*_: int | FrameType | None) -> None:
    """A signal's handler that does what Ctrl-C does."""
    raise KeyboardInterrupt


def keep_interrupts() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, and let none of them be lost.

    Python drops an exception that is raised in a finaliser or in a callback from C, such as
    those that run while kernels are compiled; the user would press Ctrl-C and see the program go
    on. Here the interrupt is raised again, from a timer, until it arrives. Call from the main
    thread of a program, not of a library: handlers and the hook are the process's own.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    former = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:
            former(dropped)

    sys.unraisablehook = hook
