"""`python -m privserve.launch` as its users run it: real processes, signals, exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from serving import ROOT, SAMPLE_MODEL, tagged_processes, wait_until

import converters
import privserve as ps
from privserve import launch


class Launch:
    """A launcher's process, with the lines that it has printed so far."""

    def __init__(self, home: Path, *arguments: str, module: str = "privserve.launch") -> None:
        self.home = home
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output or self.process.poll() is not None, f"'{text}'", 40)
        self._reader.join(0 if self.process.poll() is None else 5)
        assert text in self.output, self.output

    def end(self, number: int | None = None) -> int:
        """The exit code, after sending signal `number`."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(5)
        return code

    @property
    def config(self) -> Path:
        return self.home / ".privserve" / "cluster.toml"


Start = Callable[..., Launch]


@pytest.fixture
def start(tag: str, tmp_path: Path, small: str) -> Iterator[Start]:
    launched: list[Launch] = []

    def begin(*arguments: str, home: Path = tmp_path) -> Launch:
        launched.append(Launch(home, *arguments))
        return launched[-1]

    yield begin
    for one in launched:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        assert one.process.stdout is not None
        one._reader.join(5)
        one.process.stdout.close()


@pytest.fixture(scope="module")
def small_model() -> bytes:
    """An ONNX file that is quick to share: four numbers to two."""
    converted = converters.convert(torch.nn.Linear(4, 2), input_shape=(4,))
    serialized: bytes = converted.onnx.SerializeToString()
    return serialized


@pytest.fixture
def small(tmp_path: Path, small_model: bytes) -> str:
    (tmp_path / "small.onnx").write_bytes(small_model)
    return "small.onnx"


X = np.array([[0.5, -1.0, 2.0, 0.25]])
LOCAL = ["--parties", "3", "--port", "0", "--model", "small.onnx"]


def ports_of(config: Path) -> list[int]:
    parties = ps.Client(config)._peers
    return [int(peer.address.rpartition(":")[2]) for peer in parties]


def test_three_parties_serve_their_limit_and_end(start: Start, tag: str) -> None:
    run = start(*LOCAL, "--num-requests", "2")
    run.wait_for("serving 2 queries")
    assert "carol (dealer) is up" in run.output
    assert len(tagged_processes(tag)) == 4
    with ps.Client(run.config) as client:
        for _ in range(2):
            assert client.query_model(X).shape == (1, 2)
        assert run.end() == 0
    assert "answered 2/2" in run.output
    assert "the limit of 2 queries is reached" in run.output
    assert not tagged_processes(tag)


MOMENTS = ["reading", "alice (compute) is up", "sharing", "serving"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_nothing_behind(start: Start, tag: str, moment: str) -> None:
    run = start(*LOCAL, "--num-requests", "5")
    run.wait_for(moment)
    assert run.end(signal.SIGINT) == 130
    assert "interrupted; everything is stopped" in run.output
    assert "Traceback" not in run.output
    wait_until(lambda: not tagged_processes(tag), "no process is left", 1)


def test_ctrl_c_while_serving_without_a_limit_is_the_normal_end(start: Start, tag: str) -> None:
    run = start(*LOCAL)
    run.wait_for("serving queries until Ctrl-C")
    ports = ports_of(run.config)
    with ps.Client(run.config) as client:
        client.query_model(X)
    assert run.end(signal.SIGINT) == 0
    assert "stopped after 1 queries" in run.output
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_being_terminated_ends_the_parties_too(start: Start, tag: str) -> None:
    run = start(*LOCAL, "--num-requests", "5")
    run.wait_for("serving")
    assert run.end(signal.SIGTERM) == 130
    assert not tagged_processes(tag)


def test_parties_do_not_outlive_a_launcher_that_was_killed(start: Start, tag: str) -> None:
    run = start(*LOCAL)
    run.wait_for("serving")
    run.end(signal.SIGKILL)
    wait_until(lambda: not tagged_processes(tag), "the parties noticed", 10)


def test_a_party_that_is_killed_while_serving_ends_the_launcher_with_its_name(
    start: Start, tag: str
) -> None:
    run = start(*LOCAL)
    run.wait_for("serving")
    (bob,) = [p for p in tagged_processes(tag) if b"\0bob\0" in _command(p)]
    os.kill(bob, signal.SIGKILL)
    assert run.end() == 2
    assert "error: " in run.output
    assert "bob" in run.lines[-1]
    assert not tagged_processes(tag)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_parties_that_are_started_one_by_one_serve_for_the_owner(
    start: Start, tag: str, tmp_path: Path
) -> None:
    hosts = ",".join(f"localhost:{port}" for port in free_ports(3))
    init = start("--init", "files", "--hosts", hosts)
    assert init.end() == 0
    assert "--party bob --config bob/cluster.toml" in init.output
    again = start("--init", "files", "--hosts", hosts)
    assert again.end() == 2
    assert "holds a cluster already" in again.output
    parties = [
        start("--party", name, "--config", f"{name}/cluster.toml", home=tmp_path / "files")
        for name in ("alice", "bob", "carol")
    ]
    for party in parties:
        party.wait_for("clients at localhost:")
    config = tmp_path / "files" / "cluster.toml"
    owner = start("--config", str(config), "--model", "small.onnx", "--num-requests", "1")
    owner.wait_for("serving 1 queries")
    with ps.Client(config) as client:
        assert client.query_model(X).shape == (1, 2)
    assert owner.end() == 0
    for party in parties:
        assert party.process.poll() is None, "a party outlives its owner's visit"
        assert party.end(signal.SIGINT) == 0


def free_ports(count: int) -> list[int]:
    """Ports that are free together with their partners 100 above, for the peers."""
    found: list[int] = []
    for port in range(21000, 32000, 7):
        try:
            for number in (port, port + 100):
                with socket.create_server(("127.0.0.1", number)):
                    pass
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def write_nothing(path: Path) -> None:
    pass


def write_text(path: Path) -> None:
    path.write_text("this is no model")


def write_empty_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["numbers"] = np.arange(5)


def write_unsupported_layer(path: Path) -> None:
    path.write_bytes(SAMPLE_MODEL.read_bytes())
    with h5py.File(path, "r+") as file:
        config = file.attrs["model_config"]
        config = config.decode() if isinstance(config, bytes) else config
        file.attrs["model_config"] = config.replace('"AveragePooling2D"', '"Teleport2D"')


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
    assert "scripts/convert.py model.h5" in capsys.readouterr().err


def test_a_bad_model_ends_the_process_with_code_2(start: Start, tmp_path: Path) -> None:
    write_unsupported_layer(tmp_path / "m.h5")
    run = start("--model", "m.h5", "--port", "0")
    assert run.end() == 2
    assert "Teleport2D" in run.lines[-1]
    assert "Traceback" not in run.output


def test_a_port_in_use_is_named_with_the_remedy(start: Start, tag: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        run = start("--parties", "3", "--host", "127.0.0.1", "--port", str(port), *LOCAL[-2:])
        assert run.end() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in run.output
    assert "choose another with --port" in run.output


BAD_OPTIONS = {
    "no queries": (["--num-requests", "0"], "at least 1"),
    "two parties": (["--parties", "2"], "at least 3"),
    "a party without files": (["--party", "bob"], "needs --config"),
    "a new cluster and an old one": (["--parties", "3", "--config", "x"], "leave --config"),
    "hosts alone": (["--hosts", "a:1,b:2,c:3"], "go together"),
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


def test_the_demo_runs_from_conversion_to_the_end(tag: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("and was correctly classified as") == 3
    assert "the limit of 3 queries is reached" in ended.stdout
    assert "all parties are gone" in ended.stdout
    assert not tagged_processes(tag)
    assert not list(tmp_path.iterdir())


def test_torch_is_not_needed_to_be_a_client() -> None:
    code = "import sys, privserve; privserve.Client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
