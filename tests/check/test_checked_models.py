"""`privserve check`: what it finds is what there is, on models of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import FILES
from serving import SAMPLE_DIGITS, SAMPLE_MODEL, write_unsupported_layer

import converters
import privserve as ps
from privserve.check import job
from privserve.check.__main__ import main
from privserve.check.layers import REST, costs, told_tensors
from privserve.check.rehearsal import Rehearsal, with_told
from privserve.engines import Prepared
from privserve.engines.ottt.costs import cost_of_op
from privserve.validation import read_program


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    """The exit code, and what is told to programs."""
    code = main(["--json", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out)


def write_onnx(path: Path, net: torch.nn.Module, shape: tuple[int, ...]) -> Path:
    path.write_bytes(converters.convert(net, input_shape=shape).onnx.SerializeToString())
    return path


def growing(layers: int) -> torch.nn.Module:
    """A network whose bounds grow as its values do not: it is guessed from `layers` on."""
    torch.manual_seed(3)
    parts: list[torch.nn.Module] = []
    for _ in range(layers):
        parts += [torch.nn.Linear(16, 16), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts, torch.nn.Linear(16, 3))


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    net = growing(24)
    with torch.no_grad():
        for part in net:
            if isinstance(part, torch.nn.Linear):
                part.weight *= 2.5
    return write_onnx(tmp_path / "deep.onnx", net, (16,))


def test_the_sample_model_is_fit_to_be_served(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with np.load(SAMPLE_DIGITS) as samples:
        np.save(tmp_path / "x.npy", samples["images"])
    code, told = run(capsys, SAMPLE_MODEL, "--samples", tmp_path / "x.npy", "--rows", 5)
    assert code == 0
    assert told["serve"] == f"privserve launch --parties 3 --model {SAMPLE_MODEL}"
    assert told["changes"] == []
    assert (told["rows"], told["own_samples"]) == (5, True)
    assert told["same_class"] == {"dense": {"rows": 5, "of": 5}}
    assert 0 < told["outputs"]["dense"]["largest"] < 0.01
    assert told["outputs"]["dense"]["spread"] == pytest.approx(1, abs=0.1)
    layers = {layer["name"]: layer for layer in told["layers"]}
    assert layers["conv2d"]["runs_on"] == "ottt, crypten"
    assert layers["input_layer"]["error"] is None
    pools = ["average_pooling2d", "average_pooling2d_1", "average_pooling2d_2"]
    for name in ["conv2d", *pools, "dense"]:
        assert 0 < layers[name]["error"]["relative"] < 1e-3, name


def test_layers_costs_are_those_of_the_whole_program() -> None:
    model = ps.load_model(SAMPLE_MODEL)
    prepared = model.prepare(strict_inputs=True)
    program = read_program(prepared.description)
    each = [cost_of_op(program, op) for op in program.ops]
    spent = costs(prepared, model.converted.layers)
    for what in ("exchanges", "bytes_online", "bytes_dealt"):
        assert sum(getattr(c, what) for c in spent.values()) == sum(getattr(c, what) for c in each)
    assert spent[REST].exchanges > 0  # the inputs' lift belongs to no layer


GOLDEN = ["sequential_keras3.h5", "functional_tf_keras2.h5"]


@pytest.mark.parametrize("name", [n for n in GOLDEN if (FILES / n).exists()])
def test_told_values_are_the_layers_own(name: str) -> None:
    """Every told value is near the float model's tensor of that name: none is another's."""
    model = ps.load_model(FILES / name)
    prepared = model.prepare()
    told = told_tensors(prepared, model.converted)
    assert len(told) >= 4
    with np.load(FILES / name.replace(".h5", ".npz")) as archive:
        row = [archive["x"][0].astype(np.float64)]
    with Rehearsal(prepared, sorted(set(told.values()))) as rehearsal:
        answered = rehearsal.ask(row)
        again = rehearsal.ask(row)
    meant = job._plain(model.converted, row, told.values())
    for layer, tensor in told.items():
        got = answered.tensors[tensor].reshape(meant[tensor].shape)
        spread = max(np.ptp(meant[tensor]), 1e-3)
        assert np.abs(got - meant[tensor]).max() < 0.01 * spread, layer
    for output, values in answered.outputs.items():
        np.testing.assert_allclose(values, meant[output], atol=0.01)
        np.testing.assert_allclose(values, again.outputs[output], atol=0.01)


def test_a_told_program_is_the_served_one_with_further_outputs() -> None:
    prepared = ps.load_model(SAMPLE_MODEL).prepare()
    program = read_program(prepared.description)
    told = with_told(program, dict(list(prepared.tensors.items())[1:4]))
    assert told.ops == program.ops
    assert told.outputs[: len(program.outputs)] == program.outputs
    assert len(told.outputs) == len(program.outputs) + 3
    for port in told.outputs:
        assert told.values[port.value].bits == 64
    read_program(told.to_json())  # parties would take it


def test_a_failed_party_is_told_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = ps.load_model(SAMPLE_MODEL).prepare()
    lacking = Prepared(prepared.engine, prepared.description, {}, (), prepared.tensors)
    with pytest.raises(ps.ModelError, match="the shares hold no parameter"):
        Rehearsal(lacking, [])


def test_samples_beyond_the_default_range_widen_it_and_it_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_onnx(tmp_path / "m.onnx", growing(1), (16,))
    np.save(tmp_path / "x.npy", np.linspace(0, 200, 48).reshape(3, 16))
    code, told = run(capsys, model, "--samples", tmp_path / "x.npy")
    assert code == 0
    assert "--input-range 0,256" in told["serve"]
    assert any("beyond the default range [-8, 8]" in note for note in told["notes"])


def test_samples_beyond_a_range_that_was_asked_for_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_onnx(tmp_path / "m.onnx", growing(1), (16,))
    np.save(tmp_path / "x.npy", np.full((3, 16), 2.0))
    assert main([str(model), "--samples", str(tmp_path / "x.npy"), "--input-range", "-1,1"]) == 2
    assert "clients would refuse them" in capsys.readouterr().err


def test_a_deep_model_says_what_it_guessed_and_how_it_fares_beyond(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, deep: Path
) -> None:
    """Calibrated on small inputs, it has no answer to large ones; nothing is wrong in silence."""
    rng = np.random.default_rng(5)
    np.save(tmp_path / "c.npy", rng.uniform(-0.01, 0.01, (8, 16)))
    np.save(tmp_path / "x.npy", rng.uniform(-8, 8, (6, 16)))
    calibrated = ["--calibration", tmp_path / "c.npy"]
    code, told = run(capsys, deep, "--samples", tmp_path / "x.npy", *calibrated)
    assert code == 1
    assert len(told["left_guessed_ranges"]) == 6
    assert told["outputs"] == {}
    assert told["probed"]["left"] > 0
    assert any("get no answer (GuessedRangeError)" in change for change in told["changes"])
    assert any("too deep for its values to be bounded" in note for note in told["notes"])
    code, told = run(capsys, deep, "--samples", tmp_path / "c.npy", *calibrated)
    assert code == 0
    assert told["left_guessed_ranges"] == {}
    assert f"--calibration {tmp_path / 'c.npy'}" in told["serve"]
    code, told = run(capsys, deep, "--samples", tmp_path / "c.npy")
    assert any("are made up; give inputs like those to come" in note for note in told["notes"])


def test_what_only_crypten_runs_is_served_with_that_or_changed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_onnx(tmp_path / "m.onnx", growing(1), (16,))
    before = ps.SecureModel.prepare

    def prepare(self: ps.SecureModel, engine: str = "ottt", **options: object) -> Prepared:
        if engine == "ottt":
            raise ps.ModelError("layer 'x': it does not fit")
        return before(self, engine, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ps.SecureModel, "prepare", prepare)
    code, told = run(capsys, model)
    assert code == 1
    assert told["changes"][0] == "layer 'x': it does not fit"
    assert told["serve"].endswith("--engine crypten")
    assert [layer["error"] for layer in told["layers"]] == [None] * len(told["layers"])


def test_a_layer_that_nothing_converts_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_unsupported_layer(tmp_path / "m.h5")
    assert main([str(tmp_path / "m.h5")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Teleport2D" in said


BAD_SAMPLES = {
    "another shape": (np.zeros((2, 3)), "the model takes (B, 16)"),
    "no rows": (np.zeros((0, 16)), "the model takes (B, 16)"),
    "NaN": (np.full((2, 16), np.nan), "holds NaN or infinity"),
    "texts": (np.full((2, 16), "a"), "--samples"),
}


@pytest.mark.parametrize(("samples", "words"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_samples_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, samples: np.ndarray, words: str
) -> None:
    model = write_onnx(tmp_path / "m.onnx", growing(1), (16,))
    np.save(tmp_path / "x.npy", samples)
    assert main([str(model), "--samples", str(tmp_path / "x.npy")]) == 2
    assert words in capsys.readouterr().err


def test_a_host_without_the_memory_is_told_the_compilers_estimates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "available_memory", lambda: 1 << 20)
    code, told = run(capsys, write_onnx(tmp_path / "m.onnx", growing(1), (16,)))
    assert code == 0
    assert told["rows"] == 0
    assert any("not run on shares" in note for note in told["notes"])
    assert any("expected error" in note for note in told["notes"])


def test_people_get_a_table_and_the_command_to_serve_it_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = FILES / "weights_tf_keras2.h5"
    given = [str(weights), "--architecture", str(FILES / "weights_tf_keras2.json"), "--rows", "2"]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["layer", "class"]
    assert lines[-1].startswith("serve it with:  privserve convert ")
    assert " && privserve launch --parties 3 --model " in lines[-1]
