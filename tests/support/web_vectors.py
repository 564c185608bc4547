"""Test vectors for the browser's client, made by the Python client's own code.

`python tests/support/web_vectors.py` (with src on PYTHONPATH) writes tests/data/web_vectors.json; a
test makes them anew and compares, another has privserve-client.js go by them under Node. Ring
elements are texts, since JSON's numbers have 53 bits in a browser.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from privserve import oip, sharing
from privserve.activations import CLIENT_ACTIVATIONS, NORMALISING, ROOT, joined
from privserve.credentials import ClientKey
from privserve.description import Description, read_description
from privserve.errors import GuessedRangeError, PrivserveError
from privserve.fixedpoint import RingArray, decode, encode
from privserve.party.metadata import model_facts
from privserve.party.session_spec import SessionSpec
from privserve.prg import Prg
from privserve.served_model import ServedModel, parse_model

VECTORS = Path(__file__).parents[1] / "data" / "web_vectors.json"
SESSION = "0123456789abcdef0123456789abcdef"
KEY = bytes(range(32))
BELOW_HALF = 0.49999999999999994
"""The double below a half, which is rounded up where a half is added first."""
TRICKY = [
    *(0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, BELOW_HALF, -BELOW_HALF, 1e-300, -1e-300),
    *(
        2.0**52 + 0.5,
        -(2.0**52) - 0.5,
        2.0**53 - 1,
        2.0**61 + 2.0**20,
        -(2.0**61),
        0.1,
        -0.7,
        1 / 3,
    ),
]


def texts(elements: RingArray) -> list[str]:
    """Ring elements, flat."""
    return [str(int(element)) for element in elements.reshape(-1)]


def _random(rng: np.random.Generator, *shape: int) -> RingArray:
    return rng.integers(-(2**63), 2**63, shape, dtype=np.int64)


class _Told:
    """Stands for the CSPRNG: hands out what it was told to."""

    def __init__(self, masks: Sequence[RingArray]) -> None:
        self._masks = list(masks)

    def int64(self, shape: tuple[int, ...]) -> RingArray:
        return self._masks.pop(0).reshape(shape).copy()


def _encodings(rng: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for bits in (0, 14, 23, -3):
        values = [v for v in TRICKY if abs(v) * 2.0**bits < 2**62]
        values += [float(v) for v in rng.uniform(-8, 8, 20)]
        elements = encode(np.array(values), bits)
        decoded = [float(v) for v in decode(elements, bits)]
        made.append({"bits": bits, "values": values, "elements": texts(elements), "reals": decoded})
    return made


def _too_large() -> list[dict[str, Any]]:
    return [{"bits": 14, "value": 2.0**48}, {"bits": 0, "value": -(2.0**62)}]


def _splittings(rng: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for parties in (2, 3, 5):
        secret = np.concatenate([_random(rng, 6), np.array([0, -1, 2**63 - 1, -(2**63)])])
        masks = [_random(rng, len(secret)) for _ in range(parties - 1)]
        shares = sharing.split(secret, parties, cast(Prg, _Told(masks)))
        made.append(
            {
                "secret": texts(secret),
                "masks": [texts(mask) for mask in masks],
                "shares": [texts(share) for share in shares],
            }
        )
    return made


def _activations(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Outputs of every activation that a client applies, the normalised ones with a constant."""
    shape, bits, made = (3, 4, 2), 20, []
    for op in (None, *CLIENT_ACTIVATIONS, ROOT):
        for axis in (1, -1) if op in NORMALISING else (None,):
            elements = encode(rng.uniform(-9, 9, shape), bits)
            if op == ROOT:
                elements = np.abs(elements)
                elements[0, 0, 0] = -1
            if axis is not None:
                elements = elements + _random(rng, 1)
            shares = sharing.split(elements, 2, cast(Prg, _Told([_random(rng, elements.size)])))
            activation = op and ({"op": op} if axis is None else {"op": op, "axis": axis})
            made.append(
                {
                    "activation": activation,
                    "shape": shape,
                    "bits": bits,
                    "shares": [texts(share) for share in shares],
                    "values": joined(shares, activation, bits).reshape(-1).tolist(),
                    "logits": joined(shares, activation, bits, logits=True).reshape(-1).tolist(),
                }
            )
    return made


def description(guards: Sequence[str] = ()) -> Description:
    """Two inputs, two outputs."""
    return read_description(
        {
            "inputs": [{"name": "picture", "shape": [2, 3]}, {"name": "colour ü", "shape": [2]}],
            "outputs": [
                {
                    "name": "class",
                    "shape": [4],
                    "activation": {"op": "Softmax", "axis": 1},
                    "rounded_bits": 3,
                },
                {"name": "size", "shape": [], "activation": None, "rounded_bits": 0},
            ],
            "fraction_bits": 14,
            "output_fraction_bits": 28,
            "input_range": [-1.0, 2.0],
            "guards": list(guards),
        }
    )


