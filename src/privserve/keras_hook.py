"""`KerasHook(keras)`: share, serve and stop as methods of Keras' own models."""

from __future__ import annotations

from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from privserve.cluster import Cluster
from privserve.errors import ClusterError, ConfigError
from privserve.model import SecureModel, load_model

_ATTRIBUTE = "_privserve_model"

_hosting: WeakKeyDictionary[Cluster, WeakSet[SecureModel]] = WeakKeyDictionary()
"""By cluster, which models of a hooked class were shared there; of all hooks of this process, since
a cell that is run once more makes a second hook."""


class KerasHook:
    """Adds `share(cluster, **options)`, `serve(num_requests)` and `stop()` to Keras models.

    As in PySyft's tutorials, part 13b; of part 12b is `shutdown_workers()`, which the hook has too.
    The live model is converted in memory; Keras itself is only asked for configuration and weights.
    Works with Keras 3, Keras 2 and tf.keras.
    """

    def __init__(self, keras: ModuleType) -> None:
        """keras: the imported package (`import keras`, or `tf.keras`)."""
        model_class = getattr(keras, "Model", None) or getattr(
            getattr(keras, "models", None), "Model", None
        )
        if not isinstance(model_class, type):
            raise ConfigError("KerasHook takes the keras package itself: KerasHook(keras)")
        model_class.share = _share  # type: ignore[attr-defined]
        model_class.serve = _serve  # type: ignore[attr-defined]
        model_class.stop = _stop  # type: ignore[attr-defined]
        model_class.shutdown_workers = _shutdown_workers  # type: ignore[attr-defined]

    @staticmethod
    def shutdown_workers() -> None:
        """Stop every model that was shared by `model.share`, and the clusters of these; idempotent.

        Parties that were started by hand forget their shares, but only who started them can end
        them; `Cluster.stop` says which these are.
        """
        while _hosting:
            cluster, models = _hosting.popitem()
            try:
                for model in list(models):
                    model.stop()
            finally:
                cluster.stop()


def _share(model: Any, cluster: Cluster, **options: Any) -> None:
    """Split the weights of this model among the cluster's parties; see SecureModel.share."""
    secure = load_model(model, name=getattr(model, "name", None))
    secure.share(cluster, **options)
    _hosting.setdefault(cluster, WeakSet()).add(secure)
    # Not a plain assignment: Keras models track the attributes that are set on them.
    object.__setattr__(model, _ATTRIBUTE, secure)


def _shared(model: Any) -> Any:
    secure = getattr(model, _ATTRIBUTE, None)
    if secure is None:
        raise ClusterError("the model is not shared; call share(cluster) first")
    return secure


def _serve(model: Any, num_requests: int | None = None, **options: Any) -> int:
    """Answer rows until the limit is reached; see SecureModel.serve."""
    answered: int = _shared(model).serve(num_requests, **options)
    return answered


def _stop(model: Any) -> None:
    """Have every party forget its share; see SecureModel.stop."""
    secure = getattr(model, _ATTRIBUTE, None)
    if secure is not None:
        secure.stop()
        object.__setattr__(model, _ATTRIBUTE, None)


def _shutdown_workers(model: Any) -> None:
    """Stop all that was shared and started; see KerasHook.shutdown_workers."""
    KerasHook.shutdown_workers()
