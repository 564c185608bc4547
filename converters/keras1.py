"""Keras 1's layers and weights in the words and the order of Keras 2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.network import Config, Network

_CLASSES = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "SeparableConvolution2D": "SeparableConv2D",
    "Deconvolution2D": "Conv2DTranspose",
}
_MERGES = {
    "sum": "Add",
    "mul": "Multiply",
    "ave": "Average",
    "max": "Maximum",
    "concat": "Concatenate",
}
_KEYS = {
    "output_dim": "units",
    "nb_filter": "filters",
    "bias": "use_bias",
    "border_mode": "padding",
    "p": "rate",
    "pool_length": "pool_size",
    "filter_length": "kernel_size",
}


def from_keras1(class_name: str, config: Config) -> tuple[str, Config]:
    """Return class name and settings of a Keras 1 layer, as Keras 2 would have written them.

    Raises: ConversionError for what has no equal in Keras 2.
    """
    new = {_KEYS.get(key, key): value for key, value in config.items()}
    if class_name == "Merge":
        return _merge(new)
    if class_name == "BatchNormalization" and config.get("mode", 0) != 0:
        raise ConversionError(
            f"layer {config.get('name')!r} (BatchNormalization): mode={config['mode']} normalizes "
            "by the statistics of what it is given, which is not supported; train with mode=0"
        )
    if "dim_ordering" in config:
        is_theano = config["dim_ordering"] == "th"
        new["data_format"] = "channels_first" if is_theano else "channels_last"
    if class_name.startswith("ZeroPadding") or class_name.startswith("Cropping"):
        return class_name, new  # their `padding` and `cropping` kept their meaning
    if "nb_row" in config:
        new["kernel_size"] = [config["nb_row"], config.get("nb_col")]
    for old in ("subsample", "subsample_length", "stride"):
        if old in config:
            new["strides"] = config[old]
    if "atrous_rate" in config:
        new["dilation_rate"] = config["atrous_rate"]
    if class_name.startswith("UpSampling1D"):
        new["size"] = config.get("length", 2)
    return _CLASSES.get(class_name, class_name), new


def _merge(config: Config) -> tuple[str, Config]:
    mode = config.get("mode")
    if "layers" in config or not isinstance(mode, str) or mode not in _MERGES:
        raise ConversionError(
            f"layer {config.get('name')!r} (Merge): mode {mode!r} of Keras 1 is not supported; "
            f"rebuild the model functionally with one of {', '.join(sorted(_MERGES))}"
        )
    return _MERGES[mode], {"name": config.get("name"), "axis": config.get("concat_axis", -1)}


_TURNED = ("Conv1D", "Conv2D", "Conv2DTranspose")


def depends_on_backend(network: Network) -> bool:
    """Return whether Keras 1 wrote the network, and layers in it mean another thing on Theano."""
    return network.keras[0] == 1 and any(
        layer.class_name in _TURNED
        or (layer.network is not None and depends_on_backend(layer.network))
        for layer in network.layers
    )


def modernize_weights(network: Network, backend: str | None) -> None:
    """Bring the kernels of old files into today's order, in place.

    Keras 1 kept kernels of its 'th' ordering as (out, in, rows, columns), those of Conv1D
    with a dummy axis, and those of transposed convolutions with in and out exchanged.
    Files written on Theano, by Keras 1 or 2, hold true convolutions: kernels flipped in
    space; but for depthwise ones, which Keras flipped itself. Files that do not tell the
    backend are taken for TensorFlow's, as Keras 2 does.
    """
    for layer in network.layers:
        if layer.network is not None:
            modernize_weights(layer.network, backend)
        elif layer.class_name in _TURNED and layer.weights:
            kernel = layer.weights["kernel"]
            if network.keras[0] == 1:
                kernel = _from_keras1(kernel, layer.class_name, layer.config)
            if backend == "theano":
                spatial = kernel.ndim - 2
                kernel = kernel[(slice(None, None, -1),) * spatial]
            layer.weights["kernel"] = kernel


def _from_keras1(
    kernel: NDArray[np.generic], class_name: str, config: Config
) -> NDArray[np.generic]:
    if kernel.ndim != 4:
        return kernel
    if class_name == "Conv1D":
        if kernel.shape[1] == 1 and kernel.shape[3] == config.get("filters"):
            return kernel[:, 0]  # (length, 1, in, out)
        return kernel[:, :, :, 0].transpose(2, 1, 0)  # before 1.1: (out, in, length, 1)
    is_first = config.get("data_format") == "channels_first"
    if class_name == "Conv2DTranspose":
        return kernel.transpose(2, 3, 0, 1) if is_first else kernel.transpose(0, 1, 3, 2)
    return kernel.transpose(2, 3, 1, 0) if is_first else kernel
