"""The Open Inference Protocol v2 on the wire: JSON messages, raw tensors behind them.

A message is a JSON object whose tensors either carry "data" or, with the binary tensor
extension, the length of their raw little-endian bytes, which follow the JSON in order; the
header `Inference-Header-Content-Length` then says where the JSON ends. Every tensor here
is INT64: a share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Container, Mapping
from typing import Any

import numpy as np

from privserve.errors import InputError
from privserve.fixedpoint import RingArray

HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPE = "INT64"
GUARDS = "privserve/guards"
"""The name of an answer's last tensor, where ranges are guarded: what must sum to zero."""
MAX_AXES = 16
OTHER_DATATYPES = frozenset(
    [
        *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32"),
        *("FP16", "FP32", "FP64", "BF16", "BYTES"),
    ]
)
"""What else the protocol knows; none of it is a share."""
TENSOR_FIELDS = frozenset(["name", "shape", "datatype", "parameters", "data"])
SHARED_MEMORY = "shared_memory_"


def format_message(
    message: Mapping[str, Any],
    tensors: Mapping[str, RingArray],
    key: str,
    in_json: Container[str] = (),
) -> tuple[list[bytes | memoryview], dict[str, str]]:
    """Format a binary message: (parts of its body, HTTP headers).

    message: the JSON fields but for `key` ("inputs" or "outputs"), which is built from
    `tensors`, int64 arrays by name; in_json: the names of those that are lists in the JSON.
    """
    arrays = {name: np.asarray(a, dtype="<i8", order="C") for name, a in tensors.items()}
    raw = {name: a for name, a in arrays.items() if name not in in_json}
    described = [
        {**_described(name, a), "parameters": {"binary_data_size": a.nbytes}}
        if name in raw
        else _listed(name, a)
        for name, a in arrays.items()
    ]
    head = json.dumps({**message, key: described}).encode()
    headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return [head, *(a.reshape(-1).view(np.uint8).data for a in raw.values())], headers


def format_json(
    message: Mapping[str, Any], tensors: Mapping[str, RingArray], key: str
) -> dict[str, Any]:
    """Format the same message as plain JSON, its tensors as flat lists."""
    return {**message, key: [_listed(name, array) for name, array in tensors.items()]}


def _described(name: str, array: RingArray) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": DATATYPE}


def _listed(name: str, array: RingArray) -> dict[str, Any]:
    return {**_described(name, array), "data": array.reshape(-1).tolist()}


def parse_message(
    body: bytes | bytearray,
    header_length: str | None,
    key: str,
    most_bytes: int | None = None,
    most_parts: int | None = None,
) -> tuple[dict[str, Any], dict[str, RingArray]]:
    """Read a message: (its JSON fields but for `key`, its int64 tensors by name).

    header_length: the header's text, or None for a message that is JSON throughout. most_bytes,
    most_parts: of its JSON, where that is bounded; parts are objects and lists, which take a
    reader ten times as long as numbers, and no other thread runs meanwhile.
    Raises InputError naming what is malformed. Tensors are views of `body` where they can.
    """
    view = memoryview(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdecimal() and len(header_length) <= 19
        if not digits or int(header_length) > len(view):
            raise InputError(f"{HEADER_LENGTH} is not a length within the body")
        head, rest = view[: int(header_length)], view[int(header_length) :]
    else:
        head, rest = view, view[:0]
    text = bytes(head)
    if most_bytes is not None and len(text) > most_bytes:
        raise InputError(f"its JSON is longer than the {most_bytes} bytes that this call takes")
    if most_parts is not None and text.count(b"{") + text.count(b"[") > most_parts:
        raise InputError(f"its JSON has more than {most_parts} objects and lists")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError("the body does not begin with a JSON object") from None
    if not isinstance(message, dict) or not isinstance(message.get(key), list):
        raise InputError(f"the body is not a JSON object with a list of '{key}'")
    tensors: dict[str, RingArray] = {}
    for entry in message.pop(key):
        name, array, rest = _parse_tensor(entry, rest)
        if name in tensors:
            raise InputError(f"tensor '{name}' is given twice")
        tensors[name] = array
    if len(rest):
        raise InputError(f"{len(rest)} bytes follow the last tensor")
    return message, tensors


def _parse_tensor(entry: Any, rest: memoryview) -> tuple[str, RingArray, memoryview]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InputError("a tensor has no name")
    name = entry["name"]
    check_fields(f"tensor '{name}'", entry, TENSOR_FIELDS)
    _check_datatype(name, entry.get("datatype"))
    shape = entry.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_AXES
        or not all(type(d) is int and 0 <= d < 1 << 31 for d in shape)
        # NumPy cannot hold some shapes even if there is nothing in them.
        or math.prod(max(d, 1) for d in shape) >= 1 << 59
    ):
        raise InputError(f"tensor '{name}' has no valid shape")
    count = math.prod(shape)
    size = _binary_size(name, entry)
    if size is None:
        return name, _from_json(name, entry.get("data"), count).reshape(shape), rest
    if type(size) is not int or size != 8 * count or size > len(rest):
        raise InputError(f"tensor '{name}' of shape {shape} needs {8 * count} bytes of data")
    if "data" in entry:
        raise InputError(f"tensor '{name}' has its data twice: in the JSON, and behind it")
    return name, np.frombuffer(rest[:size], dtype="<i8").reshape(shape), rest[size:]


def _check_datatype(name: str, datatype: Any) -> None:
    if datatype == DATATYPE:
        return
    why = "it must be a share, not a plaintext"
    if datatype == "UINT64":
        why = "send the same 64 bits as the signed numbers that they are in two's complement"
    elif isinstance(datatype, str) and datatype not in OTHER_DATATYPES:
        why = f"the protocol has no datatype '{datatype[:20]}'; {why}"
    elif isinstance(datatype, str):
        why = f"{datatype} holds no share, which has 64 bits; {why}"
    raise InputError(f"tensor '{name}' is not {DATATYPE}: {why}")


def _binary_size(name: str, entry: Mapping[str, Any]) -> Any:
    """How many bytes a tensor announces; None where its data are in the JSON."""
    parameters = parameters_of(f"tensor '{name}'", entry)
    if any(key.startswith(SHARED_MEMORY) for key in parameters):
        raise InputError(f"tensor '{name}' is in shared memory, which a party has with no client")
    check_fields(f"the parameters of tensor '{name}'", parameters, {"binary_data_size"})
    return parameters.get("binary_data_size")


def check_fields(what: str, fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise InputError where `what` has other fields than `known`: they would be ignored."""
    for key in fields:
        if key not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise InputError(f"{what} may not have {key[:100]!r}; known here: {takes}")


def parameters_of(what: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the "parameters" of `what`, none where there are none; InputError for no object."""
    parameters = fields.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError(f"the parameters of {what} are no JSON object")
    return parameters


def _from_json(name: str, data: Any, count: int) -> RingArray:
    flat: list[Any] = []
    stack = [data]
    while stack:  # nested lists are allowed; a loop, because recursion has a limit
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(reversed(item))
        else:
            flat.append(item)
    if len(flat) != count or not all(type(v) is int and -(2**63) <= v < 2**63 for v in flat):
        raise InputError(f"tensor '{name}' needs {count} integers of 64 bits as its data")
    return np.array(flat, dtype=np.int64)
