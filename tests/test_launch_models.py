"""`python -m privserve.launch` with several models, and beside a launcher that serves one."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from several import net, numbers_for
from test_launch import Start, start  # noqa: F401 - a fixture

import privserve as ps
from privserve.launch import main
from privserve.serving import named_files


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Two models' files, of which the first one's name is given back."""
    for name in ("four", "six"):
        onnx.save(net(name).converted.onnx, tmp_path / f"{name}.onnx")
    onnx.save(net("four", 2).converted.onnx, tmp_path / "later.onnx")
    return "four.onnx"


def ask(config: Path, name: str) -> np.ndarray:
    with ps.Client(config, model=name, timeout=30) as client:
        return client.query_model(numbers_for(name))


def test_two_models_are_launched_and_each_serves_its_rows(start: Start) -> None:  # noqa: F811
    models = ("--model", "four.onnx", "--model", "other=six.onnx")
    one = start("--parties", "3", "--port", "0", "--num-requests", "1", *models)
    one.wait_for("serving 1 rows of each of 'four', 'other'")
    expected = net("four").converted.predict(numbers_for("four"))
    np.testing.assert_allclose(ask(one.config, "four"), expected, atol=1e-2)
    one.wait_for("four: the limit of 1 rows is reached")
    with ps.Client(one.config, model="other", timeout=30) as client:
        answer = client.query_model(numbers_for("six"))
    np.testing.assert_allclose(answer, net("six").converted.predict(numbers_for("six")), atol=1e-2)
    assert one.end() == 0, one.output
    assert "other: answered 1/1" in one.output
    assert "sharing 'other' with the ottt engine" in one.output


def test_a_second_launcher_adds_a_model_and_a_third_replaces_the_first_ones(
    start: Start,  # noqa: F811
) -> None:
    first = start("--parties", "3", "--port", "0", "--model", "four.onnx")
    first.wait_for("serving queries")
    config = str(first.config)
    added = start("--config", config, "--model", "six.onnx", "--num-requests", "1")
    added.wait_for("serving 1 rows")
    ask(first.config, "four")
    ask(first.config, "six")
    assert added.end() == 0, added.output
    np.testing.assert_allclose(
        ask(first.config, "four"),
        net("four").converted.predict(numbers_for("four")),
        atol=1e-2,
    )
    third = start("--config", config, "--model", "four=later.onnx")
    third.wait_for("serving queries")
    first.wait_for("another model is shared as 'four' and has taken this one's place")
    first.wait_for("answered 2 rows; the parties stay up until Ctrl-C")
    np.testing.assert_allclose(
        ask(first.config, "four"),
        net("four", 2).converted.predict(numbers_for("four")),
        atol=1e-2,
    )
    assert third.end(signal.SIGINT) == 0, third.output
    assert first.end(signal.SIGINT) == 0, first.output


def test_two_models_of_one_name_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small: str
) -> None:
    path = str(tmp_path / small)
    assert main(["--model", path, "--model", f"four={path}"]) == 2
    assert "two models are called 'four'; name one: --model NAME=FILE" in capsys.readouterr().err


def test_a_name_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "a=b.onnx"
    odd.touch()
    assert named_files(["x=dir/m.h5"]) == [("x", Path("dir/m.h5"))]
    assert named_files(["dir/m.h5"]) == [(None, Path("dir/m.h5"))]
    assert named_files(["a=b.onnx"]) == [(None, Path("a=b.onnx"))], "there is such a file"
    assert named_files(["di r/x=m.h5"]) == [(None, Path("di r/x=m.h5"))]
    with pytest.raises(ps.ConfigError, match=r"there is no \./model\.onnx"):
        named_files(None)
