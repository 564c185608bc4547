"""Every ONNX op that compiles, on shares, against ONNX's own reference evaluation."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph
from ottt_session import Session, uniform

G = np.random.default_rng(11)


def node(op: str, inputs: list[str], output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{op} layer {output}", **attributes)


def weights(*shape: int, scale: float = 0.5) -> np.ndarray:
    return G.normal(size=shape) * scale


def batch_norm(channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": weights(channels),
        "beta": weights(channels),
        "mean": weights(channels),
        "variance": np.abs(weights(channels)) + 0.3,
    }


BN = ["gamma", "beta", "mean", "variance"]

MODELS: dict[str, onnx.ModelProto] = {
    "convolution": graph(
        [node("Conv", ["x", "w", "b"])], {"w": weights(4, 3, 3, 3), "b": weights(4)}, (3, 8, 7)
    ),
    "strided, dilated convolution with lopsided padding": graph(
        [node("Conv", ["x", "w"], strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 1])],
        {"w": weights(4, 3, 3, 2)},
        (3, 9, 8),
    ),
    "SAME padding": graph(
        [node("Conv", ["x", "w"], strides=[2, 2], auto_pad="SAME_UPPER")],
        {"w": weights(4, 3, 3, 3)},
        (3, 8, 8),
    ),
    "grouped convolution": graph(
        [node("Conv", ["x", "w"], group=2)], {"w": weights(8, 2, 3, 3)}, (4, 6, 6)
    ),
    "depthwise then pointwise": graph(
        [
            node("Conv", ["x", "d"], "h", group=4, pads=[1, 1, 1, 1]),
            node("Conv", ["h", "p"]),
        ],
        {"d": weights(4, 1, 3, 3), "p": weights(6, 4, 1, 1)},
        (4, 5, 5),
    ),
    "one-dimensional convolution and pooling": graph(
        [
            node("Conv", ["x", "w"], "h"),
            node("AveragePool", ["h"], "p", kernel_shape=[2], strides=[2]),
            node("MaxPool", ["p"], kernel_shape=[2], strides=[1]),
        ],
        {"w": weights(4, 3, 3)},
        (3, 12),
    ),
    "dense": graph(
        [node("Gemm", ["x", "w", "b"], transB=1, alpha=0.5)],
        {"w": weights(5, 9), "b": weights(5)},
        (9,),
    ),
    "matmul over positions with a bias": graph(
        [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "b"])],
        {"w": weights(6, 4), "b": weights(4)},
        (5, 6),
    ),
    "batch norm folded into a convolution": graph(
        [
            node("Conv", ["x", "w", "b"], "h"),
            node("BatchNormalization", ["h", *BN], "n"),
            node("Relu", ["n"]),
        ],
        {"w": weights(4, 3, 3, 3), "b": weights(4), **batch_norm(4)},
        (3, 6, 6),
    ),
    "batch norm that nothing precedes": graph(
        [node("BatchNormalization", ["x", *BN], "n"), node("Relu", ["n"])],
        batch_norm(3),
        (3, 4, 4),
    ),
    "batch norm after a ReLU, before a convolution": graph(
        [
            node("Relu", ["x"], "r"),
            node("BatchNormalization", ["r", *BN], "n"),
            node("Conv", ["n", "w"]),
        ],
        {"w": weights(4, 3, 3, 3), **batch_norm(3)},
        (3, 6, 6),
    ),
    "relu": graph([node("Relu", ["x"])], {}, (3, 5)),
    "leaky relu": graph([node("LeakyRelu", ["x"], alpha=0.3)], {}, (3, 5)),
    "leaky relu between linear ops": graph(
        [
            node("Gemm", ["x", "w"], "h"),
            node("LeakyRelu", ["h"], "l", alpha=0.1),
            node("Gemm", ["l", "v"]),
        ],
        {"w": weights(9, 8), "v": weights(8, 4)},
        (9,),
    ),
    "prelu": graph([node("PRelu", ["x", "s"])], {"s": weights(3, 1, 1)}, (3, 4, 4)),
    "relu6": graph(
        [node("Clip", ["x", "low", "high"])],
        {"low": np.float32(0), "high": np.float32(6)},
        (20,),
    ),
    "clip on both sides": graph(
        [node("Clip", ["x", "low", "high"])],
        {"low": np.float32(-1.5), "high": np.float32(2.5)},
        (20,),
    ),
    "clip above only": graph([node("Clip", ["x", "", "high"])], {"high": np.float32(2.5)}, (20,)),
    "clip below only": graph([node("Clip", ["x", "low"])], {"low": np.float32(-2.5)}, (20,)),
    "hard sigmoid": graph([node("HardSigmoid", ["x"], alpha=0.2, beta=0.5)], {}, (20,)),
    "abs": graph([node("Abs", ["x"])], {}, (20,)),
    "max pooling": graph(
        [node("MaxPool", ["x"], kernel_shape=[2, 2], strides=[2, 2])], {}, (3, 6, 6)
    ),
    "overlapping, padded max pooling": graph(
        [node("MaxPool", ["x"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        {},
        (2, 7, 7),
    ),
    "convolution, max pooling, relu": graph(
        [
            node("Conv", ["x", "w"], "h"),
            node("MaxPool", ["h"], "m", kernel_shape=[2, 2], strides=[2, 2]),
            node("Relu", ["m"]),
        ],
        {"w": weights(4, 3, 3, 3)},
        (3, 8, 8),
    ),
    "global max pooling": graph([node("GlobalMaxPool", ["x"])], {}, (3, 5, 4)),
    "mean pooling fused into a convolution": graph(
        [
            node("Conv", ["x", "w", "b"], "h", strides=[1, 2], pads=[1, 1, 1, 1]),
            node("AveragePool", ["h"], kernel_shape=[2, 2], strides=[2, 2]),
        ],
        {"w": weights(4, 3, 3, 3), "b": weights(4)},
        (3, 9, 10),
    ),
    "mean pooling between ReLU and convolution": graph(
        [
            node("Relu", ["x"], "r"),
            node("AveragePool", ["r"], "p", kernel_shape=[3, 2], strides=[2, 2]),
            node("Conv", ["p", "w"]),
        ],
        {"w": weights(4, 3, 2, 2)},
        (3, 9, 8),
    ),
    "padded mean pooling that does not count the padding": graph(
        [node("AveragePool", ["x"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])],
        {},
        (2, 7, 7),
    ),
    "padded mean pooling that counts the padding": graph(
        [
            node(
                "AveragePool",
                ["x"],
                kernel_shape=[3, 3],
                strides=[1, 1],
                pads=[1, 1, 1, 1],
                count_include_pad=1,
            )
        ],
        {},
        (2, 5, 5),
    ),
    "global mean pooling, then dense": graph(
        [
            node("Relu", ["x"], "r"),
            node("GlobalAveragePool", ["r"], "g"),
            node("Flatten", ["g"], "f"),
            node("Gemm", ["f", "w"]),
        ],
        {"w": weights(3, 5)},
        (3, 5, 3),
    ),
    "mean over space": graph([node("ReduceMean", ["x"], axes=[2, 3], keepdims=0)], {}, (3, 4, 4)),
    "a residual block": graph(
        [
            node("Relu", ["x"], "r"),
            node("Conv", ["r", "w", "b"], "c", pads=[1, 1, 1, 1]),
            node("Add", ["c", "r"], "s"),
            node("Relu", ["s"]),
        ],
        {"w": weights(3, 3, 3, 3), "b": weights(3)},
        (3, 5, 5),
    ),
    "difference of two branches": graph(
        [
            node("Gemm", ["x", "w"], "a"),
            node("Relu", ["x"], "r"),
            node("Sub", ["r", "a"]),
        ],
        {"w": weights(6, 6)},
        (6,),
    ),
    "sum of differently pooled branches": graph(
        [
            node("GlobalAveragePool", ["x"], "a"),
            node("GlobalMaxPool", ["x"], "b"),
            node("Add", ["a", "b"]),
        ],
        {},
        (3, 3, 5),
    ),
    "concatenation of branches": graph(
        [
            node("Conv", ["x", "w"], "a"),
            node("Relu", ["x"], "b"),
            node("Concat", ["a", "b"], "c", axis=1),
            node("Relu", ["c"]),
        ],
        {"w": weights(2, 3, 1, 1)},
        (3, 4, 4),
    ),
    "constants added and multiplied": graph(
        [
            node("Mul", ["x", "m"], "a"),
            node("Add", ["a", "c"], "b"),
            node("Div", ["b", "d"], "e"),
            node("Sub", ["k", "e"]),
        ],
        {
            "m": weights(3, 1, 1),
            "c": weights(3, 4, 4),
            "d": np.float32(2.5),
            "k": weights(1, 3, 1, 1),
        },
        (3, 4, 4),
    ),
    "elementwise secret factors": graph([node("Mul", ["x", "m"])], {"m": weights(4, 5)}, (4, 5)),
    "scaled input": graph(
        [node("Mul", ["x", "s"], "h"), node("Gemm", ["h", "w"])],
        {"s": np.float32(1 / 3), "w": weights(6, 4)},
        (6,),
    ),
    "maximum of two branches": graph(
        [node("Gemm", ["x", "w"], "a"), node("Max", ["a", "x"])], {"w": weights(6, 6)}, (6,)
    ),
    "transposes, slices, pads and reshapes": graph(
        [
            node("Transpose", ["x"], "a", perm=[0, 2, 3, 1]),
            node("Slice", ["a", "starts", "ends", "axes", "steps"], "b"),
            node("Pad", ["b", "pads", "value"], "c"),
            node("Unsqueeze", ["c", "axis"], "d"),
            node("Squeeze", ["d", "axis"], "e"),
            node("Reshape", ["e", "shape"], "f"),
            node("Identity", ["f"], "g"),
            node("Relu", ["g"]),
        ],
        {
            "starts": np.array([-1, 0]),
            "ends": np.array([-9, 3]),
            "axes": np.array([1, 2]),
            "steps": np.array([-2, 1]),
            "pads": np.array([0, 1, 0, 0, 0, 0, 2, 1]),
            "value": np.float32(0.5),
            "axis": np.array([1]),
            "shape": np.array([0, 4, -1]),
        },
        (3, 5, 4),
    ),
    "negation": graph([node("Neg", ["x"], "n"), node("Relu", ["n"])], {}, (7,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_op_on_shares_gives_what_onnx_says(name):
    model = MODELS[name]
    with Session(model, 3 if "relu" in name else 2) as session:
        shape = session.program.values[session.program.inputs[0].value].shape
        x = uniform((3, *shape), -8, 8)
        (out,) = session.query(x)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
    assert out.shape == expected.shape
    assert np.abs(out - expected).max() < 2e-3


@pytest.mark.parametrize("name", MODELS)
def test_no_value_leaves_the_bound_that_the_program_states(name):
    model = MODELS[name]
    with Session(model) as session:
        value = session.program.values[session.program.outputs[0].value]
        shape = session.program.values[session.program.inputs[0].value].shape
        for x in (np.full((1, *shape), 8.0), np.full((1, *shape), -8.0)):
            (out,) = session.query(x)
            (expected,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float32)})
            assert np.abs(out - expected).max() < 2e-3
            assert np.abs(out).max() <= value.bound
