"""PySyft's names: what the cells of its tutorials 13b and 13c call, in the order they do."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from serving import (
    ROOT,
    SAMPLE_DIGITS,
    SAMPLE_MODEL,
    free_workers,
    make_config,
    serving,
    small_model,
)

import privserve as ps
import privserve.syft as sy

SERVING = """
    import tensorflow as tf
    from tensorflow.keras import Sequential
    from tensorflow.keras.layers import Activation, AveragePooling2D, Conv2D, Dense, Flatten

    import privserve.syft as sy
    hook = sy.KerasHook(tf.keras)

    model = Sequential()
    model.add(Conv2D(10, (3, 3), batch_input_shape=(1, 28, 28, 1)))
    model.add(AveragePooling2D((2, 2)))
    model.add(Activation("relu"))
    for filters in (32, 64):
        model.add(Conv2D(filters, (3, 3)))
        model.add(AveragePooling2D((2, 2)))
        model.add(Activation("relu"))
    model.add(Flatten())
    model.add(Dense(10, name="logit"))
    model.load_weights("short-conv-mnist.h5")

    AUTO = True
    alice = sy.TFEWorker(host="localhost:PORT0", auto_managed=AUTO)
    bob = sy.TFEWorker(host="localhost:PORT1", auto_managed=AUTO)
    carol = sy.TFEWorker(host="localhost:PORT2", auto_managed=AUTO)
    cluster = sy.TFECluster(alice, bob, carol)
    cluster.start()
    print("started", flush=True)
    model.share(cluster)
    model.serve(num_requests=3)
    model.stop()
    cluster.stop()
"""
ASKING = """
    import privserve.syft as sy

    client = sy.TFEWorker()
    alice = sy.TFEWorker(host="localhost:PORT0")
    bob = sy.TFEWorker(host="localhost:PORT1")
    carol = sy.TFEWorker(host="localhost:PORT2")
    cluster = sy.TFECluster(alice, bob, carol)
    client.connect_to_model((1, 28, 28, 1), (1, 10), cluster)
    answers = [client.query_model(image.reshape(1, 28, 28, 1)) for image in images[:2]]
    client.query_model_async(images[2].reshape(1, 28, 28, 1))
    answers.append(client.query_model_join())
    client.close()
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in made]


@pytest.mark.slow
def test_the_old_notebooks_calls_serve_and_ask_from_two_processes(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    serving_cells, asking_cells = SERVING, ASKING
    for number, port in enumerate(free_ports(3)):
        serving_cells = serving_cells.replace(f"PORT{number}", str(port))
        asking_cells = asking_cells.replace(f"PORT{number}", str(port))
    Path("short-conv-mnist.h5").write_bytes(SAMPLE_MODEL.read_bytes())
    # Stands for TensorFlow, of which the notebooks use tf.keras alone.
    stand_in = tmp_path / "stand-in" / "tensorflow"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text(
        "import sys, keras, keras.layers\n"
        "sys.modules['tensorflow.keras'] = keras\n"
        "sys.modules['tensorflow.keras.layers'] = keras.layers\n"
        "def __getattr__(name):\n"  # Keras asks whether things are of TensorFlow's classes
        "    if name[:1].isupper(): return type(name, (), {})\n"
        "    raise AttributeError(name)\n"
    )
    path = os.pathsep.join([str(stand_in.parent), str(ROOT / "src"), str(ROOT)])
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(serving_cells)],
        env={**os.environ, "PYTHONPATH": path, "KERAS_BACKEND": "torch"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "started\n"
        with np.load(SAMPLE_DIGITS) as samples:
            names: dict[str, Any] = {"images": samples["images"][:3]}
            labels = samples["labels"][:3]
        exec(textwrap.dedent(asking_cells), names)  # noqa: S102 (its text is above)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
    assert [answer.shape for answer in names["answers"]] == [(1, 10)] * 3
    assert [int(np.argmax(answer)) for answer in names["answers"]] == list(labels)


def test_a_client_is_told_of_another_shape_and_of_another_address(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = sy.TFEWorker()
    with pytest.raises(ps.ConfigError, match=r"as far as cluster\.start\(\)"):
        client.connect_to_model((1, 4), (1, 2), sy.TFECluster(*free_workers()))
    cluster, model = sy.TFECluster(*free_workers()), small_model()
    cluster.start()
    try:
        model.share(cluster)
        same = sy.TFECluster(*(sy.TFEWorker(host=p.address) for p in cluster.config.parties))
        with pytest.raises(ps.NotServing, match=r"model\.serve\(\)"):
            client.connect_to_model((1, 4), (1, 2), same, timeout=0)
        with serving(cluster, model):
            with pytest.raises(ps.InputError, match=r"takes rows of \(4,\), not of \(5,\)"):
                client.connect_to_model((1, 5), (1, 2), same)
            with pytest.raises(ps.InputError, match=r"gives rows of \(2,\), not of \(3,\)"):
                client.connect_to_model((1, 4), (1, 3), same)
            for wrong in ("localhost:1", None):
                workers = (sy.TFEWorker(host=wrong), sy.TFEWorker(), sy.TFEWorker())
                with pytest.raises(ps.ConfigError, match=r"alice at .*, not at localhost:\d: name"):
                    client.connect_to_model((1, 4), (1, 2), sy.TFECluster(*workers))
            client.connect_to_model((1, 4), (1, 2), same)
            assert client.query_model(np.zeros((1, 4))).shape == (1, 2)
            client.close()
            client.connect_to_model((1, 4), (1, 2), cluster)  # the one that was started here
            client.close()
            make_config(sy.FILES, ["localhost:1", "localhost:2", "localhost:3"])
            with pytest.raises(ps.ConfigError, match="another cluster was started in"):
                client.connect_to_model((1, 4), (1, 2), cluster)
    finally:
        cluster.stop()


def test_a_worker_that_is_connected_to_nothing_says_what_to_call() -> None:
    for call in (
        lambda: sy.TFEWorker().query_model(np.zeros((1, 4))),
        lambda: sy.TFEWorker().query_model_async(np.zeros((1, 4))),
        lambda: sy.TFEWorker().query_model_join(),
    ):
        with pytest.raises(ps.ConfigError, match="call connect_to_model"):
            call()


def test_there_are_three_workers() -> None:
    with pytest.raises(ps.ConfigError, match="three workers, not 2"):
        sy.TFECluster(*free_workers(2))
    assert [w.host for w in sy.TFECluster(*free_workers()).workers] == ["localhost:0"] * 3


def test_a_host_is_an_address_by_another_name() -> None:
    assert ps.Worker(host="localhost:4000") == ps.Worker("localhost:4000")
    assert ps.Worker(host="localhost:4000", auto_managed=False).host == "localhost:4000"
    for wrong in ({}, {"address": "localhost:1", "host": "localhost:1"}):
        with pytest.raises(ps.ConfigError, match="one address"):
            ps.Worker(**wrong)


def test_layers_take_a_batch_input_shape_as_before_keras_3() -> None:
    class Layer:
        def __init__(self, units: int, **options: Any) -> None:
            self.given = (units, options)

    class Model:
        pass

    keras = ModuleType("keras")
    keras.__version__ = "3.15.1"  # type: ignore[attr-defined]
    keras.Model, keras.layers = Model, ModuleType("layers")  # type: ignore[attr-defined]
    keras.layers.Layer = Layer
    for _ in range(2):  # a cell may be run twice
        sy.KerasHook(keras)
    assert Layer(3, batch_input_shape=(1, 28, 28, 1)).given == (3, {"input_shape": (28, 28, 1)})
    assert Layer(3).given == (3, {})
