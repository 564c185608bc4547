"""scikit-learn's ONNX: scores are served as onnxruntime computes them, labels are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import converters

runtime = pytest.importorskip("onnxruntime")

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(3, 4)).astype(np.float32)
B = RANDOM.normal(size=3).astype(np.float32)
PAIR = np.concatenate([-W[:1], W[:1]])
LABEL = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
SCORES = helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, None])
NUMBER = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
DICTIONARY = helper.make_value_info(
    "z", helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, NUMBER))
)


def learner(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, domain="ai.onnx.ml", **attributes)


def classifier(rows: np.ndarray, bias: Any, kind: str, output: str = "p") -> onnx.NodeProto:
    return learner(
        "LinearClassifier", ["X"], ["label", output], coefficients=rows.ravel().tolist(),
        intercepts=list(map(float, bias)), post_transform=kind, multi_class=1,
        classlabels_ints=list(range(max(len(rows), 2))),
    )  # fmt: skip


def zipped(count: int) -> list[onnx.NodeProto]:
    """What follows the classifier of a LogisticRegression."""
    return [
        learner("Normalizer", ["q"], ["p"], norm="L1"),
        learner("ZipMap", ["p"], ["z"], classlabels_int64s=list(range(count))),
    ]


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


def stored(
    path: Path, nodes: list[onnx.NodeProto], outputs: list[Any], kind: int = TensorProto.FLOAT
) -> Path:
    wide = np.float64 if kind == TensorProto.DOUBLE else np.float32
    constants = {
        "W": W.astype(wide), "b": B.astype(wide), "i": np.array([[0, 2]], np.int64),
        "one": np.array(1, wide), "V": W[:2].astype(wide),
    }  # fmt: skip
    read = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "learned",
        [helper.make_tensor_value_info("X", kind, [None, 4])],
        outputs,
        [numpy_helper.from_array(a, name) for name, a in constants.items() if name in read],
    )
    domains = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 1)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=domains, ir_version=8).SerializeToString()
    )
    return path


GEMM = node("Gemm", ["X", "W", "b"], "s", transB=1)
SOFTMAX = node("Softmax", ["s"], "q", axis=1)

# nodes, outputs of the file, the last operator of what is served
SERVED: dict[str, tuple[list[onnx.NodeProto], list[Any], str]] = {
    "scaler": (
        [learner("Scaler", ["X"], ["p"], offset=[1.0, 2, 3, 4], scale=[0.5, 1, 2, 3])],
        [SCORES], "Mul",
    ),
    "linear regression": (
        [learner("LinearRegressor", ["X"], ["p"], coefficients=W[0].tolist(), intercepts=[0.3])],
        [SCORES], "Gemm",
    ),
    "raw scores": ([classifier(W, B, "NONE")], [LABEL, SCORES], "Gemm"),
    "one class against the rest": ([classifier(W, B, "LOGISTIC")], [LABEL, SCORES], "Sigmoid"),
    "logistic regression": (
        [classifier(W, B, "SOFTMAX", "q"), *zipped(3)], [LABEL, DICTIONARY], "Softmax",
    ),
    "logistic regression of two classes": (
        [classifier(PAIR, [-0.3, 0.3], "LOGISTIC", "q"), *zipped(2)], [LABEL, DICTIONARY],
        "Sigmoid",
    ),
    "one score for two classes": (
        [classifier(W[:1], [0.3], "LOGISTIC")], [LABEL, SCORES], "Concat",
    ),
    "a copy at the end": ([GEMM, SOFTMAX, node("Identity", ["q"], "p")], [SCORES], "Softmax"),
    "a cast at the end": ([GEMM, SOFTMAX, node("Cast", ["q"], "p", to=1)], [SCORES], "Softmax"),
    "columns": (
        [learner("ArrayFeatureExtractor", ["X", "i"], ["c"]), node("MatMul", ["c", "V"], "p")],
        [SCORES], "MatMul",
    ),
}  # fmt: skip


def samples() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def scores_of(path: Path, x: np.ndarray) -> np.ndarray:
    """onnxruntime's scores, dictionaries as rows."""
    found = runtime.InferenceSession(path).run(None, {"X": x})[-1]
    if isinstance(found, list):
        found = np.array([[row[key] for key in sorted(row)] for row in found])
    return np.asarray(found)


