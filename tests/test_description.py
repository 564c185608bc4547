"""The reader of public descriptions: what it takes, and what it refuses, wherever it came from."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import privserve as ps
from privserve.activations import APPLIED, NORMALISING
from privserve.description import MAX_ELEMENTS, read_description
from privserve.errors import InputError
from privserve.served_model import parse_model

GOOD: dict[str, Any] = {
    "inputs": [{"name": "x", "shape": [28, 28, 1]}, {"name": "mask", "shape": []}],
    "outputs": [
        {
            "name": "y",
            "shape": [10],
            "activation": {"op": "Softmax", "axis": -1},
            "rounded_bits": 0,
        },
        {"name": "z", "shape": [3], "activation": None, "rounded_bits": 63},
    ],
    "fraction_bits": 14,
    "output_fraction_bits": 20,
    "input_range": [-8, 8.0],
    "guards": ["dense_1"],
    "notes": [],
    "ops": [{"kind": "linear"}],
}


def test_a_good_description_is_returned_with_its_engines_own_keys() -> None:
    assert read_description(GOOD) == GOOD


def test_guards_and_notes_may_be_missing() -> None:
    bare = {key: value for key, value in GOOD.items() if key not in ("guards", "notes")}
    assert read_description(bare) == {**bare, "guards": [], "notes": []}


@pytest.mark.parametrize("op", APPLIED)
def test_every_activation_that_a_client_applies_may_be_described(op: str) -> None:
    activation = {"op": op, "axis": 1} if op in NORMALISING else {"op": op}
    output = {"name": "y", "shape": [10], "activation": activation, "rounded_bits": 17}
    assert read_description({**GOOD, "outputs": [output]})["outputs"] == [output]


def changed(*path: str | int, to: object) -> Callable[[dict], None]:
    def change(fields: Any) -> None:
        for key in path[:-1]:
            fields = fields[key]
        fields[path[-1]] = to

    return change


BAD = {
    "no inputs": (changed("inputs", to=[]), "'inputs' must be a list"),
    "inputs by name": (changed("inputs", to={"x": [1]}), "'inputs' must be a list"),
    "too many outputs": (changed("outputs", to=[{}] * 1025), "'outputs' must be a list"),
    "no name": (changed("inputs", 0, to={"shape": [1]}), "without a name among its 'inputs'"),
    "a name twice": (changed("outputs", 1, "name", to="y"), "a name twice among its 'outputs'"),
    "an open size": (changed("inputs", 0, "shape", to=[None, 3]), "input 'x' has no valid shape"),
    "a size of zero": (changed("outputs", 1, "shape", to=[0]), "output 'z' has no valid shape"),
    "a negative size": (changed("inputs", 0, "shape", to=[-1]), "input 'x' has no valid shape"),
    "a true size": (changed("inputs", 0, "shape", to=[True]), "input 'x' has no valid shape"),
    "a large size": (changed("inputs", 0, "shape", to=[1 << 32]), "input 'x' has no valid shape"),
    "a large shape": (
        changed("inputs", 0, "shape", to=[1 << 16] * 2),
        "input 'x' has no valid shape",
    ),
    "many axes": (changed("inputs", 0, "shape", to=[1] * 16), "input 'x' has no valid shape"),
    "an unknown activation": (
        changed("outputs", 0, "activation", "op", to="Hardmax"),
        "output 'y' has no activation that a client knows",
    ),
    "an activation by name": (changed("outputs", 0, "activation", to="Softmax"), "no activation"),
    "no word of an activation": (
        changed("outputs", 0, to={"name": "y", "shape": [2]}),
        "no activation",
    ),
    "no axis": (changed("outputs", 0, "activation", to={"op": "Softmax"}), "'y' has no axis"),
    "the batch axis": (changed("outputs", 0, "activation", "axis", to=0), "along the batch axis"),
    "an axis beyond": (changed("outputs", 0, "activation", "axis", to=2), "'y' has no axis"),
    "no word of rounding": (
        changed("outputs", 0, to={"name": "y", "shape": [2], "activation": None}),
        "output 'y' needs 'rounded_bits'.*share the model again",
    ),
    "a true rounding": (changed("outputs", 0, "rounded_bits", to=True), "needs 'rounded_bits'"),
    "a negative rounding": (changed("outputs", 0, "rounded_bits", to=-1), "needs 'rounded_bits'"),
    "all bits rounded": (changed("outputs", 1, "rounded_bits", to=64), "'z' needs 'rounded_bits'"),
    "half a bit": (changed("fraction_bits", to=14.5), "'fraction_bits' must be"),
    "too many bits": (changed("output_fraction_bits", to=513), "'output_fraction_bits' must be"),
    "one end": (changed("input_range", to=[1]), "'input_range' must be"),
    "an empty range": (changed("input_range", to=[1, 1]), "'input_range' must be"),
    "an endless range": (changed("input_range", to=[0, math.inf]), "'input_range' must be"),
    "no number": (changed("input_range", to=[math.nan, 1]), "'input_range' must be"),
    "a huge end": (changed("input_range", to=[0, 10**400]), "'input_range' must be"),
    "guards by number": (changed("guards", to=[1]), "'guards' must be a list of texts"),
    "one note": (changed("notes", to="mind the gap"), "'notes' must be a list of texts"),
}


@pytest.mark.parametrize(("change", "complaint"), BAD.values(), ids=BAD)
def test_a_malformed_description_is_refused_with_its_cause(
    change: Callable[[dict], None], complaint: str
) -> None:
    fields = copy.deepcopy(GOOD)
    change(fields)
    with pytest.raises(InputError, match=complaint):
        read_description(fields)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "Softmax"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "activation", "op", "axis", "rounded_bits"]), inner
        )
    ),
    max_leaves=6,
)


def leaves(fields: Any) -> list[tuple[Any, Any]]:
    """Where each part of `fields` is: (what holds it, its key)."""
    keys = fields if isinstance(fields, dict) else range(len(fields))
    found = []
    for key in keys:
        found.append((fields, key))
        if isinstance(fields[key], dict | list):
            found += leaves(fields[key])
    return found


@given(st.data())
def test_whatever_is_described_is_refused_or_can_be_relied_on(data: st.DataObject) -> None:
    fields = copy.deepcopy(GOOD)
    holder, key = data.draw(st.sampled_from(leaves(fields)))
    holder[key] = data.draw(ANY)
    try:
        described = read_description(fields)
    except InputError:
        return
    for tensor in (*described["inputs"], *described["outputs"]):
        assert 1 <= math.prod(tensor["shape"]) <= MAX_ELEMENTS
        assert all(type(axis) is int for axis in tensor["shape"])
    for output in described["outputs"]:
        assert np.int64(1) << np.int64(output["rounded_bits"])
    low, high = described["input_range"]
    assert float(low) < float(high)
    assert 2.0 ** described["fraction_bits"] > 0
    assert all(isinstance(layer, str) for layer in described["guards"])
    json.dumps(described, allow_nan=False)


@given(ANY)
def test_no_value_of_any_kind_is_more_than_refused(value: object) -> None:
    with pytest.raises(InputError):
        read_description(value)


def metadata() -> dict[str, Any]:
    """What a party's front says of the model that GOOD describes."""
    good = copy.deepcopy(GOOD)
    facts = ("fraction_bits", "output_fraction_bits", "input_range", "guards")
    return {
        "name": "m",
        "versions": ["1"],
        "inputs": [
            {"name": t["name"], "datatype": "INT64", "shape": [-1, *t["shape"]]}
            for t in good["inputs"]
        ],
        "outputs": [
            {
                "name": t["name"],
                "datatype": "INT64",
                "shape": [-1, *t["shape"]],
                "parameters": {key: t[key] for key in ("activation", "rounded_bits")},
            }
            for t in good["outputs"]
        ],
        "parameters": {**{key: good[key] for key in facts}, "max_rows": 1024},
    }


def test_a_client_reads_the_description_out_of_a_models_metadata() -> None:
    model = parse_model("alice", metadata())
    assert (model.name, model.session, model.max_rows) == ("m", "1", 1024)
    for key in ("inputs", "outputs", "fraction_bits", "output_fraction_bits", "input_range"):
        assert model.description[key] == GOOD[key]  # type: ignore[literal-required]


@given(st.data())
def test_malformed_metadata_are_a_cluster_error_that_names_the_party(data: st.DataObject) -> None:
    fields = metadata()
    holder, key = data.draw(st.sampled_from(leaves(fields)))
    if data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(ANY)
    try:
        parse_model("alice", fields)
    except ps.ClusterError as error:
        said = str(error)
    else:
        return
    assert "alice gave a malformed answer" in said
