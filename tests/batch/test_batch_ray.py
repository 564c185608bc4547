"""The asking of a batch job by Ray's actors: what they answer, and on Ray itself where it is."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_asker import FakeAsker, save_numbered
from serving import Digits

from privserve.batch import ray_data
from privserve.batch.job import ask_for_all, run
from privserve.batch.ray_data import RangeAsker, in_order
from privserve.batch.settings import Settings
from privserve.errors import ClusterError, ConfigError, InputError, LimitReached, PrivserveError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    save_numbered(tmp_path / "rows.npy", 50)
    return Settings(
        input=tmp_path / "rows.npy",
        output=tmp_path / "answers.npy",
        rows_per_query=4,
        patience=0.0,
        ray_actors=2,
        ray_rows=20,
    )


def record(actor: RangeAsker, start: int, stop: int) -> dict:
    """What an actor gives for a batch of one range, as Ray hands it on."""
    batch = actor({"start": np.array([start]), "stop": np.array([stop])})
    assert {name: column.shape for name, column in batch.items()} == {
        "about": (1,),
        "answers": (1,),
    }
    return {name: column[0] for name, column in batch.items()}


def test_ranges_are_answered_in_order(settings: Settings) -> None:
    asker = FakeAsker()
    actor = RangeAsker(settings, asker)
    records = [record(actor, 0, 20), record(actor, 20, 50)]
    found = list(in_order(records, 0))
    values = np.concatenate([answer.outputs["y"] for answer in found])
    assert (values == 2 * np.load(settings.input).astype(np.float32)).all()
    assert asker.rows_asked == [row / 256 for row in range(50)]
    assert {answer.sharing for answer in found} == {"one"}


def test_ranges_that_are_missing_or_twice_are_noticed(settings: Settings) -> None:
    actor = RangeAsker(settings, FakeAsker())
    first, second = record(actor, 0, 20), record(actor, 20, 40)
    for wrong in ([second], [first, first]):
        with pytest.raises(ClusterError, match="Ray gave the answers to row"):
            list(in_order(wrong, 0))


ERRORS = [LimitReached("no rows are left"), ClusterError("bob is gone"), InputError("odd")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_what_was_answered_before_an_error_comes_with_it(
    settings: Settings, error: PrivserveError
) -> None:
    actor = RangeAsker(settings, FakeAsker(lambda rows: error if rows[-1] >= 12 / 256 else None))
    answers = in_order([record(actor, 0, 20)], 0)
    assert [next(answers).start for _ in range(3)] == [0, 4, 8]
    with pytest.raises(type(error), match=str(error)):
        list(answers)


def test_bad_rows_come_with_their_reasons(settings: Settings) -> None:
    array = np.load(settings.input)
    array[5, 1] = np.nan
    np.save(settings.input, array)
    actor = RangeAsker(replace(settings, on_bad_row="nan"), FakeAsker())
    bad = {row: why for a in in_order([record(actor, 0, 20)], 0) for row, why in a.bad.items()}
    assert list(bad) == [5]
    assert "NaN" in bad[5]


def test_a_job_writes_what_actors_answer_and_asks_them_for_what_is_left(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray stands aside here: the ranges are asked by one actor in this process."""
    limit, ranges = [True], []

    def answers(given: Settings, start: int, stop: int) -> object:
        refuse = LimitReached("no rows are left")
        asker = FakeAsker(lambda rows: refuse if limit[0] and rows[0] > 0.1 else None)
        actor = RangeAsker(given, asker)
        ranges.append((start, stop))
        bounds = range(start, stop, given.ray_rows)
        return in_order((record(actor, s, min(stop, s + given.ray_rows)) for s in bounds), start)

    monkeypatch.setattr(ray_data, "answers", answers)
    with pytest.raises(LimitReached):
        ask_for_all(settings, FakeAsker(), io.StringIO())
    limit[0] = False
    ask_for_all(settings, FakeAsker(), io.StringIO())
    assert ranges == [(0, 50), (28, 50)]
    expected = 2 * np.load(settings.input).astype(np.float32)
    assert (np.load(settings.output) == expected).all()


def test_without_ray_it_is_said_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'privserve\[ray\]'"):
        ask_for_all(settings, FakeAsker(), io.StringIO())


@pytest.mark.slow
def test_on_ray_a_limit_and_the_rest_are_right(digits: Digits, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    count = 700
    images = np.resize(digits.images, (count, *digits.images.shape[1:])).astype(np.float32)
    images *= np.linspace(0.5, 1, count, dtype=np.float32).reshape(-1, 1, 1, 1)
    np.save(tmp_path / "rows.npy", images)
    settings = Settings(
        input=tmp_path / "rows.npy",
        output=tmp_path / "answers.npy",
        config=digits.cluster.config.path,
        ray_actors=2,
        ray_rows=64,
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with digits.serving(num_requests=400), pytest.raises(LimitReached):
            run(settings, io.StringIO())
        said = io.StringIO()
        with digits.serving():
            run(settings, said)
    finally:
        ray.shutdown()
    assert "going on after" in said.getvalue()
    answers = np.load(settings.output)
    assert np.abs(answers - digits.model.converted.predict(images)).max() < 0.02
