"""scripts/query.py against a running cluster."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from serving import ROOT, Digits


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("query_script", ROOT / "scripts" / "query.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


query = _load()


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
        ("bad.npy", b"no array", "neither a .npy array nor a picture"),
        ("bad.png", b"no picture", "neither a .npy array nor a picture"),
        ("empty.npy", b"", "neither a .npy array nor a picture"),
    ],
)
def test_a_bad_file_is_refused_with_its_cause(
    tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=complaint):
        query.main([str(tmp_path / name)])


@pytest.mark.parametrize(
    "array",
    [np.float32(3), np.zeros(3), np.zeros((2, 2)), np.zeros((0, 28, 28)), np.zeros((28, 28), "U1")],
    ids=["a scalar", "a vector", "a small picture", "no pictures", "texts"],
)
def test_an_array_of_another_shape_is_refused(
    digits: Digits, config: list[str], tmp_path: Path, array: np.ndarray
) -> None:
    path = tmp_path / "odd.npy"
    np.save(path, array)
    with digits.serving():
        try:
            code: object = query.main([*config, str(path)])
        except SystemExit as ended:
            code = ended.code
    assert code not in (0, 1, None)


def test_objects_in_a_file_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(SystemExit, match="neither a"):
        query.main([str(path)])


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
