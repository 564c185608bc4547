"""Ops that change sizes, products and minima of computed values, against the converter's torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from ottt_models import graph
from ottt_session import Session, uniform

from converters.onnx_model import OnnxModule

G = np.random.default_rng(12)


def node(op: str, inputs: list[str], output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{op} layer {output}", **attributes)


def weights(*shape: int) -> np.ndarray:
    return G.normal(size=shape) * 0.5


def deconvolution(shape: tuple[int, ...], weight: np.ndarray, **attributes: object) -> object:
    outputs = weight.shape[1] * int(attributes.get("group", 1))
    return graph(
        [node("ConvTranspose", ["x", "w", "b"], **attributes)],
        {"w": weight, "b": weights(outputs)},
        shape,
    )


def resizing(shape: tuple[int, ...], sizes: list[int], **attributes: object) -> object:
    return graph(
        [node("Resize", ["x", "", "", "sizes"], **attributes)],
        {"sizes": np.array([1, *sizes])},
        shape,
    )


NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}

MODELS = {
    "deconvolution": deconvolution((3, 4, 5), weights(3, 2, 3, 3)),
    "strided deconvolution": deconvolution((3, 4, 5), weights(3, 2, 3, 4), strides=[2, 3]),
    "deconvolution with strides beyond its kernel": deconvolution(
        (2, 4, 3), weights(2, 2, 2, 2), strides=[3, 4]
    ),
    "padded deconvolution": deconvolution(
        (3, 5, 4), weights(3, 2, 4, 3), strides=[2, 2], pads=[1, 0, 2, 1]
    ),
    "deconvolution with output padding": deconvolution(
        (3, 4, 4), weights(3, 2, 3, 3), strides=[2, 3], pads=[1, 1, 1, 1], output_padding=[1, 2]
    ),
    "dilated deconvolution": deconvolution(
        (2, 5, 4), weights(2, 3, 3, 2), strides=[2, 1], dilations=[2, 3]
    ),
    "grouped deconvolution": deconvolution((4, 3, 3), weights(4, 3, 3, 3), group=2, strides=[2, 2]),
    "one-dimensional deconvolution": deconvolution((3, 6), weights(3, 2, 4), strides=[2]),
    "deconvolution to SAME": deconvolution(
        (2, 4, 5), weights(2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"
    ),
    "deconvolution, then relu": graph(
        [node("ConvTranspose", ["x", "w"], "h", strides=[2, 2]), node("Relu", ["h"])],
        {"w": weights(3, 2, 3, 3)},
        (3, 4, 4),
    ),
    "nearest neighbours": resizing((2, 3, 4), [2, 7, 8], **NEAREST),
    "fewer nearest neighbours": resizing((2, 7, 9), [2, 3, 4], **NEAREST),
    "linear upsampling": resizing((2, 3, 4), [2, 6, 8], **LINEAR),
    "linear resizing": resizing((2, 5, 7), [2, 8, 4], **LINEAR),
    "linear resizing of what carries many fraction bits, then a sigmoid": graph(
        [
            node("Conv", ["x", "w"], "h"),
            node("AveragePool", ["h"], "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Resize", ["p", "", "", "sizes"], "r", **LINEAR),
            node("Sigmoid", ["r"], "s"),
            node("Identity", ["s"]),
        ],
        {"w": weights(2, 2, 2, 2), "sizes": np.array([1, 2, 7, 5])},
        (2, 5, 4),
    ),
    "gathered rows": graph(
        [node("Gather", ["x", "i"], axis=2)], {"i": np.array([[3, -1], [0, 0]])}, (2, 4, 3)
    ),
    "one gathered channel": graph([node("Gather", ["x", "i"], axis=1)], {"i": np.array(1)}, (3, 4)),
    "repetition": graph([node("Tile", ["x", "r"])], {"r": np.array([1, 2, 3])}, (2, 3)),
    "minimum": graph(
        [node("Gemm", ["x", "w"], "a"), node("Min", ["a", "x"])], {"w": weights(6, 6)}, (6,)
    ),
    "mean of three": graph(
        [
            node("Gemm", ["x", "w"], "a"),
            node("Relu", ["x"], "r"),
            node("Mean", ["a", "x", "r"]),
        ],
        {"w": weights(6, 6)},
        (6,),
    ),
    "square": graph([node("Mul", ["x", "x"])], {}, (3, 4)),
    "product of branches": graph(
        [node("Gemm", ["x", "w"], "a"), node("Relu", ["x"], "r"), node("Mul", ["a", "r"])],
        {"w": weights(6, 6) / 2},
        (6,),
    ),
    "a factor per channel": graph(
        [
            node("GlobalAveragePool", ["x"], "g"),
            node("Relu", ["x"], "r"),
            node("Mul", ["r", "g"]),
        ],
        {},
        (3, 4, 5),
    ),
    "a factor per position": graph(
        [
            node("ReduceMean", ["x"], "g", axes=[2, 3], keepdims=0),
            node("Transpose", ["x"], "t", perm=[0, 2, 3, 1]),
            node("Mul", ["g", "t"]),
        ],
        {},
        (3, 4, 5),
    ),
    "factors that repeat along two separate axes": graph(
        [
            node("Slice", ["x", "starts", "ends", "axes"], "s"),
            node("Relu", ["x"], "r"),
            node("Mul", ["r", "s"]),
        ],
        {"starts": np.array([0]), "ends": np.array([1]), "axes": np.array([2])},
        (3, 4, 5),
    ),
}


def plain(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """One sample in plaintext; ONNX's own evaluation cannot do grouped deconvolutions."""
    if any(a.name == "group" for n in model.graph.node for a in n.attribute):
        with torch.no_grad():
            return np.asarray(OnnxModule(model)(torch.from_numpy(x)))
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


def difference(model: onnx.ModelProto, parties: int, limit: float) -> float:
    with Session(model, parties, input_range=(-limit, limit)) as session:
        shape = session.program.values[session.program.inputs[0].value].shape
        ends = np.stack([np.full(shape, limit), np.full(shape, -limit)])
        x = np.concatenate([uniform((3, *shape), -limit, limit), ends])
        (out,) = session.query(x)
        bound = session.program.values[session.program.outputs[0].value].bound
    expected = np.concatenate([plain(model, row[None].astype(np.float32)) for row in x])
    assert out.shape == expected.shape
    assert np.abs(out).max() <= bound
    return float(np.abs(out - expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_an_op_on_shares_gives_what_onnx_says(name):
    assert difference(MODELS[name], 2, 4.0) < 2e-3


@pytest.mark.parametrize("name", ["a factor per channel", "strided deconvolution"])
def test_three_parties_do_too(name):
    assert difference(MODELS[name], 3, 4.0) < 2e-3


def test_a_thresholded_relu_jumps_at_its_threshold():
    model = graph([node("ThresholdedRelu", ["x"], alpha=0.75)], {}, (7,))
    unit = 2.0**-14
    x = np.array([[-8.0, 0.75 - unit, 0.75, 0.75 + unit, 0.0, 1.0, 8.0]])
    with Session(model) as session:
        (out,) = session.query(x)
    assert np.abs(out - np.where(x > 0.75, x, 0)).max() < 1e-3
