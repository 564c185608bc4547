"""Models with several inputs and outputs, from share to answer, in running parties."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from serving import ROOT, client_headers, free_workers, serving
from test_query_script import query
from torch import nn

import privserve as ps
from privserve import oip
from privserve.calls import tls_context

FIXTURE = ROOT / "tests" / "data" / "keras" / "files" / "several_keras3_keras.keras"
IMAGE, ROW = "input_layer_10", "input_layer_11"
TAKES = rf"'{IMAGE}' \(B, 7, 6, 3\), '{ROW}' \(B, 6\)"
TOLERANCE = 2e-3


class Served:
    """A running model with its golden inputs and outputs, and clients of it."""

    def __init__(self, cluster: ps.Cluster, client: ps.Client) -> None:
        self.cluster, self.client = cluster, client
        with np.load(FIXTURE.with_suffix(".npz")) as golden:
            self.inputs = [golden["x"], golden["x_1"]]
            self.outputs = [golden["y"], golden["y_1"]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ps.Cluster]:
    with ps.Cluster(*free_workers()) as running:
        yield running


@pytest.fixture
def served(cluster: ps.Cluster) -> Iterator[Served]:
    with ps.load_model(FIXTURE) as model, ps.Client(cluster) as client:
        model.share(cluster)
        with serving(cluster, model):
            yield Served(cluster, client)


def test_lists_and_dicts_are_answered_in_the_models_order(served: Served) -> None:
    image, row = served.inputs
    asked: list[Any] = [[image, row], (image, row), {ROW: row, IMAGE: image}]
    for x in asked:
        classes, score = served.client.query_model(x)
        np.testing.assert_allclose(classes, served.outputs[0], atol=TOLERANCE)
        np.testing.assert_allclose(score, served.outputs[1], atol=TOLERANCE)
    named = served.client.query_model([image, row], named=True)
    assert list(named) == ["classes", "score"]
    np.testing.assert_allclose(named["score"], served.outputs[1], atol=TOLERANCE)


def test_batches_of_any_size_and_logits(served: Served) -> None:
    for rows in (1, 2, 3):
        first = [x[:rows] for x in served.inputs]
        for got, expected in zip(served.client.query_model(first), served.outputs, strict=True):
            np.testing.assert_allclose(got, expected[:rows], atol=TOLERANCE)
    logits, score = served.client.query_model_async(served.inputs, logits=True).result(30)
    powers = np.exp(logits)
    np.testing.assert_allclose(
        powers / powers.sum(-1, keepdims=True), served.outputs[0], atol=TOLERANCE
    )
    np.testing.assert_allclose(score, served.outputs[1], atol=TOLERANCE)


IMAGES, ROWS = np.zeros((2, 7, 6, 3)), np.zeros((2, 6))


@pytest.mark.parametrize(
    ("x", "complaint"),
    {
        "one array": (IMAGES, rf"2 inputs: {TAKES}; give a list .*, not one array"),
        "a list of one": ([IMAGES], rf"{TAKES}; .*, not 1 arrays"),
        "a list of three": ([IMAGES, ROWS, ROWS], rf"{TAKES}; .*, not 3 arrays"),
        "a name too few": ({IMAGE: IMAGES}, rf"takes the inputs {TAKES}, not \['{IMAGE}'\]"),
        "a wrong name": ({IMAGE: IMAGES, "row": ROWS}, rf"{TAKES}, not \['{IMAGE}', 'row'\]"),
        "the wrong order": ([ROWS, IMAGES], rf"'{IMAGE}' must have the shape \(B, 7, 6, 3\)"),
        "a missing batch axis": ([IMAGES[0], ROWS[0]], "add a batch axis"),
        "unlike numbers of rows": ([IMAGES, ROWS[:1]], rf"2 of '{IMAGE}', 1 of '{ROW}'"),
        "values out of range": ([IMAGES, ROWS + 9], rf"'{ROW}' holds values from 9"),
    }.values(),
)
def test_inputs_that_do_not_fit_are_refused_with_what_the_model_takes(
    served: Served, x: Any, complaint: str
) -> None:
    with pytest.raises(ps.InputError, match=complaint):
        served.client.query_model(x)


def test_a_party_refuses_shares_that_are_not_the_models_inputs(served: Served) -> None:
    config = served.cluster.config
    share = {IMAGE: np.zeros((2, 7, 6, 3), np.int64), ROW: np.zeros((2, 6), np.int64)}
    wrong = [
        ({IMAGE: share[IMAGE]}, "the model takes the inputs", ROW),
        ({**share, "more": share[ROW]}, "the model takes the inputs", "more"),
        ({**share, ROW: share[ROW][:1]}, ROW, "[2, 6]"),
        ({**share, ROW: np.zeros((2, 5), np.int64)}, ROW, "[2, 6]"),
    ]
    with httpx.Client(
        base_url=f"https://{config.compute[0].address}",
        verify=tls_context(config.ca),
        headers=client_headers(config, config.compute[0].name),
    ) as http:
        model = f"/v2/models/{FIXTURE.stem}"
        version = http.get(model).json()["versions"][0]
        for tensors, *words in wrong:
            body = oip.format_json({"id": "wrong"}, tensors, "inputs")
            answer = http.post(f"{model}/versions/{version}/infer", json=body)
            assert answer.status_code == 400
            assert answer.json()["code"] == "bad_input"
            for word in words:
                assert word in answer.json()["error"]


def test_the_query_script_asks_with_an_array_per_input(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(served.cluster.config.path)]
    np.savez(tmp_path / "x.npz", **dict(zip((IMAGE, ROW), served.inputs, strict=True)))
    assert query.main([*config, str(tmp_path / "x.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(served.outputs[0])
    assert lines[0].startswith(f"{tmp_path}/x.npz[0] classes: [")
    score = float(lines[1].removeprefix(f"{tmp_path}/x.npz[0] score: [").removesuffix("]"))
    assert score == pytest.approx(float(served.outputs[1][0, 0]), abs=TOLERANCE)
    np.savez(tmp_path / "wrong.npz", row=served.inputs[1])
    assert query.main([*config, str(tmp_path / "wrong.npz")]) == 2
    assert IMAGE in capsys.readouterr().err


class Two(nn.Module):
    """Two vectors in; what they have in common, and its class, out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.classes = nn.Linear(4, 3), nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        common = torch.relu(self.left(x) + self.right(y))
        return {"common": common, "classes": torch.log_softmax(self.classes(common), -1)}


