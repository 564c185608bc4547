"""Threads that work when the cores have nothing better to do."""

from __future__ import annotations

import contextlib
import os
import threading


def step_back() -> None:
    """Have the calling thread run when nothing else of this host's wants its core.

    Linux gives such a thread's core at once to any other one that wakes, which no niceness does.
    Where it cannot be had queries are slower now and then, and nothing else changes.
    """
    with contextlib.suppress(AttributeError, OSError):  # another system; a sandbox that forbids it
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
