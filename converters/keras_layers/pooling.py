"""Pooling, local and global."""

from __future__ import annotations

from converters.errors import ConversionError
from converters.graph import Graph, Symbol
from converters.keras_layers import settings
from converters.keras_layers.core import only
from converters.keras_layers.registry import keras_layer
from converters.keras_layers.window import Window, spatial_axes
from converters.network import Layer


@keras_layer(
    "MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D",
    "MaxPool1D", "MaxPool2D", "AvgPool1D", "AvgPool2D",
)  # fmt: skip
def pool(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """valid and same padding, any strides, both data formats."""
    value, config = only(inputs), layer.config
    rank = 1 if layer.class_name.endswith("1D") else 2
    layout = settings.data_format(config)
    size = settings.integers(config, "pool_size", rank, 2)
    # Keras writes strides=None down as pool_size, but old files also hold null.
    strides = size if config.get("strides") is None else settings.integers(config, "strides", rank)
    axes = spatial_axes(value, rank, layout)
    mode = settings.choice(config, "padding", "valid", "valid", "same")
    window = Window.of([value.shape[a] for a in axes], size, strides, (1,) * rank, mode)
    op = "MaxPool" if layer.class_name.startswith("Max") else "AveragePool"
    return _slid(graph, op, value, layout, axes, window)


@keras_layer(
    "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D",
    "AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D",
)  # fmt: skip
def adaptive_pool(
    graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]
) -> Symbol:
    """An output_size that divides the input's, both data formats."""
    value, config = only(inputs), layer.config
    rank = 1 if layer.class_name.endswith("1D") else 2
    layout = settings.data_format(config)
    wanted = settings.integers(config, "output_size", rank)
    axes = spatial_axes(value, rank, layout)
    lengths = tuple(value.shape[axis] for axis in axes)
    if any(length % count for length, count in zip(lengths, wanted, strict=True)):
        raise ConversionError(
            f"its output_size {wanted} does not divide its input's {lengths}, so its windows are "
            "of several sizes; pool to a size that does, or put a Resizing layer in front"
        )
    size = tuple(length // count for length, count in zip(lengths, wanted, strict=True))
    window = Window.of(lengths, size, size, (1,) * rank, "valid")
    op = "MaxPool" if "Max" in layer.class_name else "AveragePool"
    return _slid(graph, op, value, layout, axes, window)


def _slid(
    graph: Graph, op: str, value: Symbol, layout: str, axes: tuple[int, ...], window: Window
) -> Symbol:
    """`value` pooled by a window over `axes`; op: MaxPool or AveragePool."""
    value = graph.channels_first(value, layout)
    attributes = window.attributes()
    if op == "AveragePool":
        # TensorFlow's average leaves the padding out of the count.
        attributes = {"count_include_pad": 0, **attributes}
    shape = list(value.shape)
    for axis, length in zip(axes, window.output, strict=True):
        shape[axis] = length
    return graph.value(graph.emit(op, [value.name], **attributes), shape, value.axes)


@keras_layer(
    "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GlobalMaxPool1D", "GlobalMaxPool2D",
)  # fmt: skip
def global_pool(graph: Graph, layer: Layer, inputs: list[Symbol], keras: tuple[int, int]) -> Symbol:
    """keepdims, both data formats."""
    value, config = only(inputs), layer.config
    rank = 1 if layer.class_name.endswith("1D") else 2
    layout = settings.data_format(config)
    axes = spatial_axes(value, rank, layout)
    keepdims = config.get("keepdims", False)
    if not isinstance(keepdims, bool):
        raise ConversionError(f"its setting keepdims={keepdims!r} is malformed")
    value = graph.channels_first(value, layout)
    op = "GlobalMaxPool" if "Max" in layer.class_name else "GlobalAveragePool"
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(value.shape))
    pooled = graph.value(graph.emit(op, [value.name]), shape, value.axes)
    return pooled if keepdims else graph.flat(graph.flatten(pooled))
