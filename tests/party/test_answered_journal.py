"""The leader's journal: exact after a crash at any byte and at any moment."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from privserve.errors import CannotCount, ConfigError, LimitReached
from privserve.party import journal as journal_module
from privserve.party.accounts import Accounts
from privserve.party.journal import AnsweredJournal, Book, read
from privserve.party.queries import LeaderQueue

KEY = bytes(range(32))


def rows(at: float, **had: int) -> dict:
    return {"kind": "rows", "session": "s", "rows": had, "at": at}


SERVE = {"kind": "serve", "session": "s", "limit": 100, "owner_seconds": None}


def written(path: Path) -> list[int]:
    """A journal of a serve and ten batches; how many rows count after each of its bytes."""
    journal = AnsweredJournal(path, KEY)
    begun = path.stat().st_size
    counts, total = [0] * begun, 0
    for number in range(11):
        journal.append(SERVE if not number else rows(float(number), ann=number, bob=1))
        size = path.stat().st_size
        counts += [total] * (size - len(counts) - 1)
        total += number + 1 if number else 0
        counts.append(total)
    journal.close()
    return counts


def test_a_journal_cut_at_any_byte_counts_what_was_whole_before(tmp_path: Path) -> None:
    path = tmp_path / "j"
    counts = written(path)
    content = path.read_bytes()
    begun = content.index(b"\n") + 1
    assert len(counts) == len(content)
    for size in range(begun, len(content) + 1):
        for torn in (content[:size], content[:size] + bytes(7)):
            path.write_bytes(torn)
            totals, _ = read(path, KEY)
            served = totals.sessions.get("s")
            had = served.answered if served else 0
            # A line but for its end is as good as whole: all of its bytes are there.
            allowed = {counts[size - 1], counts[min(size, len(counts) - 1)]}
            assert had in allowed, size
            assert had == sum(totals.rows.values())


def test_a_journal_that_was_cut_goes_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    journal = AnsweredJournal(path, KEY)
    before = journal.totals.sessions["s"].answered
    journal.append(rows(20.0, ann=5))
    journal.close()
    totals, _ = read(path, KEY)
    assert totals.sessions["s"].answered == before + 5


def test_what_was_changed_in_the_middle_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    content = path.read_bytes()
    lines = content.split(b"\n")
    for bad in (
        content.replace(b'"ann":3', b'"ann":2'),
        b"\n".join([*lines[:4], *lines[5:]]),  # a line is left away
        b"\n".join([*lines[:3], lines[4], lines[3], *lines[5:]]),
        b"",
        b"\n",
        b"{}",
    ):
        path.write_bytes(bad)
        with pytest.raises(ConfigError, match="not as this party wrote it"):
            AnsweredJournal(path, KEY)
        assert path.read_bytes() == bad
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="or the key is another one"):
        AnsweredJournal(path, bytes(32))


def test_a_long_journal_is_written_anew_and_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 2000)
    path = tmp_path / "j"
    journal = AnsweredJournal(path, KEY)
    journal.append(SERVE)
    for number in range(200):
        journal.append(rows(float(number), ann=1, bob=2))
        assert path.stat().st_size < 6000
    journal.close()
    totals, _ = read(path, KEY)
    assert totals.rows == {"ann": 200, "bob": 400}
    assert totals.sessions["s"].answered == 600
    assert len(totals.recent) <= 2 * 61


def test_a_journal_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    journal = AnsweredJournal(tmp_path / "j", KEY)
    os.close(journal._file)
    journal._file = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(CannotCount, match=r"this party cannot write down .* \(No space left"):
        journal.append(SERVE)
    assert not journal.totals.sessions
    journal.close()


def test_what_a_full_disk_took_half_of_is_taken_back_and_the_next_line_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    journal = AnsweredJournal(path, KEY)
    journal.append(SERVE)
    whole = path.read_bytes()

    def half(descriptor: int, content: memoryview) -> int:
        if len(content) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(CannotCount):
            journal.append(rows(1.0, ann=5))
        assert path.read_bytes() == whole
        patched.setattr(os, "ftruncate", lambda *_: half(-1, memoryview(b"")))
        with pytest.raises(CannotCount):
            journal.append(rows(2.0, ann=5))
        assert path.read_bytes() != whole
    journal.append(rows(3.0, ann=7))
    journal.close()
    assert read(path, KEY)[0].rows == {"ann": 7}


def test_a_long_journal_that_cannot_be_written_anew_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_BYTES", 500)
    path = tmp_path / "j"
    journal = AnsweredJournal(path, KEY)
    with monkeypatch.context() as patched:
        patched.setattr(journal_module, "write_file", lambda *_, **__: os.open("/none", 0))
        for number in range(9):
            journal.append(rows(float(number), ann=1))
        assert path.stat().st_size > 500
    journal.append(rows(9.0, ann=1))
    assert path.stat().st_size < 1000
    journal.append(rows(10.0, ann=1))
    journal.close()
    assert read(path, KEY)[0].rows == {"ann": 11}


WRITER = """
import sys
from pathlib import Path
from privserve.party.journal import AnsweredJournal
journal = AnsweredJournal(Path(sys.argv[1]), bytes(range(32)))
if "s" not in journal.totals.sessions:
    journal.append({"kind": "serve", "session": "s", "limit": None, "owner_seconds": None})
