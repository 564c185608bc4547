"""ONNX models for tests: small graphs from node lists, and the tutorial's net."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MNIST_MODEL = DATA / "short-conv-mnist.h5"


def graph(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: Sequence[int],
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A model with input 'x' of (B, *shape) and the given outputs."""
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            [
                numpy_helper.from_array(v.astype(np.float32) if v.dtype == np.float64 else v, name)
                for name, v in constants.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )


def tutorial_net(weights: Sequence[tuple[np.ndarray, np.ndarray]]) -> onnx.ModelProto:
    """Three times Conv 3x3, mean 2x2, ReLU; then Flatten, Dense, Softmax; NHWC input.

    weights: HWIO kernels and biases as Keras keeps them, then the dense matrix.
    """
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])]
    constants = {}
    last = "t"
    for i, (kernel, bias) in enumerate(weights[:-1]):
        constants[f"w{i}"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        constants[f"b{i}"] = bias
        nodes += [
            helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}"),
            helper.make_node(
                "AveragePool", [f"c{i}"], [f"p{i}"], kernel_shape=[2, 2], strides=[2, 2]
            ),
            helper.make_node("Relu", [f"p{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        last = f"r{i}"
    constants["wd"], constants["bd"] = weights[-1]
    nodes += [
        helper.make_node("Transpose", [last], ["n"], perm=[0, 2, 3, 1]),
        helper.make_node("Flatten", ["n"], ["f"]),
        helper.make_node("Gemm", ["f", "wd", "bd"], ["g"], name="dense"),
        helper.make_node("Softmax", ["g"], ["y"], axis=-1),
    ]
    return graph(nodes, constants, (28, 28, 1))


def mnist_weights() -> list[tuple[np.ndarray, np.ndarray]]:
    import h5py

    with h5py.File(MNIST_MODEL) as file:
        layers = ("conv2d", "conv2d_1", "conv2d_2", "dense")
        return [
            tuple(np.array(file[f"model_weights/{n}/{n}/{p}:0"]) for p in ("kernel", "bias"))
            for n in layers
        ]


def random_weights() -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of the tutorial's shapes, about as large as trained ones."""
    generator = np.random.default_rng(7)
    shapes = [(3, 3, 1, 10), (3, 3, 10, 32), (3, 3, 32, 64), (64, 10)]
    return [
        (generator.normal(size=s) / np.sqrt(np.prod(s[:-1])), 0.1 * generator.normal(size=s[-1]))
        for s in shapes
    ]


def float_logits(weights: Sequence[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> np.ndarray:
    """The tutorial's net in float64; x: (B, 28, 28, 1)."""
    out = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).double()
    for kernel, bias in weights[:-1]:
        kernel = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))).double()
        out = torch.nn.functional.conv2d(out, kernel, torch.from_numpy(bias).double())
        out = torch.relu(torch.nn.functional.avg_pool2d(out, 2))
    dense, bias = weights[-1]
    flat = out.permute(0, 2, 3, 1).reshape(len(x), -1).numpy()
    return flat @ dense + bias


def mnist_images() -> tuple[np.ndarray, np.ndarray]:
    """The test set as floats in [0, 1] (N, 28, 28, 1), and its labels."""
    with gzip.open(DATA / "mnist" / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(DATA / "mnist" / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images / 255.0, labels