@pytest.mark.parametrize("name", SERVED)
def test_scores_are_those_of_onnxruntime(name: str, tmp_path: Path) -> None:
    nodes, outputs, last = SERVED[name]
    path = stored(tmp_path / "model.onnx", nodes, outputs)
    converted = converters.convert(path)
    expected = scores_of(path, samples())
    assert [output.shape for output in converted.outputs] == [(None, expected.shape[1])]
    np.testing.assert_allclose(converted.predict(samples()), expected, atol=1e-6)
    # Nothing comes after a softmax or a sigmoid, so that it is left to the client.
    assert converted.onnx.graph.node[-1].op_type == last


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    nodes, outputs, _ = SERVED["logistic regression"]
    notes = converters.convert(stored(tmp_path / "model.onnx", nodes, outputs)).notes
    assert any("'label'" in note and "left out" in note for note in notes)
    assert any("columns are 0, 1, 2" in note for note in notes)


def test_where_there_are_labels_only_their_scores_are_served(tmp_path: Path) -> None:
    largest = node("ArgMax", ["q"], "label", axis=1, keepdims=0)
    path = stored(tmp_path / "model.onnx", [GEMM, SOFTMAX, largest], [LABEL])
    converted = converters.convert(path)
    labels = scores_of(path, samples())
    np.testing.assert_array_equal(converted.predict(samples()).argmax(1), labels)
    assert any("scores" in note and "'q'" in note for note in converted.notes)


@pytest.mark.parametrize("as_nodes", [False, True])
def test_doubles_are_floats(as_nodes: bool, tmp_path: Path) -> None:
    result = helper.make_tensor_value_info("s", TensorProto.DOUBLE, [None, 3])
    nodes = [GEMM]
    if as_nodes:
        wide = {"W": W.astype(np.float64), "b": B.astype(np.float64)}
        nodes = [
            *(node("Constant", [], k, value=numpy_helper.from_array(v)) for k, v in wide.items()),
            GEMM,
        ]
    path = stored(tmp_path / "model.onnx", nodes, [result], TensorProto.DOUBLE)
    if as_nodes:
        model = onnx.load(path)
        del model.graph.initializer[:]
        onnx.save(model, path)
    expected = scores_of(path, samples().astype(np.float64))
    np.testing.assert_allclose(converters.convert(path).predict(samples()), expected, atol=1e-5)


def test_whole_numbers_are_taken_as_floats(tmp_path: Path) -> None:
    nodes = [node("Cast", ["X"], "f", to=1), node("Gemm", ["f", "W", "b"], "p", transB=1)]
    path = stored(tmp_path / "model.onnx", nodes, [SCORES], TensorProto.INT64)
    x = np.rint(samples() * 3)
    expected = scores_of(path, x.astype(np.int64))
    np.testing.assert_allclose(converters.convert(path).predict(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([classifier(W, B, "LOGISTIC", "q"), zipped(3)[0]], "multinomial"),
        ([classifier(PAIR, [-0.3, 0.4], "LOGISTIC", "q"), zipped(2)[0]], "multinomial"),
        ([classifier(W[:2], [-0.3, 0.3], "LOGISTIC", "q"), zipped(2)[0]], "multinomial"),
        ([learner("Normalizer", ["X"], ["p"], norm="L2")], "before the query"),
        ([learner("Imputer", ["X"], ["p"], imputed_value_floats=[0.0])], "missing values"),
        ([learner("Binarizer", ["X"], ["p"], threshold=0.5)], "before the query"),
        ([learner("SVMRegressor", ["X"], ["p"], kernel_type="RBF")], "linear model"),
        ([learner("TreeEnsembleRegressor", ["X"], ["p"], n_targets=1)], "decision trees"),
        ([node("Cast", ["X"], "f", to=7), node("Cast", ["f"], "p", to=1)], "between floats only"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_way_out(
    nodes: list[onnx.NodeProto], says: str, tmp_path: Path
) -> None:
    with pytest.raises(converters.ConversionError, match=says):
        converters.convert(stored(tmp_path / "model.onnx", nodes, [SCORES]))