number = journal.totals.sessions["s"].answered
print(number, flush=True)
while True:
    number += 1
    journal.append({"kind": "rows", "session": "s", "rows": {"ann": 1}, "at": float(number)})
    print(number, flush=True)  # an answer leaves
"""


@pytest.mark.parametrize("compact", [4 << 20, 700])
def test_no_kill_at_any_moment_loses_what_was_said_to_be_counted(
    tmp_path: Path, compact: int
) -> None:
    """Killed a hundred times each: what left is counted, and at most one row that did not."""
    draw, path = random.Random(compact), tmp_path / "j"
    script = f"import privserve.party.journal as t\nt.COMPACT_BYTES = {compact}\n{WRITER}"
    said = 0
    spawned = subprocess.Popen(
        [sys.executable, "-c", _FORKER, script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert spawned.stdin is not None
    assert spawned.stdout is not None
    try:
        for _ in range(100):
            print(draw.uniform(0.0, 0.03), file=spawned.stdin, flush=True)
            first, last = json.loads(spawned.stdout.readline())
            if first is None:
                continue
            assert said <= first <= said + 1, "what was counted before is counted still, once"
            said = last
        assert said > 50
    finally:
        spawned.stdin.close()
        spawned.wait(20)


_FORKER = """
import json, os, signal, sys, time
import privserve.party.journal  # once: the children are forks, which begin at once
script, path = sys.argv[1:]
for line in sys.stdin:
    ends, out = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(out, 1)
        sys.stdout = os.fdopen(1, "w")
        sys.argv = ["writer", path]
        exec(script, {})
    os.close(out)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    numbers = os.fdopen(ends).read().split("\\n")[:-1]
    print(json.dumps([int(numbers[0]), int(numbers[-1])] if numbers else [None, None]), flush=True)
"""


def queue(path: Path, accounts: Accounts | None = None) -> tuple[LeaderQueue, AnsweredJournal]:
    journal = AnsweredJournal(path, KEY)
    counted = (accounts or Accounts()).of_model("m")
    book = Book(journal, "s", counted.key)
    return LeaderQueue(1, 128, 10.0, None, book=book), journal


def test_serving_goes_on_where_it_was(tmp_path: Path) -> None:
    leader, journal = queue(tmp_path / "j")
    assert not leader.serving
    leader.serve(10)
    leader._book.settle({"ann": 3, "bob": 1})  # type: ignore[union-attr]
    journal.close()
    leader, journal = queue(tmp_path / "j")
    assert (leader.serving, leader.limit, leader.answered) == (True, 10, 4)
    leader.stop()
    journal.close()
    leader, journal = queue(tmp_path / "j")
    assert (leader.serving, leader.limit, leader.answered) == (False, 10, 4)
    assert "stopped serving" in leader._why_not.reason
    journal.close()


def test_a_limit_that_was_reached_before_a_crash_is_reached_after_it(tmp_path: Path) -> None:
    leader, journal = queue(tmp_path / "j")
    leader.serve(4)
    leader._book.settle({"ann": 4})  # type: ignore[union-attr]  # and the process was killed
    journal.close()
    leader, journal = queue(tmp_path / "j")
    assert not leader.serving
    assert leader._why_not.code == LimitReached.code
    journal.close()


def test_what_clients_had_is_restored_their_last_minute_included() -> None:
    now = [1000.0]
    accounts = Accounts(now=lambda: now[0])
    accounts.restore({"ann": 90}, [(50.0, "ann", 30), (5.0, "ann", 10)])
    usage = accounts._usage["ann"]
    assert (usage.rows, accounts._recent(usage)) == (90, 40)
    now[0] += 15
    assert accounts._recent(usage) == 10
