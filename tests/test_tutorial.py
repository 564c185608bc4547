"""The tutorial's notebooks: what their script makes, and whether they run, two at a time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image
from serving import ROOT, SAMPLE_DIGITS, SAMPLE_MODEL
from test_syft import free_ports

import privserve as ps

NOTEBOOKS = ROOT / "examples" / "notebooks"
ENGLISH = ("2-serving-the-model-securely", "3-private-prediction-client")
PORTUGUESE = ("2-servindo-o-modelo-com-seguranca", "3-cliente-de-predicao-privada")
TRAINING = ("1-public-training", "1-treinamento-publico")
SECONDS = 120


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str) -> Path:
    """A copy of examples/ to run notebooks in; kernels keep their files below it."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    shutil.copy(SAMPLE_DIGITS, tmp_path)
    made = tmp_path / "notebooks"
    made.mkdir()
    shutil.copy(SAMPLE_MODEL, made / "short-conv-mnist.h5")
    return made


def notebook(name: str, changes: dict[str, str]) -> Any:
    """A committed notebook, with some words of its code changed, each of which has to be there."""
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return nbformat.reads(text, as_version=4)


def kernel(of: Any, folder: Path) -> NotebookClient:
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(of, timeout=SECONDS, kernel_name="python3", resources=resources)


def printed(of: Any) -> str:
    outputs = [o for c in of.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o.text for o in outputs if o.output_type == "stream")


def pictures(of: Any) -> list[np.ndarray]:
    """What a notebook shows: a grey value for each number, uint8."""
    outputs = [o for c in of.cells if c.cell_type == "code" for o in c.outputs]
    shown = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    opened = (Image.open(BytesIO(base64.b64decode(png))) for png in shown)
    return [np.asarray(picture)[::10, ::10] for picture in opened]


def is_served(config: Path) -> bool:
    with contextlib.suppress(ps.PrivserveError), ps.Client(config) as client:
        return bool(client.models(served=True))
    return False


async def until(condition: Any, serving: asyncio.Task[Any]) -> Any:
    """Wait until a condition holds; fails at once where the serving notebook has failed."""
    async with asyncio.timeout(SECONDS):
        while not (found := await asyncio.to_thread(condition)):
            if serving.done():
                serving.result()
                pytest.fail("the serving notebook ended before it was asked")
            await asyncio.sleep(0.1)
    return found


async def serve_and_ask(
    serving: Any, asking: Any, folder: Path, by_hand: list[subprocess.Popen[bytes]] | None = None
) -> None:
    """Run notebooks 2 and 3 in two kernels at a time, as two people would.

    by_hand: gets the parties that are started with the commands that notebook 2 prints; None: it
    starts them itself.
    """
    served = asyncio.create_task(kernel(serving, folder).async_execute())
    try:
        if by_hand is not None:

            def commands() -> list[str]:
                found = re.findall(r"^    (cd .* && python .*)$", printed(serving), re.MULTILINE)
                return found if len(found) == 3 else []

            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            for command in await until(commands, served):
                by_hand.append(
                    subprocess.Popen(
                        ["sh", "-c", command],
                        env={**os.environ, "PATH": path},
                        stderr=subprocess.DEVNULL,
                        process_group=0,
                    )
                )
        await until(lambda: is_served(folder / "cluster" / "cluster.toml"), served)
        await kernel(asking, folder).async_execute()
        await served
    finally:
        served.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await served


def run_both(
    names: tuple[str, str], folder: Path, by_hand: list[subprocess.Popen[bytes]] | None = None
) -> tuple[Any, Any]:
    """Notebooks 2 and 3 after they have run, on free ports."""
    changes = {
        f"localhost:{4000 + number}": f"localhost:{port}"
        for number, port in enumerate(free_ports(3))
    }
    if by_hand is not None:
        changes["AUTO = True\\n"] = "AUTO = False\\n"
    serving, asking = notebook(names[0], changes), notebook(names[1], {})
    asyncio.run(serve_and_ask(serving, asking, folder, by_hand))
    return serving, asking


