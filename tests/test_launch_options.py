"""What the command line refuses before anything is started, and what it only prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from serving import SAMPLE_MODEL, write_unsupported_layer

import privserve as ps
from privserve import launch


def write_nothing(path: Path) -> None:
    pass


def write_text(path: Path) -> None:
    path.write_text("this is no model")


def write_empty_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["numbers"] = np.arange(5)


BAD_MODELS = {
    "a missing file": ("m.h5", write_nothing, "m.h5"),
    "no HDF5": ("m.h5", write_text, "HDF5"),
    "HDF5 without a model": ("m.h5", write_empty_hdf5, "no Keras model"),
    "an unsupported layer": ("m.h5", write_unsupported_layer, "Teleport2D"),
    "no ONNX": ("m.onnx", write_text, "m.onnx"),
    "another ending": ("m.txt", write_text, "m.txt"),
}


@pytest.mark.parametrize(("name", "write", "complaint"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_bad_model_is_refused_before_anything_is_started(
    tag: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    write: Callable[[Path], None],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    assert launch.main(["--model", name, "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert complaint in error
    assert not (tmp_path / ".privserve").exists()


def test_no_model_at_all_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(["--parties", "3"]) == 2
    assert "privserve convert model.h5" in capsys.readouterr().err


BAD_OPTIONS = {
    "no queries": (["--num-requests", "0"], "at least 1"),
    "two parties": (["--parties", "2"], "at least 3"),
    "a party without files": (["--party", "bob"], "needs --config"),
    "a new cluster and an old one": (["--parties", "3", "--config", "x"], "leave --config"),
    "hosts alone": (["--hosts", "a:1,b:2,c:3"], "go together"),
    "cells of a cluster that is there": (["--config", "x", "--cells", "2"], "--cells goes with"),
    "no cells": (["--cells", "0"], "at least 1"),
    "a cell of no party": (["--cell", "1"], "--cell goes with --party"),
    "a drain of local parties, which end at once": (
        ["--drain-timeout", "0"],
        "--drain-timeout goes with --party",
    ),
    "a drain that takes time back": (
        ["--party", "bob", "--config", "c.toml", "--drain-timeout", "-1"],
        "from 0 to 3600 seconds",
    ),
    "metrics of one party for all": (["--metrics", "9000"], "--metrics goes with --party"),
    "metrics of all for one": (
        ["--party", "bob", "--config", "x", "--metrics-port", "9000"],
        "see --metrics for",
    ),
    "logs of parties that run": (["--config", "x", "--log-json"], "are started here"),
    "a page of parties that run": (["--config", "x", "--web"], "docs/browser.md"),
    "a page of several cells": (["--cells", "2", "--web"], "leave --cells away"),
    "a page beyond all ports": (["--web", "65535"], "--web is a port"),
    "pages that ask nowhere": (
        ["--party", "bob", "--config", "x", "--web-origin", "https://a.example"],
        "go together",
    ),
    "pages without a port": (["--web-origin", "https://a.example"], "goes with --web"),
    "every page": (["--web", "--web-origin", "*"], "no origin of a page"),
    "a text for a number": (["--port", "x"], "invalid int value"),
    "an unknown option": (["--speed"], "unrecognized"),
}


@pytest.mark.parametrize(("arguments", "complaint"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_end_with_code_2_and_their_cause(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


REFUSED = {
    "an unknown engine": (["--engine", "spdz"], "no engine 'spdz'"),
    "a range of one number": (["--input-range", "3"], "takes two numbers"),
    "a range upside down": (["--input-range=1,0"], "low < high"),
    "a missing cluster": (["--config", "nowhere.toml"], "there is no nowhere.toml"),
    "a port beyond all ports": (["--port", "70000"], "70000"),
    "an unknown host": (["--host", "no.such.host.invalid", "--port", "0"], "not known here"),
    "two hosts": (["--init", "d", "--hosts", "a:1,b:2"], "at least 3"),
    "a cell with a party too few": (
        ["--init", "d", "--hosts", "a:1,b:2,c:3", "--hosts", "a:4,b:5"],
        "--hosts of cell 1 has 2 addresses, and that of cell 0 3",
    ),
    "a cell at the same addresses": (
        ["--init", "d", "--hosts", "a:1,b:2,c:3", "--hosts", "a:1,b:5,c:6"],
        "alice of cell 1 has the address a:1",
    ),
    "a thousand cells": (["--cells", "1000"], "1 to 64 cells"),
}


@pytest.mark.parametrize(("arguments", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_ends_with_code_2_and_its_cause(
    tag: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(["--model", str(SAMPLE_MODEL), *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_party_says_what_its_files_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    assert (
        launch.main(["--init", str(files), "--hosts", "localhost:1,localhost:2,localhost:3"]) == 0
    )
    config = str(files / "bob" / "cluster.toml")
    assert launch.main(["--party", "mallory", "--config", config]) == 2
    assert "knows no party 'mallory'" in capsys.readouterr().err
    assert launch.main(["--party", "bob", "--config", config, "--cell", "1"]) == 2
    assert "has no cell 1; its cells are 0 to 0" in capsys.readouterr().err
    (files / "bob" / "bob.key").unlink()
    assert launch.main(["--party", "bob", "--config", config]) == 2
    assert "bob.key is missing; copy the directory" in capsys.readouterr().err


def test_a_dry_run_starts_nothing(
    tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(["--model", str(SAMPLE_MODEL), "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 3
    assert not (tmp_path / ".privserve").exists()


def test_samples_for_calibration_are_read_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ps.load_model(SAMPLE_MODEL).converted.inputs[0].name
    samples = np.zeros((2, 28, 28, 1))
    np.save(tmp_path / "good.npy", samples)
    np.savez(tmp_path / "good.npz", **{name: samples})
    np.save(tmp_path / "small.npy", samples[:, :5])
    np.savez(tmp_path / "other.npz", pixels=samples)
    (tmp_path / "text.npy").write_text("no array")
    dry_run = ["--model", str(SAMPLE_MODEL), "--dry-run", "--calibration"]
    for file in ("good.npy", "good.npz"):
        assert launch.main([*dry_run, str(tmp_path / file)]) == 0
    for file, complaint in (
        ("small.npy", "calibration samples have shape"),
        ("other.npz", f"the model takes the inputs '{name}' (B, 28, 28, 1), not ['pixels']"),
        ("text.npy", "text.npy is no .npy or .npz file"),
        ("none.npy", "there is no"),
    ):
        assert launch.main([*dry_run, str(tmp_path / file)]) == 2
        assert complaint in capsys.readouterr().err


def test_the_files_of_an_earlier_cluster_are_replaced_and_others_kept(tmp_path: Path) -> None:
    old = tmp_path / ".privserve"
    old.mkdir()
    (old / "notes.txt").write_text("mine")
    assert launch.fresh_directory(old) == old
    assert (old / "notes.txt").exists(), "not a cluster's directory"
    (old / "cluster.toml").write_text("")
    launch.fresh_directory(old)
    assert not old.exists()
