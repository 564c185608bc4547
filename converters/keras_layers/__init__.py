"""Keras layers to ONNX nodes: one small function per layer class, by family."""

from converters.keras_layers import (
    activations,
    convolution,
    core,
    merging,
    movements,
    normalization,
    operations,
    picking,
    pooling,
    reshaping,
)
from converters.keras_layers.registry import LAYERS, LayerKind, kind_of

__all__ = [
    "LAYERS",
    "LayerKind",
    "activations",
    "convolution",
    "core",
    "kind_of",
    "merging",
    "movements",
    "normalization",
    "operations",
    "picking",
    "pooling",
    "reshaping",
]