def check_answers(asking: Any) -> None:
    """The three digits were read correctly, and each share by itself looks like noise."""
    with np.load(SAMPLE_DIGITS) as samples:
        first, labels = samples["images"][0], samples["labels"][:3]
    assert printed(asking) == "".join(
        f"The image had label {n} and was correctly classified as {n}\n" for n in labels
    )
    digit, alices, bobs, joined, answer = pictures(asking)
    np.testing.assert_array_equal(digit, np.rint(255 * first[..., 0]))
    np.testing.assert_array_equal(joined, digit)
    for share in (alices, bobs):
        assert share.shape == digit.shape
        assert len(np.unique(share)) > 200  # of 256, 784 times: noise has 244 of them
        assert abs(np.corrcoef(share.ravel(), digit.ravel())[0, 1]) < 0.25
    assert answer.shape == (1, 10)
    assert answer.argmax() == labels[0]


def test_two_notebooks_serve_and_ask_at_a_time(folder: Path) -> None:
    serving, asking = run_both(ENGLISH, folder)
    check_answers(asking)
    assert "by hand" not in printed(serving)


@pytest.mark.slow
def test_the_portuguese_notebooks_do_too(folder: Path) -> None:
    check_answers(run_both(PORTUGUESE, folder)[1])


@pytest.mark.slow
def test_parties_that_are_started_with_the_printed_commands(folder: Path) -> None:
    by_hand: list[subprocess.Popen[bytes]] = []
    try:
        serving, asking = run_both(ENGLISH, folder, by_hand)
        assert [party.poll() for party in by_hand] == [None] * 3
    finally:
        for party in by_hand:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(party.pid, signal.SIGINT)
        ended = [party.wait(20) for party in by_hand]
    assert len(ended) == 3
    check_answers(asking)
    for name in ("alice", "bob", "carol"):
        assert re.search(rf"^{name} at .* by hand; end it there", printed(serving), re.MULTILINE)


@pytest.mark.slow
def test_training_writes_the_weights_that_notebook_2_loads(folder: Path) -> None:
    with np.load(SAMPLE_DIGITS) as samples:
        images = np.rint(255 * samples["images"][..., 0]).astype(np.uint8)
        labels = samples["labels"]
    few = folder / "few.npz"
    np.savez(few, x_train=images, y_train=labels, x_test=images[:50], y_test=labels[:50])
    trained = folder / "short-conv-mnist.h5"
    trained.unlink()
    # 200 digits, seen 30 times: enough to tell whether the weights arrive.
    changes = {"DIGITS = None": "DIGITS = 'few.npz'", "EPOCHS = 2": "EPOCHS = 30"}
    training = notebook(TRAINING[0], changes)
    kernel(training, folder).execute()
    assert "200 digits to train on, 50 to test with" in printed(training)
    predict = ps.load_model(trained).converted.predict
    right = np.argmax(predict(images[..., None] / 255), axis=1) == labels
    assert right.mean() > 0.5


@pytest.mark.parametrize("name", TRAINING)
def test_training_without_a_network_says_what_to_do(name: str) -> None:
    def load_data() -> None:
        raise OSError("no route to host")

    mnist = SimpleNamespace(load_data=load_data)
    names = {"keras": SimpleNamespace(datasets=SimpleNamespace(mnist=mnist)), "np": np}
    cells = [c.source for c in notebook(name, {}).cells if "def load_digits" in c.source]
    exec(cells[0].split("\n\n\n")[0], names)  # noqa: S102 (of our own notebook)
    with pytest.raises(RuntimeError, match=r"could not be fetched.*needs a network; set DIGITS to"):
        names["load_digits"](None)


def test_the_notebooks_are_what_the_script_makes() -> None:
    # So both languages have the same code, and no outputs.
    command = [sys.executable, str(ROOT / "scripts" / "notebooks.py"), "--check"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
