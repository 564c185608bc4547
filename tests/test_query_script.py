"""`privserve query`, which scripts/query.py runs, against a running cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serving import ROOT, Digits

from privserve import query


@pytest.fixture
def config(digits: Digits) -> list[str]:
    return ["--config", str(digits.cluster.config.path)]


def test_sample_digits_are_asked_and_judged(
    digits: Digits, config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = digits.model.converted.predict(digits.images[:4]).argmax(-1)
    with digits.serving():
        code = query.main([*config, "--count", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line, label, seen in zip(lines, digits.labels, expected, strict=False):
        verdict = "correctly" if seen == label else "WRONGLY"
        assert line == f"The image had label {label} and was {verdict} classified as {seen}"
    assert code == int((expected != digits.labels[:4]).any())


def test_a_wrongly_classified_digit_is_said_and_changes_the_exit_code(
    digits: Digits,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = (int(digits.labels[0]) + 1) % 10
    monkeypatch.setattr(query, "read_samples", lambda *_: [("s", digits.images[0], wrong)])
    with digits.serving():
        assert query.main(config) == 1
    assert "was WRONGLY classified" in capsys.readouterr().out


def save_npy(path: Path, digit: np.ndarray) -> None:
    np.save(path, digit[..., 0])


def save_png(path: Path, digit: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray((digit[..., 0] * 255).astype(np.uint8)).save(path)


def save_drawing(path: Path, digit: np.ndarray) -> None:
    """Dark on light and larger, as people draw."""
    from PIL import Image

    ink = Image.fromarray(255 - (digit[..., 0] * 255).astype(np.uint8))
    ink.convert("RGB").resize((112, 112)).save(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [("digit.npy", save_npy), ("digit.png", save_png), ("drawing.png", save_drawing)],
)
def test_a_digit_in_a_file_is_recognised(
    digits: Digits,
    config: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    save: object,
) -> None:
    save(tmp_path / name, digits.images[0])  # type: ignore[operator]
    with digits.serving():
        assert query.main([*config, str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert f"{name} looks like a {digits.labels[0]} (score " in said


def test_a_batch_of_digits_in_one_file_is_asked_one_by_one(
    digits: Digits, config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "three.npy", (digits.images[:3] * 255).round().astype(np.uint8))
    with digits.serving():
        assert query.main([*config, str(tmp_path / "three.npy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    seen = digits.model.converted.predict(digits.images[:3]).argmax(-1)
    for i, line in enumerate(lines):
        assert f"three.npy[{i}] looks like a {seen[i]}" in line
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("missing.npy", None, "there is no"),
        ("missing.png", None, "there is no"),
        ("bad.npy", b"no array", "is no .npy file of arrays"),
        ("bad.npz", b"no array", "is no .npz file of arrays"),
        ("bad.png", b"no picture", "neither an array nor a picture"),
        ("empty.npy", b"", "is no .npy file of arrays"),
    ],
)
def test_a_bad_file_is_refused_with_its_cause(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    complaint: str,
) -> None:
    """Before anybody is asked: there is no cluster here."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert query.main([str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert name in said


@pytest.mark.parametrize(
    "array",
    [np.float32(3), np.zeros(3), np.zeros((2, 2)), np.zeros((0, 28, 28)), np.zeros((28, 28), "U1")],
    ids=["a scalar", "a vector", "a small picture", "no pictures", "texts"],
)
def test_an_array_of_another_shape_is_refused(
    digits: Digits,
    config: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    array: np.ndarray,
) -> None:
    path = tmp_path / "odd.npy"
    np.save(path, array)
    with digits.serving():
        assert query.main([*config, str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["objects.npy", "objects.npz"])
def test_objects_in_a_file_are_never_unpickled(
    digits: Digits,
    config: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    path = tmp_path / name
    objects = np.array([{}], dtype=object)
    if name.endswith("npy"):
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, x=objects)
    with digits.serving():
        assert query.main([*config, str(path)]) == 2
    assert "is no .np" in capsys.readouterr().err


def test_what_is_done_to_a_picture_is_said_apart_from_the_answer(
    digits: Digits, config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_drawing(tmp_path / "seven.png", digits.images[0])
    with digits.serving():
        assert query.main([*config, str(tmp_path / "seven.png")]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "112x112, dark on light turned to light on dark, its ink fitted" in captured.err
    assert "black is 0 and white 1 (a guess; --pixels says otherwise)" in captured.err


def test_a_directory_is_asked_file_by_file_and_json_says_all(
    digits: Digits, config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "many"
    inside.mkdir()
    save_png(inside / "a.png", digits.images[0])
    save_npy(inside / "b.npy", digits.images[1])
    np.savez(inside / "c.npz", anything=digits.images[2:4])
    (inside / "notes.txt").write_text("no picture")
    with digits.serving():
        assert query.main([*config, "--json", str(inside)]) == 0
    captured = capsys.readouterr()
    told = [json.loads(line) for line in captured.out.splitlines()]
    asked = [one["asked"].removeprefix(f"{inside}/") for one in told]
    assert asked == ["a.png", "b.npy", "c.npz[0]", "c.npz[1]"]
    seen = digits.model.converted.predict(digits.images[:4])
    for one, scores in zip(told, seen, strict=True):
        assert one["digit"] == scores.argmax()
        np.testing.assert_allclose(one["outputs"]["dense"], scores, atol=0.01)
    assert "1 other files are left out" in captured.err


def test_an_empty_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert query.main([str(tmp_path)]) == 2
    assert "holds no picture, .npy or .npz" in capsys.readouterr().err


def test_pixels_may_be_said_and_begin_with_a_minus(
    digits: Digits, config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_png(tmp_path / "a.png", digits.images[0])
    with digits.serving():
        query.main([*config, "--pixels", "-1,1", str(tmp_path / "a.png")])
        assert "black is -1 and white 1 (as --pixels says)" in capsys.readouterr().err
        assert query.main([*config, "--pixels", "1", str(tmp_path / "a.png")]) == 2
    assert "two numbers" in capsys.readouterr().err


def test_whole_numbers_that_are_no_pixels_are_refused(
    digits: Digits, config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "far.npy", np.full((28, 28), 300))
    with digits.serving():
        assert query.main([*config, str(tmp_path / "far.npy")]) == 2
    assert "are no pixels" in capsys.readouterr().err


def test_the_script_is_the_command(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "query.py", "--config", tmp_path / "no.toml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert "start a cluster with" in ran.stderr


def test_no_cluster_is_an_error_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert query.main(["--config", str(tmp_path / "cluster.toml")]) == 2
    assert "start a cluster with" in capsys.readouterr().err


def test_a_reached_limit_is_an_error_with_the_remedy(
    digits: Digits, config: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with digits.serving(1):
        assert query.main([*config, "--count", "2"]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "limit of 1 rows is reached" in captured.err


def test_asking_for_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        query.main(["--count", "0"])
    assert ended.value.code == 2
