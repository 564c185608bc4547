"""Which engine runs which layer: the cases that whole models do not show."""

from __future__ import annotations

import torch
from torch import nn

import converters
from privserve.support import Support


def column(module: nn.Module, *shape: int) -> list[list[str] | None]:
    converted = converters.convert(module, input_shape=shape)
    support = Support(converted.onnx)
    return [support.engines(set(row.nodes)) for row in converted.layers]


def test_a_layer_that_one_engine_lacks_spoils_no_other_layer() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, padding=1), nn.Conv2d(2, 1, 1))
    assert column(net, 1, 6, 6) == [["ottt", "crypten"], ["ottt"], ["ottt", "crypten"]]


def test_a_final_activation_is_the_clients_and_a_hidden_one_is_not() -> None:
    converted = converters.convert(
        nn.Sequential(nn.Sigmoid(), nn.Linear(3, 2), nn.Sigmoid()), input_shape=(3,)
    )
    support = Support(converted.onnx)
    nodes = [row.nodes[0] for row in converted.layers]
    assert support.client_nodes == {nodes[-1]}
    assert support.engines({nodes[-1]}) is None
    assert support.engines({nodes[0]}) == ["ottt"]  # CrypTen has no such op
    assert support.engines({nodes[1]}) == ["ottt", "crypten"]


class Shapes(nn.Module):
    """Nodes that compute on constants alone stand between the others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ (2 * self.weight).T.T)


def test_constants_are_no_layers_and_go_where_they_are_needed() -> None:
    assert [row for row in column(Shapes(), 4) if row is not None] == [["ottt", "crypten"]] * 2


class Sums(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


def test_several_inputs_are_beyond_crypten() -> None:
    converted = converters.convert(Sums(), input_shape=[(3,), (3,)])
    support = Support(converted.onnx)
    assert [support.engines(set(row.nodes)) for row in converted.layers] == [["ottt"]]
