"""A batch job on disk: what a crash at any point leaves, what goes on, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_asker import FakeAsker, save_numbered, served_model

from privserve.batch import appended, job, journal, results
from privserve.batch.job import ask_for_all
from privserve.batch.settings import Settings
from privserve.errors import ClusterError, ConfigError, InputError, LimitReached

ROWS, PER_QUERY, IN_FLIGHT = 50, 7, 3
OUTPUTS = {
    "npy": ("answers.npy", None),
    "directory": ("answers", 10),
    "parquet": ("a.parquet", None),
}


class Crash(BaseException):
    """The process is gone: nothing that a job does afterwards counts."""


@pytest.fixture(params=OUTPUTS.values(), ids=OUTPUTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    name, part_rows = request.param
    return settings_for(tmp_path, name, part_rows)


def settings_for(
    tmp_path: Path, name: str = "answers.npy", part_rows: int | None = None
) -> Settings:
    save_numbered(tmp_path / "rows.npy", ROWS)
    return Settings(
        input=tmp_path / "rows.npy",
        output=tmp_path / "out" / name,
        rows_per_query=PER_QUERY,
        queries=IN_FLIGHT,
        part_rows=part_rows,
        patience=0.0,
    )


@pytest.fixture(autouse=True)
def _commits_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not wait for the disk: crashes here are of the process, not of the machine."""
    monkeypatch.setattr(results, "COMMIT_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def run(settings: Settings, asker: FakeAsker | None = None) -> tuple[FakeAsker, str]:
    asker, said = asker or FakeAsker(), io.StringIO()
    ask_for_all(settings, asker, said)
    return asker, said.getvalue()


def answers(output: Path) -> np.ndarray:
    """What is in an output that is whole."""
    if output.suffix == ".npy":
        return np.load(output)
    if output.suffix == ".parquet":
        return np.array(pq.read_table(output)["y"].to_pylist(), np.float32)
    assert all(path.suffix == ".npy" for path in output.iterdir())
    return np.concatenate([np.load(path) for path in sorted(output.iterdir())])


def expected(settings: Settings) -> np.ndarray:
    return 2 * np.load(settings.input).astype(np.float32)


def journal_of(settings: Settings) -> dict[str, Any]:
    return json.loads(Path(f"{settings.output}.journal.json").read_text())


def keys(start: int, stop: int) -> list[float]:
    return [row / 256 for row in range(start, stop)]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of writes here, none of which has to outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Disk:
    """Counts what is done to the disk, and fails at one of them, half done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]) -> None:
        self._error = error
        self.left = -1
        """Operations until the one that fails; negative: none does."""
        self.failed = False
        write_all, write_file, rename = appended.write_all, journal.write_file, Path.replace
        sync, sync_directory, remove = Path.unlink, results.sync_directory, shutil.rmtree

        def half(descriptor: int, data: memoryview) -> None:
            if self._counted():
                write_all(descriptor, memoryview(data)[: len(data) // 2])
                raise self._error()
            write_all(descriptor, data)

        def counted(what: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if self._counted():
                    raise self._error()
                return what(*arguments, **options)

            return call

        monkeypatch.setattr(appended, "write_all", half)
        monkeypatch.setattr(journal, "write_file", counted(write_file))
        monkeypatch.setattr(Path, "replace", counted(rename))
        monkeypatch.setattr(Path, "unlink", counted(sync))
        monkeypatch.setattr(results, "sync_directory", counted(sync_directory))
        monkeypatch.setattr(shutil, "rmtree", counted(remove))

    def _counted(self) -> bool:
        self.left -= 1
        self.failed |= self.left == 0
        return self.left == 0


def crashed_at(disk: Disk, settings: Settings, number: int) -> FakeAsker | None:
    """What was asked until the disk failed at its operation of this number; None: it did not."""
    asker = FakeAsker()
    disk.left, disk.failed = number, False
    try:
        ask_for_all(settings, asker, io.StringIO())
    except (Crash, OSError):
        assert disk.failed
    finally:
        disk.left = -1
    return asker if disk.failed else None


def every_point(disk: Disk, settings: Settings) -> Iterator[FakeAsker]:
    """Crash a fresh job at its first, second, ... operation, and yield what it had asked."""
    for number in range(1, 400):
        shutil.rmtree(settings.output.parent, ignore_errors=True)
        asker = crashed_at(disk, settings, number)
        if asker is None:
            return
        yield asker


def test_after_a_crash_at_any_point_no_row_is_lost_and_none_that_was_written_is_asked_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, points = Disk(monkeypatch, Crash), 0
    for before in every_point(disk, settings):
        done = journal_of(settings)["rows_done"] if journal_path(settings).exists() else 0
        after, _ = run(settings)
        assert (answers(settings.output) == expected(settings)).all()
        assert after.rows_asked == keys(done, ROWS)
        assert len(before.answered) + len(after.answered) <= ROWS + (IN_FLIGHT + 1) * PER_QUERY
        assert journal_of(settings)["finished"]
        assert not list(settings.output.parent.glob("**/*.open"))
        points += 1
    assert points > 20, "the disk was not used as often as that"


def journal_path(settings: Settings) -> Path:
    return Path(f"{settings.output}.journal.json")


def test_a_full_disk_ends_it_and_the_same_call_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, lambda: OSError(errno.ENOSPC, "No space left on device"))
    for _ in every_point(disk, settings):
        done = journal_of(settings)["rows_done"] if journal_path(settings).exists() else 0
        after, _ = run(settings)
        assert (answers(settings.output) == expected(settings)).all()
        assert after.rows_asked == keys(done, ROWS)


def test_a_job_that_crashes_again_and_again_comes_to_its_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, answered = Disk(monkeypatch, Crash), []
    for _ in range(100):
        asker = crashed_at(disk, settings, 12)
        if asker is None:
            break
        answered += asker.answered
    assert (answers(settings.output) == expected(settings)).all()
    assert set(answered) >= set(keys(0, ROWS - PER_QUERY))


def test_bad_rows_are_listed_once_each_after_a_crash_at_any_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings_for(tmp_path, "answers", 10), on_bad_row="nan")
    array = np.load(settings.input)
    array[[3, 8, 9, 10, 33], 1] = np.nan
    np.save(settings.input, array)
    for _ in every_point(Disk(monkeypatch, Crash), settings):
        run(settings)
        listed = Path(f"{settings.output}.bad_rows.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in listed]
        assert [entry["row"] for entry in entries] == [3, 8, 9, 10, 33]
        assert entries[0]["where"] == f"{settings.input}[3]"
        assert "NaN" in entries[0]["why"]
        found = answers(settings.output)
        assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [3, 8, 9, 10, 33]
        assert journal_of(settings)["bad_rows"] == 5


def test_what_a_journal_tells_of_is_on_disk_before_the_journal_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[str, int] = {}
    checked = []

    def fsync(descriptor: int) -> None:
        synced[os.readlink(f"/proc/self/fd/{descriptor}")] = os.fstat(descriptor).st_size

    def replace_file(path: Path, target: Path) -> None:
        assert str(path) in synced  # whatever gets its name is on disk
        if target == journal_path(settings):
            for part in json.loads(path.read_text())["parts"]:
                for name, mark in part["files"].items():
                    home = settings.output.with_name(settings.output.name + ".rows")
                    home = {".npy": settings.output.parent, "": settings.output}.get(
                        settings.output.suffix, home
                    )
                    assert synced[str(home / (name + ".open"))] >= mark["bytes"]
                    checked.append(name)
        os.rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace_file)
    run(settings)
    assert len(checked) > 7
    assert str(settings.output.parent) in synced  # the names, too


def test_a_job_that_is_done_asks_nothing_more(settings: Settings) -> None:
    run(settings)
    asker, said = run(settings)
    assert not asker.asked
    assert "all rows are in" in said
    settings.output.rename(settings.output.with_name("away"))
    with pytest.raises(ConfigError, match="which is not there"):
        run(settings)


def test_an_answer_is_on_disk_while_the_cluster_is_away(tmp_path: Path) -> None:
    settings = replace(settings_for(tmp_path), patience=0.4)
    seen: list[int] = []

    def refuse(rows: list[float]) -> ClusterError | None:
        if rows[0] < 14 / 256:
            return None
        seen.append(journal_of(settings)["rows_done"])
        return ClusterError("bob is gone")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(results, "COMMIT_SECONDS", 1e9)
        with pytest.raises(ClusterError):
            run(settings, FakeAsker(refuse))
    assert seen[0] == 0
    assert seen[-1] == 14


@pytest.mark.parametrize(
    "error", [LimitReached("no rows are left"), ClusterError("bob is gone")], ids=["limit", "away"]
)
def test_an_error_keeps_what_is_done_and_says_how_to_go_on(
    settings: Settings, error: Exception
) -> None:
    said = io.StringIO()
    refusing = FakeAsker(lambda rows: error if rows[-1] > 29 / 256 else None)  # type: ignore[arg-type,return-value]
    with pytest.raises(type(error)):
        ask_for_all(settings, refusing, said)
    done = 30 if isinstance(error, LimitReached) else 28
    assert (
        f"{done} rows are kept, {ROWS - done} are left: the same command goes on" in said.getvalue()
    )
    after, _ = run(settings)
    assert after.rows_asked == keys(done, ROWS)
    assert (answers(settings.output) == expected(settings)).all()


def test_ctrl_c_keeps_what_is_done(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "COMMIT_SECONDS", 1e9)
    pressed: list[int] = []

    def press(rows: list[float]) -> None:
        if rows[0] > 30 / 256 and not pressed:
            pressed.append(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, FakeAsker(press))  # type: ignore[arg-type]
    done = journal_of(settings)["rows_done"]
    assert 0 < done < ROWS
    after, _ = run(settings)
    assert after.rows_asked == keys(done, ROWS)


def half_done(settings: Settings) -> None:
    with pytest.raises(ClusterError):
        run(settings, FakeAsker(lambda rows: ClusterError("gone") if rows[0] > 0.07 else None))


def change_input(settings: Settings) -> Settings:
    save_numbered(settings.input, ROWS + 1)
    return settings


def other_input(settings: Settings) -> Settings:
    other = settings.input.with_name("other.npy")
    shutil.copy2(settings.input, other)
    return replace(settings, input=other)


OTHERS: dict[str, tuple[Callable[[Settings], Settings], str]] = {
    "the input changed": (change_input, "another input"),
    "another input": (other_input, "another input"),
    "logits": (lambda s: replace(s, logits=True), "other options"),
}


@pytest.mark.parametrize(("change", "words"), OTHERS.values(), ids=OTHERS)
def test_another_job_is_refused_and_restart_begins_anew(
    settings: Settings, change: Callable[[Settings], Settings], words: str
) -> None:
    half_done(settings)
    other = change(settings)
    with pytest.raises(ConfigError, match=words) as caught:
        run(other)
    assert "--restart" in str(caught.value)
    asker, _ = run(replace(other, restart=True))
    assert asker.asked[0][0] == 0.0
    assert (answers(settings.output) == expected(other)).all()
    assert len(answers(settings.output)) == len(np.load(other.input))


def test_another_model_is_refused(settings: Settings) -> None:
    half_done(settings)
    asker = FakeAsker()
    asker.served = served_model(name="thrice")
    with pytest.raises(ConfigError, match=r"another model .name: 'twice' then, 'thrice' now"):
        run(settings, asker)


def test_a_model_that_was_shared_anew_is_told(settings: Settings) -> None:
    half_done(settings)
    asker = FakeAsker()
    asker.served = served_model("two")
    _, said = run(settings, asker)
    assert "the model was shared anew before row 21" in said
    assert journal_of(settings)["sessions"] == ["one", "two"]


def test_another_model_in_the_midst_of_a_job_ends_it(settings: Settings) -> None:
    class Replaced(FakeAsker):
        def begin(self, rows: Any) -> Any:
            if len(self.asked) == 4:
                self.served = served_model("two")
                self.served.description["outputs"][0]["activation"] = {"op": "Relu"}  # type: ignore[typeddict-item]
            return super().begin(rows)

    with pytest.raises(ConfigError, match="another model"):
        run(settings, Replaced())
    assert journal_of(settings)["rows_done"] < ROWS


def test_an_output_among_the_rows_is_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    for output in (tmp_path / "answers.npy", tmp_path / "deep" / "answers", tmp_path):
        with pytest.raises(ConfigError, match="is among the rows"):
            run(replace(settings, input=tmp_path, output=output))


def test_a_query_larger_than_the_model_takes_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="at most 64 rows, not 65"):
        run(replace(settings, rows_per_query=65))


def test_a_finished_output_is_restarted_on_demand_only(settings: Settings) -> None:
    run(settings)
    asker, _ = run(replace(settings, restart=True))
    assert asker.rows_asked == keys(0, ROWS)
    assert (answers(settings.output) == expected(settings)).all()


def test_an_output_that_no_journal_knows_is_left_alone(settings: Settings) -> None:
    settings.output.parent.mkdir()
    if settings.output.suffix:
        settings.output.write_text("mine")
    else:
        settings.output.mkdir()
        (settings.output / "mine").touch()
    for restart in (False, True):
        with pytest.raises(ConfigError, match="is there already, without a journal"):
            run(replace(settings, restart=restart))


def written(settings: Settings) -> Path:
    return next(
        path
        for path in sorted(settings.output.parent.rglob("*"))
        if path.suffix in (".open", ".npy") and path.stat().st_size
    )


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_written_rows_that_were_changed_are_noticed(
    settings: Settings, damage: Callable[[Path], object]
) -> None:
    half_done(settings)
    damage(written(settings))
    with pytest.raises(ConfigError, match="is not what the job wrote"):
        run(settings)
    run(replace(settings, restart=True))
    assert (answers(settings.output) == expected(settings)).all()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "parts": [1]}'])
def test_a_journal_that_cannot_be_read_is_refused(settings: Settings, text: str) -> None:
    half_done(settings)
    journal_path(settings).write_text(text)
    with pytest.raises(ConfigError, match="no journal of this version"):
        run(settings)


def test_a_journal_does_not_lead_out_of_its_directory(settings: Settings, tmp_path: Path) -> None:
    half_done(settings)
    fields = journal_of(settings)
    fields["parts"][0]["files"] = {"../../mine": fields["parts"][0]["files"].popitem()[1]}
    (tmp_path / "mine").write_text("mine")
    journal_path(settings).write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="no journal of this version"):
        run(replace(settings, restart=True))
    assert (tmp_path / "mine").exists()


def test_two_jobs_do_not_write_to_one_output(settings: Settings) -> None:
    half_done(settings)
    with Path(f"{settings.output}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another job writes there now"):
            run(settings)
    run(settings)
    assert not Path(f"{settings.output}.lock").exists()


def test_a_disk_without_room_is_told_before_a_row_is_asked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1 << 20))
    asker = FakeAsker()
    with pytest.raises(ConfigError, match="will take 16 MiB more, and 1 are free"):
        run(settings, asker)
    assert not asker.asked


def test_several_outputs_have_a_directory_each_and_no_npy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(FakeAsker):
        def begin(self, rows: Any) -> Any:
            future = super().begin(rows)
            future.result()["a/b"] = rows["x"][:, 0].astype(np.float32)
            return future

    asker = Two()
    asker.served.description["outputs"].append(
        {"name": "a/b", "shape": [], "activation": None, "rounded_bits": 0}
    )
    settings = settings_for(tmp_path, "answers", 20)
    run(settings, asker)
    parts = [np.load(p) for p in sorted((settings.output / "1-a_b").iterdir())]
    assert (np.concatenate(parts) == np.load(settings.input)[:, 0].astype(np.float32)).all()
    assert len(list((settings.output / "0-y").iterdir())) == 3
    parquet = replace(settings, output=tmp_path / "out" / "two.parquet", part_rows=None)
    run(parquet, asker)
    assert pq.read_table(parquet.output).column_names == ["y", "a/b"]
    with pytest.raises(ConfigError, match="name a directory"):
        run(replace(parquet, output=tmp_path / "answers.npy"), asker)


def test_a_bad_row_ends_it_with_its_name_and_nan_goes_on(settings: Settings) -> None:
    array = np.load(settings.input)
    array[23, 1] = 99.0
    np.save(settings.input, array)
    with pytest.raises(InputError, match=r"rows.npy\[23\] has no answer"):
        run(settings)
    assert journal_of(settings)["rows_done"] == 21
    _, said = run(replace(settings, on_bad_row="nan"))
    assert "1 rows are NaN" in said
    assert np.isnan(answers(settings.output)[23]).all()


def test_session_notes_are_of_the_job(settings: Settings) -> None:
    assert job.about(served_model()) == {
        "name": "twice",
        "inputs": [["x", [2]]],
        "outputs": [["y", [2], None]],
    }
