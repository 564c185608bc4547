"""What commands print: plain in a pipe, richly on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

ROWS = [["layer", "params"], ["dense [red]", "1,010"], ["a", "7"]]
CODE = f"""
import sys
from privserve.terminal import progress, table
with progress("asking", 2) as tell:
    tell(1)
    print("\\n".join(table({ROWS!r}, right=[1])))
print([m for m in ("rich", "numpy") if m in sys.modules])
"""
PLAIN = [
    "layer        params",
    "-------------------",
    "dense [red]   1,010",
    "a                 7",
]


def on_a_terminal(**environment: str) -> str:
    """What a person sees: stdout and stderr of one pseudo-terminal."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait(30) == 0
    return seen.decode()


def test_a_pipe_gets_plain_lines_and_loads_no_rich() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=30, check=True
    )
    assert ran.stdout.splitlines() == [*PLAIN, "[]"]
    assert ran.stderr == ""


def test_a_terminal_gets_a_rich_table_and_progress_and_no_markup_is_read() -> None:
    seen = on_a_terminal()
    assert "\x1b[1m" in seen  # the head is bold
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "asking" in text
    assert re.search(r"dense \[red\] +1,010", text)
    assert "\u2500" in text  # the line below the head
    assert "['rich']" in text


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"COLUMNS": "40"}])
def test_a_terminal_that_is_dumb_or_narrow_gets_plain_lines(environment: dict[str, str]) -> None:
    seen = on_a_terminal(**environment)
    assert PLAIN[2] in seen.replace("\r", "").splitlines()


def test_no_colours_are_shown_where_none_are_wanted() -> None:
    assert "\x1b[31m" not in on_a_terminal(NO_COLOR="1")
