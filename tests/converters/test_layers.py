"""Every layer and option gives what Keras gave, in torch and in ONNX."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from golden import DATA, assert_agrees

import converters

WRITERS = ("keras3", "keras3_torch", "tf_keras2")


class Live:
    """Stands for a Keras model in memory: its configuration and its layers' weights."""

    def __init__(self, case: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str = "w/"):
        self.case, self.arrays, self.prefix = case, arrays, prefix

    def to_json(self) -> str:
        return json.dumps(self.case["config"])

    def get_layer(self, name: str) -> Live:
        return Live(self.case, self.arrays, f"{self.prefix}{name}/")

    def get_weights(self) -> list[np.ndarray]:
        return numbered(self.arrays, self.prefix)


def numbered(arrays: dict[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    found = []
    while f"{prefix}{len(found)}" in arrays:
        found.append(arrays[f"{prefix}{len(found)}"])
    return found


@cache
def cases(writer: str) -> dict[str, dict[str, Any]]:
    with np.load(DATA / f"layers_{writer}.npz") as archive:
        numbers = archive["numbers"]
        described = json.loads(archive["cases"].tobytes())
    for case in described.values():
        case["arrays"] = {
            key: numbers[place[0] : place[0] + int(np.prod(place[1:]))].reshape(place[1:])
            for key, place in case.items()
            if key != "config"
        }
    return described


def all_cases() -> list[Any]:
    return [pytest.param(w, label, id=f"{w}: {label}") for w in WRITERS for label in cases(w)]


@pytest.mark.parametrize(("writer", "label"), all_cases())
def test_a_layer_gives_what_keras_gave(writer: str, label: str) -> None:
    case = cases(writer)[label]
    arrays = case["arrays"]
    converted = converters.convert(Live(case, arrays))
    assert_agrees(converted, numbered(arrays, "x"), numbered(arrays, "y"))
