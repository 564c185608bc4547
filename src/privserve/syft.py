"""PySyft's names of 2019, for its tutorials 13b and 13c: `import privserve.syft as sy`.

The import line changes and nothing else does. What differs underneath: whoever serves writes the
cluster's files into FILES below the working directory, and whoever asks reads them there. Two
notebooks in one folder need nothing more; on another machine, put cluster.toml, ca.pem and
client.key there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from privserve import keras_hook
from privserve.client import Client
from privserve.cluster import Cluster, Worker
from privserve.config import read_config
from privserve.errors import ClusterError, ConfigError, InputError, NotServing, PrivserveError
from privserve.inputs import Inputs

__all__ = ["KerasHook", "TFECluster", "TFEWorker"]

FILES = Path(".privserve") / "syft"
"""Where a TFECluster's files are, below the working directory."""
PARTIES = 3
WAIT_SECONDS = 60.0
"""For the model to be served, since the two notebooks are run by two people."""
POLL_SECONDS = 0.5


class TFEWorker(Worker):
    """A party; or, without a host, a client, which connects to a model and asks it."""

    def __init__(self, host: str | None = None, auto_managed: bool = True) -> None:
        """host: host:port. Without one it is a client, or a local party on a free port."""
        super().__init__("localhost:0" if host is None else host, auto_managed)
        self._client: Client | None = None

    def connect_to_model(
        self,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        cluster: TFECluster,
        *,
        timeout: float = WAIT_SECONDS,
    ) -> None:
        """Connect to the model that a cluster serves, and wait for it for up to `timeout` seconds.

        input_shape, output_shape: with the batch axis, as in (1, 28, 28, 1); only a check, and any
        number of rows may be asked. cluster: the same three workers as the one that was started;
        it need not be started here. Raises ConfigError where there are no files of this cluster,
        InputError where the model has other shapes, ClusterError or NotServing where it is not
        served in time.
        """
        self.close()
        client = Client(cluster.found())
        try:
            _wait_served(client, timeout)
            _check_shapes(client, input_shape, output_shape)
        except BaseException:
            client.close()
            raise
        self._client = client

    def query_model(self, data: Inputs) -> Any:
        """Return the model's answer, float32; see `Client.query_model`."""
        return self._connected().query_model(data)

    def query_model_async(self, data: Inputs) -> None:
        """Begin a query, whose answer `query_model_join` returns."""
        self._connected().query_model_async(data)

    def query_model_join(self) -> Any:
        """Return the answer of the first query that was begun and not joined yet."""
        return self._connected().query_model_join()

    def close(self) -> None:
        """Close the connections to a model, if there are any."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Client:
        if self._client is None:
            raise ConfigError(
                "this worker is connected to no model; call connect_to_model(input_shape, "
                "output_shape, cluster) first"
            )
        return self._client


class TFECluster(Cluster):
    """Three workers, of which the third deals. Its files are in FILES, where clients find them."""

    def __init__(self, *workers: Worker, directory: str | Path = FILES) -> None:
        """directory: where the files are instead."""
        if len(workers) != PARTIES:
            raise ConfigError(f"a TFECluster has three workers, not {len(workers)}")
        super().__init__(*workers, directory=directory)
        self._files = Path(directory)

    def found(self) -> Path:
        """Return the cluster.toml of this cluster, which was started here or by somebody else.

        Raises ConfigError where there is none, and where it is another cluster's.
        """
        path = self._files / "cluster.toml"
        if not path.exists():
            raise ConfigError(
                f"there is no {path.absolute()}: run the serving notebook in this folder as far "
                "as cluster.start(), or copy cluster.toml, ca.pem and client.key from its "
                f"{self._files} to here"
            )
        config = read_config(path)
        if self._config is not None:
            if config.cluster != self._config.cluster:
                raise ConfigError(
                    f"another cluster was started in {path.parent.absolute()} meanwhile; give each "
                    "its own: TFECluster(..., directory=)"
                )
            return path
        for party, worker in zip(config.parties, self.workers, strict=False):
            # Without hosts it would be whichever cluster's files are there.
            if worker.address not in party.addresses:
                raise ConfigError(
                    f"{path.absolute()} has {party.name} at {party.address}, not at "
                    f"{worker.address}: name the workers' hosts as the serving notebook does"
                )
        return path


class KerasHook(keras_hook.KerasHook):
    """KerasHook, under which layers take `batch_input_shape` as they did before Keras 3."""

    def __init__(self, keras: ModuleType) -> None:
        """keras: the imported package (`tf.keras`, or `import keras`)."""
        super().__init__(keras)
        if int(str(getattr(keras, "__version__", "2")).split(".")[0]) >= 3:
            _teach_batch_input_shape(keras.layers.Layer)


def _teach_batch_input_shape(layer_class: Any) -> None:
    """Have Keras 3 read batch_input_shape=(1, 28, 28, 1) as input_shape=(28, 28, 1)."""
    before: Callable[..., None] = layer_class.__init__
    if hasattr(before, "_takes_batch_input_shape"):
        return

    def initialise(layer: Any, *arguments: Any, **options: Any) -> None:
        shape = options.pop("batch_input_shape", None)
        if shape is not None:
            options["input_shape"] = tuple(shape[1:])
        before(layer, *arguments, **options)

    initialise._takes_batch_input_shape = True  # type: ignore[attr-defined]
    layer_class.__init__ = initialise


def _wait_served(client: Client, timeout: float) -> None:
    """Wait until a model is served; raises why none is after `timeout` seconds."""
    deadline, is_told = time.monotonic() + timeout, False
    while True:
        try:
            if client.models(served=True):
                return
            why: PrivserveError = NotServing("no model is served; run model.serve() there")
        except ClusterError as error:
            why = error
        if time.monotonic() > deadline:
            raise why
        if not is_told:
            print("waiting for the model to be served ...", flush=True)
            is_told = True
        time.sleep(POLL_SECONDS)


def _check_shapes(client: Client, input_shape: Sequence[int], output_shape: Sequence[int]) -> None:
    """Raise InputError unless the model's one input and one output have these shapes."""
    described = client.read_model().description
    inputs = [tuple(tensor["shape"]) for tensor in described["inputs"]]
    outputs = [tuple(tensor["shape"]) for tensor in described["outputs"]]
    for what, found, shape in (
        ("takes", inputs, tuple(input_shape[1:])),
        ("gives", outputs, tuple(output_shape[1:])),
    ):
        if found != [shape]:
            listed = ", ".join(map(str, found))
            raise InputError(f"the model {what} rows of {listed}, not of {shape}")