def test_a_torch_module_with_a_dictionary_of_outputs_is_served(cluster: ps.Cluster) -> None:
    torch.manual_seed(1)
    module = Two()
    draw = np.random.default_rng(2)
    x, y = (draw.uniform(-1, 1, (5, n)).astype(np.float32) for n in (4, 6))
    with torch.no_grad():
        expected = module(torch.from_numpy(x), torch.from_numpy(y))
    with ps.load_model(module, input_shape=[(4,), (6,)]) as model, ps.Client(cluster) as client:
        model.share(cluster, calibration={"input_1": y, "input_0": x})
        with serving(cluster, model):
            answers = client.query_model([x, y], named=True)
    assert list(answers) == ["common", "classes"]
    for name, got in answers.items():
        np.testing.assert_allclose(got, expected[name].numpy(), atol=TOLERANCE)


def test_calibration_that_does_not_fit_the_inputs_is_refused() -> None:
    model = ps.load_model(FIXTURE)
    for calibration, word in (
        ([IMAGES], TAKES),
        ({"x": IMAGES}, TAKES),
        ([IMAGES, ROWS[:, :3]], "shape"),
        ([IMAGES, [[1], [2, 3]]], "calibration"),
    ):
        with pytest.raises(ps.ModelError, match=word):
            model.prepare("ottt", calibration=calibration)
