"""Seeded damage to what goes over a wire: JSON at every depth, bytes, frames, requests.

A case is a number. `PRIVSERVE_FUZZ_FIRST=1234 PRIVSERVE_FUZZ_CASES=1` runs case 1234 of a test
alone, which is what a failing one says.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

FIRST, CASES = "PRIVSERVE_FUZZ_FIRST", "PRIVSERVE_FUZZ_CASES"

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *(255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, 10**4299),
    *("", "x", "\ud800", "\udfff\ud800", "\x00", "a\nb", "é" * 200, "\U0001f600" * 128),
    *("a" * 5000, "../..", "-", "alice", "bob", "carol", "loaded", "ended", "INT64", "2027-01-31"),
    *([], {}, [[]], [0] * 50, [[[[[[[[1]]]]]]]], {"a": {"b": []}}, [None] * 3, ["over"]),
    *([2**31 - 1] * 16, [1, 28, 28, 1], [-1], ["1"], {"over": []}, {"alive": True}, {"op": "x"}),
    *({"binary_data_size": size} for size in (10**30, -8, True, 32)),
]
RAW = [
    *(b"NaN", b"-Infinity", b"1" * 4301, b"1e999", b"-", b"tru", b'"\xff\xfe"', b'"\\ud800"'),
    *(b"[" * 500 + b"]" * 500, b"[" * 100_000, b'{"a":' * 2000, b'{"a":1,"a":2}', b"\x00", b""),
]
"""What JSON's own writer would not write, in place of a value."""
PLACE = "\ue000 in place of a value \ue000"


def cases(usual: int) -> range:
    """The cases of a test: `usual` many from 0 on, or those that the environment names."""
    first = int(os.environ.get(FIRST, "0"))
    return range(first, first + int(os.environ.get(CASES, str(usual))))


@contextlib.contextmanager
def case(number: int, what: Callable[[], object] = lambda: "") -> Iterator[random.Random]:
    """The generator of one case; a failure says how to run it alone, and what was sent."""
    try:
        yield random.Random(number)
    except BaseException as error:
        error.add_note(f"case {number}: rerun it with {FIRST}={number} {CASES}=1. {what()!r:.600}")
        raise


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) below a JSON value, in the values' order."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    found = [(node, key) for key in keys]
    for _, key in list(found):
        found += places(node[key])
    return found


def changed(draw: random.Random, message: Any) -> Any:
    """A copy of a JSON value with one to three changes, at any depth."""
    root = {"": json.loads(json.dumps(message))}
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        holder, key = draw.choice(places(root) or [(root, "")])
        old, way = holder[key], draw.random()
        if way < 0.45:
            holder[key] = copy.deepcopy(draw.choice(ODD))
        elif way < 0.6 and isinstance(old, int | float) and abs(old) < 1e300:
            holder[key] = old + draw.choice([-1, 1, 0.5, 2**32, -(2**63)])
        elif way < 0.7 and isinstance(holder, dict) and len(root) == 1 and holder is not root:
            del holder[key]
        elif way < 0.8 and isinstance(holder, dict) and holder is not root:
            holder[str(draw.choice(["id", "over", "run", "data", "\ud800", "rows"]))] = (
                copy.deepcopy(old)
            )
        elif way < 0.9 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(old))
        else:
            donor, at = draw.choice(places(root))
            holder[key] = copy.deepcopy(donor[at])
    return root.get("")


def text_of(draw: random.Random, message: Any) -> bytes:
    """A JSON value as text, in which one value may be what JSON's writer would not write."""
    if draw.random() < 0.7:
        return json.dumps(message).encode()
    root = {"": json.loads(json.dumps(message))}
    holder, key = draw.choice(places(root))
    holder[key] = PLACE
    text = json.dumps(root[""]).encode()
    return text.replace(json.dumps(PLACE).encode(), draw.choice(RAW))


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Bytes with one bit, one piece or all of them replaced, moved, left out or repeated."""
    at, size = draw.randrange(len(data) + 1), draw.choice([1, 1, 2, 8, 64])
    kind = draw.randrange(8)
    if kind == 0 and data:
        bit = draw.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        return bytes(flipped)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + draw.randbytes(size) + data[at:]
    if kind == 3:
        return data[:at] + data[at + size :]
    if kind == 4:
        return data[:at] + data[max(0, at - size) :]
    if kind == 5:
        return draw.randbytes(draw.choice([0, 1, 7, 8, 9, len(data), 2 * len(data), 1000]))
    if kind == 6:
        return data * 2
    return draw.choice(RAW)


def mutant(draw: random.Random, message: Any) -> bytes:
    """A message's text, with something changed: its values, its JSON or its bytes."""
    way = draw.random()
    if way < 0.7:
        return text_of(draw, changed(draw, message))
    text = json.dumps(message).encode()
    return text_of(draw, message) if way < 0.8 else damaged(draw, text)


def lying_frame(draw: random.Random, payload: bytes) -> bytes:
    """A frame of a party's channel whose length is not that of what follows."""
    near = [len(payload) - 1, len(payload) + 1, 4096, 1 << 20, (1 << 20) + 1]
    size = draw.choice([0, 1, 7, 8, *near, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
    whole = struct.pack("<Q", max(0, size)) + payload
    return whole if draw.random() < 0.8 else whole[: draw.randrange(len(whole))]
