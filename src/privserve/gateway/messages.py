"""Inference over HTTP: a request's body to an `Inference`, and answers to a body.

JSON throughout, or with the binary tensor extension: then a header says how long the JSON is, and
raw tensors follow it in the order in which the JSON names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from privserve.errors import InputError, QueryError
from privserve.gateway.asked import Inference, read_parameters, refuse_unknown
from privserve.gateway.metadata import VERSION
from privserve.gateway.tensors import ANSWERED, Numbers, checked_shape, from_bytes, from_json

BINARY = "binary_data_output"


@dataclass
class Asked:
    """An inference, and how its answer is to be written."""

    inference: Inference
    is_binary: bool
    """Whether outputs go as raw bytes, where the request says nothing else of one."""
    binary: dict[str, bool]
    """What it says of single ones, by name."""


def read_request(body: bytes | bytearray, header_length: int | None) -> Asked:
    """Read an inference request; inputs are views of `body` where they can be.

    header_length: bytes of JSON, None: all of them. Raises InputError naming what is malformed.
    """
    view = memoryview(body)
    end = len(view) if header_length is None else header_length
    if end > len(view):
        raise InputError(f"the JSON is said to have {end} bytes, and the body has {len(view)}")
    try:
        message = json.loads(bytes(view[:end]))
    except (ValueError, RecursionError):
        raise InputError("the body does not begin with a JSON object") from None
    if not isinstance(message, dict):
        raise InputError("the body is not a JSON object")
    if unknown := set(message) - {"id", "parameters", "inputs", "outputs"}:
        raise InputError(f"the request has the unknown field {min(unknown)!r}")
    parameters = _object(message, "parameters", "the request")
    logits, timeout = read_parameters(parameters, also=(BINARY,))
    asked_id = message.get("id", "")
    if not isinstance(asked_id, str):
        raise InputError("'id' has to be a text")
    binary = _outputs(message.get("outputs", []))
    return Asked(
        Inference(_inputs(message, view[end:]), list(binary), asked_id, logits, timeout),
        is_binary=_flag(parameters, BINARY, "the request") or False,
        binary={name: said for name, said in binary.items() if said is not None},
    )


def _inputs(message: Mapping[str, Any], rest: memoryview) -> dict[str, Numbers]:
    given = message.get("inputs")
    if not isinstance(given, list) or not given:
        raise InputError("the request needs a list of 'inputs'")
    inputs: dict[str, Numbers] = {}
    for tensor in given:
        name = _name(tensor, "an input")
        if name in inputs:
            raise InputError(f"input '{name}' is given twice")
        shape, datatype = checked_shape(name, tensor.get("shape")), tensor.get("datatype")
        parameters = _object(tensor, "parameters", f"input '{name}'")
        refuse_unknown(parameters, {"binary_data_size"}, f"input '{name}'")
        size = parameters.get("binary_data_size")
        if size is None:
            inputs[name] = from_json(name, datatype, shape, tensor.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(rest) or "data" in tensor:
            raise InputError(
                f"input '{name}' has no 'binary_data_size' of what follows the JSON "
                f"({len(rest)} bytes are left), or 'data' as well"
            )
        inputs[name] = from_bytes(name, datatype, shape, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise InputError(f"{len(rest)} bytes follow the last input")
    return inputs


def _outputs(wanted: Any) -> dict[str, bool | None]:
    """The outputs that are wanted, by name: whether as raw bytes, where that is said."""
    if not isinstance(wanted, list):
        raise InputError("'outputs' has to be a list")
    outputs: dict[str, bool | None] = {}
    for tensor in wanted:
        name = _name(tensor, "an output")
        if name in outputs:
            raise InputError(f"output '{name}' is asked for twice")
        parameters = _object(tensor, "parameters", f"output '{name}'")
        refuse_unknown(parameters, {"binary_data"}, f"output '{name}'")
        outputs[name] = _flag(parameters, "binary_data", f"output '{name}'")
    return outputs


def _name(tensor: Any, what: str) -> str:
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise InputError(f"{what} has no 'name'")
    return str(tensor["name"])


def _object(holder: Mapping[str, Any], key: str, whose: str) -> dict[str, Any]:
    value = holder.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"'{key}' of {whose} has to be an object")
    return value


def _flag(parameters: Mapping[str, Any], key: str, whose: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and type(value) is not bool:
        raise InputError(f"'{key}' of {whose} is true or false")
    return value


def write_answer(
    asked: Asked, model: str, answers: Mapping[str, Numbers]
) -> tuple[bytes, int | None]:
    """Return a response's body, and how many bytes of it are JSON; None: all of them.

    answers: float32 by name, in the order in which they go. Raises QueryError for an answer that
    JSON cannot carry.
    """
    tensors, raw = [], []
    for name, array in answers.items():
        tensor: dict[str, Any] = {"name": name, "datatype": ANSWERED, "shape": list(array.shape)}
        if asked.binary.get(name, asked.is_binary):
            raw.append(np.ascontiguousarray(array, "<f4").tobytes())
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.reshape(-1).tolist()
        tensors.append(tensor)
    message: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": tensors}
    if asked.inference.id:
        message["id"] = asked.inference.id
    try:
        head = json.dumps(message, allow_nan=False).encode()
    except ValueError:
        raise QueryError(
            "the answer holds infinity or NaN, which JSON has no word for; ask for "
            "'binary_data_output', or for 'logits'",
            422,
        ) from None
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)
