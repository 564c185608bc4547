"""KerasHook on a stand-in for the keras package: what matters is which methods it adds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from serving import free_workers, tagged_processes, wait_until

import privserve as ps
from privserve import keras_hook


class Model:
    """Stands for keras.Model; like the real one it refuses attributes that it does not know."""

    name = "my_model"

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError("a Keras model tracks its attributes")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    package = ModuleType("keras")
    package.Model = Model  # type: ignore[attr-defined]
    ps.KerasHook(package)
    layer = torch.nn.Linear(4, 2)
    load = ps.load_model

    def load_layer(source: object, name: str) -> ps.SecureModel:
        assert isinstance(source, Model)
        return load(layer, input_shape=(4,), name=name)

    monkeypatch.setattr(keras_hook, "load_model", load_layer)
    yield Model()
    for name in ("share", "serve", "stop", "shutdown_workers"):
        delattr(Model, name)


def test_a_keras_model_is_shared_served_and_stopped_by_its_own_methods(
    tag: str, model: Model
) -> None:
    import threading

    with ps.Cluster(*free_workers()) as cluster, ps.Client(cluster, timeout=30) as client:
        model.share(cluster)  # type: ignore[attr-defined]
        answered: list[int] = []
        serve = threading.Thread(
            target=lambda: answered.append(model.serve(num_requests=1)),  # type: ignore[attr-defined]
            daemon=True,
        )
        serve.start()
        leader = cluster.config.compute[0]
        wait_until(
            lambda: cluster.call(leader, "GET", "/privserve/status").json()["serving"], "served"
        )
        assert client.query_model(np.zeros((1, 4))).shape == (1, 2)
        serve.join(20)
        assert answered == [1]
        model.stop()  # type: ignore[attr-defined]
        with pytest.raises(ps.NotServing):
            client.query_model(np.zeros((1, 4)))


def test_serving_before_sharing_is_refused_and_stopping_is_not(model: Model) -> None:
    with pytest.raises(ps.ClusterError, match=r"call share\(cluster\) first"):
        model.serve()  # type: ignore[attr-defined]
    model.stop()  # type: ignore[attr-defined]


def test_a_hook_stops_the_workers_of_all_models_that_it_shared(tag: str, model: Model) -> None:
    cluster = ps.Cluster(*free_workers())
    cluster.start()
    model.share(cluster)  # type: ignore[attr-defined]
    assert len(tagged_processes(tag)) == 3
    ps.KerasHook.shutdown_workers()
    assert tagged_processes(tag) == []
    with pytest.raises(ps.ClusterError, match="not running"):
        _ = cluster.config
    model.shutdown_workers()  # type: ignore[attr-defined]
    model.stop()  # type: ignore[attr-defined]


def test_only_the_keras_package_can_be_hooked() -> None:
    with pytest.raises(ps.ConfigError, match=r"KerasHook\(keras\)"):
        ps.KerasHook(ModuleType("numpy"))


def test_the_model_class_may_be_in_the_models_module() -> None:
    package, models = ModuleType("keras"), ModuleType("keras.models")

    class Old:
        pass

    models.Model = Old  # type: ignore[attr-defined]
    package.models = models  # type: ignore[attr-defined]
    ps.KerasHook(package)
    assert all(hasattr(Old, name) for name in ("share", "serve", "stop"))


def test_a_live_keras_model_is_served_as_keras_itself_predicts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
    keras = pytest.importorskip("keras")
    ps.KerasHook(keras)
    layers = keras.layers
    net = keras.Sequential(
        [
            layers.Input((8, 8, 2)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    x = np.random.default_rng(5).uniform(-1, 1, (6, 8, 8, 2)).astype(np.float32)
    expected = net.predict(x, verbose=0)
    with ps.Cluster(*free_workers()) as cluster:
        net.share(cluster)
        thread = threading.Thread(target=net.serve, args=(6,), daemon=True)
        thread.start()
        leader = cluster.config.compute[0]
        wait_until(
            lambda: cluster.call(leader, "GET", "/privserve/status").json()["serving"], "serving"
        )
        with ps.Client(cluster) as client:
            np.testing.assert_allclose(client.query_model(x), expected, atol=2e-3)
        thread.join(20)
        assert not thread.is_alive()
        net.stop()
