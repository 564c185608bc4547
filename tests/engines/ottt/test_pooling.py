"""Pooling whose windows reach beyond the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ottt_session import Session, uniform
from torch import nn

import converters

OPTIONS = [
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 2, "stride": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 1)},
    {"kernel_size": (1, 4), "stride": (4, 2), "padding": (0, 2)},
    {"kernel_size": 5, "stride": 4, "padding": 2},
]
KINDS = {
    "max": lambda o: nn.MaxPool2d(**o, ceil_mode=True),
    "average": lambda o: nn.AvgPool2d(**o, ceil_mode=True, count_include_pad=False),
    "average with padding": lambda o: nn.AvgPool2d(**o, ceil_mode=True, count_include_pad=True),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pooling_that_rounds_its_size_up_agrees_with_torch(kind: str, options: dict) -> None:
    shape = (2, 8, 9)
    pool = KINDS[kind](options)
    for net in (pool, nn.Sequential(nn.Conv2d(2, 2, 1), pool)):  # a mean may be folded
        x = uniform((3, *shape), -8, 8).astype(np.float32)
        with torch.no_grad():
            expected = net(torch.from_numpy(x)).numpy()
        converted = converters.convert(net, input_shape=shape)
        np.testing.assert_allclose(converted.predict(x), expected, atol=1e-5)
        with Session(converted.onnx, input_range=(-8, 8)) as session:
            (answer,) = session.query(x)
        np.testing.assert_allclose(answer, expected, atol=3e-4)


def test_one_dimensional_pooling_rounds_up_as_well() -> None:
    for pool in (nn.MaxPool1d(3, 2, ceil_mode=True), nn.AvgPool1d(3, 2, ceil_mode=True)):
        x = uniform((3, 2, 8), -8, 8).astype(np.float32)
        expected = pool(torch.from_numpy(x)).numpy()
        converted = converters.convert(pool, input_shape=(2, 8))
        with Session(converted.onnx, input_range=(-8, 8)) as session:
            (answer,) = session.query(x)
        np.testing.assert_allclose(answer, expected, atol=3e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize("first", [nn.BatchNorm2d(2), nn.Conv2d(2, 2, 2, groups=2)])
def test_a_mean_follows_what_is_linear_but_no_image(first: nn.Module, size: tuple) -> None:
    shape = (2, 6, 5)
    net = nn.Sequential(first, nn.AvgPool2d(size, stride=1)).eval()
    x = uniform((3, *shape), -2, 2).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    converted = converters.convert(net, input_shape=shape)
    with Session(converted.onnx, input_range=(-2, 2)) as session:
        (answer,) = session.query(x)
    np.testing.assert_allclose(answer, expected, atol=3e-4)
