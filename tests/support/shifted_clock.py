"""A wall clock that a test can set while a process runs: of that process alone, and all of it.

TLS, Python and whatever else asks the C library for the time of day is told another one. What
measures durations goes by another clock, and is not touched; neither does a real jump.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shift;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("PRIVSERVE_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED) shift = found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *shift;
    return failed;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
"""


class ShiftedClock:
    """A clock that is right until it is set."""

    def __init__(self, library: Path, home: Path) -> None:
        self._path = home / "clock"
        self._path.write_bytes(struct.pack("q", 0))
        self.environment = {"LD_PRELOAD": str(library), "PRIVSERVE_TEST_CLOCK": str(self._path)}

    def set(self, seconds: int) -> None:
        """Have it go by so much before the right time; 0: right again."""
        with self._path.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("q", seconds))


def build(directory: Path) -> Path:
    """Compile the library."""
    source, library = directory / "clock.c", directory / "clock.so"
    source.write_text(SOURCE)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    return library
