"""How every command of ours ends: with an exit code, and its error in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

from privserve.errors import PrivserveError

FAILED = 2
INTERRUPTED = 130


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def exit_code(
    work: Callable[[], int],
    interrupted: str | None = None,
    tell: Callable[[str], None] = _tell,
) -> int:
    """Do a command's work and return its exit code.

    An error that was raised on purpose, or a file that cannot be used, is told, on stderr if not
    otherwise, and is 2; anything else is a bug, and passes. Ctrl-C is 130, and `interrupted` is
    told.
    """
    try:
        return work()
    except PrivserveError as error:
        tell(f"error: {error}")
        return FAILED
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        tell(f"error: {named}{error.strerror or error}")
        return FAILED
    except KeyboardInterrupt:
        if interrupted is not None:
            tell(interrupted)
        return INTERRUPTED