def _query(
    rng: np.random.Generator, guards: Sequence[str], flags: RingArray | None
) -> dict[str, Any]:
    """A query, its answer and the model, and what the Python client makes of them."""
    described = description(guards)
    spec = cast(
        SessionSpec,
        SimpleNamespace(model="two inputs", id=SESSION, engine="ottt", description=described),
    )
    metadata = model_facts(spec)
    model: ServedModel = parse_model("alice", metadata)
    rows = 2
    x = {t["name"]: rng.uniform(-1, 2, (rows, *t["shape"])) for t in described["inputs"]}
    outputs = {
        "class": encode(rng.uniform(-9, 9, (rows, 4)), 28) + _random(rng, rows, 1),
        "size": encode(rng.uniform(-9, 9, rows), 28),
    }
    if flags is not None:
        outputs[oip.GUARDS] = flags
    split = {
        name: sharing.split(a, 2, cast(Prg, _Told([_random(rng, a.size)])))
        for name, a in outputs.items()
    }
    answers, bodies = [], []
    for rank in range(2):
        shares = {name: parts[rank] for name, parts in split.items()}
        answers.append([*shares.values()])
        parts, headers = oip.format_message({"id": "ab", "model_name": "m"}, shares, "outputs")
        body = base64.b64encode(b"".join(parts)).decode()
        bodies.append({"body": body, "length": headers[oip.HEADER_LENGTH]})
    made: dict[str, Any] = {
        "metadata": metadata,
        "inputs": {name: v.tolist() for name, v in x.items()},
        "elements": {name: texts(e) for name, e in model.encode(x).items()},
        "answers": bodies,
    }
    try:
        answer = model.decode(answers, logits=False)
        made["outputs"] = {name: v.reshape(-1).tolist() for name, v in answer.items()}
    except GuessedRangeError as error:
        made["left"] = {str(row): list(names) for row, names in error.layers.items()}
    return made


def _refused(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Inputs of `description` that the Python client refuses, and with which error."""
    good = {"picture": np.zeros((2, 2, 3)).tolist(), "colour ü": np.zeros((2, 2)).tolist()}
    bad: dict[str, Any] = {
        "above the range": {**good, "colour ü": [[0, 0], [0, 2.0000001]]},
        "below the range": {**good, "colour ü": [[-1.0000001, 0], [0, 0]]},
        "another shape": {**good, "colour ü": [[0, 0, 0], [0, 0, 0]]},
        "no batch axis": {**good, "colour ü": [0, 0]},
        "other rows": {**good, "colour ü": [[0, 0]]},
        "no rows": {"picture": [], "colour ü": []},
        "an unknown name": {"picture": good["picture"], "colour": good["colour ü"]},
        "an input too few": {"picture": good["picture"]},
        "ragged": {**good, "colour ü": [[0, 0], [0]]},
    }
    spec = SimpleNamespace(model="m", id=SESSION, engine="ottt", description=description())
    model = parse_model("alice", model_facts(cast(SessionSpec, spec)))
    made = []
    for what, x in bad.items():
        try:
            model.encode(x)
        except PrivserveError as error:
            made.append({"what": what, "inputs": x, "error": type(error).__name__})
    assert len(made) == len(bad)
    return made


def _credentials() -> list[dict[str, str]]:
    key = ClientKey("lab-7", KEY)
    return [
        {
            "key": key.to_text(),
            "cluster": "4b1f0c",
            "party": party,
            "authorization": key.authorization("4b1f0c", party),
        }
        for party in ("alice", "bob")
    ]


def make() -> dict[str, Any]:
    """Return all vectors, JSON-able; the same ones on every call."""
    rng = np.random.default_rng(14)
    guards = ["dense_3", "dense_4"]
    left = np.zeros((2, 2, 3), np.int64)
    left[1, 0, 2] = 5
    return {
        "encodings": _encodings(rng),
        "too_large": _too_large(),
        "splittings": _splittings(rng),
        "activations": _activations(rng),
        "query": _query(rng, (), None),
        "guarded": _query(rng, guards, np.zeros((2, 2, 3), np.int64)),
        "left": _query(rng, guards, left),
        "refused": _refused(rng),
        "credentials": _credentials(),
    }


def as_text() -> str:
    """What the file holds: a line for each vector."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def entry(value: Any) -> str:
        return "[\n" + ",\n".join(map(line, value)) + "\n]" if type(value) is list else line(value)

    return "{\n" + ",\n".join(f'"{k}": {entry(v)}' for k, v in make().items()) + "\n}\n"


if __name__ == "__main__":
    VECTORS.write_text(as_text())
