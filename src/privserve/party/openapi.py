"""The description of a party's front in the words of OpenAPI 3.1: the schemas, and how calls refer.

`docs/openapi.json` is what `document` returns for the calls in `routes`; a test holds that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from privserve import __version__, oip
from privserve.credentials import MODEL_NAME, MOST_MODELS
from privserve.credentials import SCHEME as CLIENT_SCHEME
from privserve.owner_calls import SCHEME as OWNER_SCHEME
from privserve.party.infer import DEFAULTS, MAX_TIMEOUT
from privserve.party.owners_calls import LEASE
from privserve.party.refusals import MAX_ID
from privserve.party.routes import Call, Who
from privserve.party.statistics import TRITONS

Schema = dict[str, Any]


def _object(
    properties: dict[str, Schema], optional: Sequence[str] = (), *, more: bool = False
) -> Schema:
    """The schema of an object, all of whose properties are required but for the `optional` ones.

    more: it may have further properties.
    """
    found: Schema = {"type": "object", "properties": properties}
    if required := [name for name in properties if name not in optional]:
        found["required"] = required
    return found if more else {**found, "additionalProperties": False}


def _parameters(properties: dict[str, Schema]) -> Schema:
    """The schema of a message's parameters, which may all be left out."""
    return _object(properties, list(properties))


def _alike(schema: Schema, *names: str) -> dict[str, Schema]:
    return dict.fromkeys(names, schema)


def _array(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
DATATYPE: Schema = {"const": oip.DATATYPE}
LENGTHS = _array({"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}, maxItems=oip.MAX_AXES)
SHAPE = _array({"type": "integer", "minimum": -1}, maxItems=oip.MAX_AXES)
SHARE = {
    **_object(
        {
            "name": TEXT,
            "shape": LENGTHS,
            "datatype": DATATYPE,
            "data": {
                "type": "array",
                "description": "The share's words, row by row; lists of lists are taken too.",
                "items": {"type": ["integer", "array"]},
            },
            "parameters": _parameters({"binary_data_size": COUNT}),
        },
        ["data", "parameters"],
    ),
    "description": "An INT64 share, in the JSON ('data') or as little-endian bytes behind it "
    "('binary_data_size').",
}
TENSOR: dict[str, Schema] = {"name": TEXT, "datatype": DATATYPE, "shape": SHAPE}
CONFIGURED = _array(_object({"name": TEXT, "data_type": TEXT, "dims": SHAPE}))
DURATION = _object(_alike(COUNT, "count", "ns"))
PHASES = _alike(DURATION, *TRITONS.values())
MODEL_STATISTICS = _object(
    {
        **_alike(TEXT, "name", "version"),
        **_alike(COUNT, "last_inference", "inference_count", "execution_count"),
        "inference_stats": _object({**_alike(DURATION, "success", "fail", "queue"), **PHASES}),
        "batch_stats": _array(_object({"batch_size": COUNT, **PHASES})),
    }
)
LIMIT: Schema = {"type": ["integer", "null"], "minimum": 1}
OWNER_SECONDS: Schema = {"type": ["number", "null"], "minimum": 1, "maximum": 86400}
LEASED: Schema = {"type": ["string", "null"], "pattern": f"^({LEASE.pattern})$"}
LIMITS: dict[str, Schema] = {
    **_alike({**LIMIT, "minimum": 0}, "rows", "rows_per_minute", "rows_per_query"),
    "expires": {"type": ["string", "null"], "format": "date"},
    "models": {
        "type": ["array", "null"],
        "items": {"type": "string", "pattern": f"^{MODEL_NAME.pattern}$"},
        "minItems": 1,
        "maxItems": MOST_MODELS,
    },
}
ANYTHING = _object({}, more=True)

SCHEMAS: dict[str, Schema] = {
    "Error": _object(_alike(TEXT, "error", "code")),
    "Live": _object({"live": FLAG}),
    "Ready": _object({"ready": FLAG}),
    "Server": _object(
        {
            **_alike(TEXT, "name", "version", "party", "boot"),
            **_alike(_array(TEXT), "extensions", "compute_parties", "models", "serving"),
            "role": {"enum": ["compute", "dealer"]},
            **_alike(COUNT, "cell", "calls_above"),
        },
        ["serving"],
    ),
    "Model": _object(
        {
            "name": TEXT,
            "versions": _array(TEXT),
            "platform": TEXT,
            "inputs": _array(_object(TENSOR)),
            "outputs": _array(
                _object(
                    {
                        **TENSOR,
                        "parameters": _object(
                            {"activation": {"type": ["object", "null"]}, "rounded_bits": COUNT}
                        ),
                    }
                )
            ),
            "parameters": _object(
                {
                    **_alike(INTEGER, "fraction_bits", "output_fraction_bits"),
                    "input_range": _array(NUMBER, minItems=2, maxItems=2),
                    "max_rows": COUNT,
                    "guards": _array(TEXT),
                }
            ),
        }
    ),
    "Configuration": _object(
        {
            **_alike(TEXT, "name", "platform", "backend"),
            "max_batch_size": COUNT,
            **_alike(CONFIGURED, "input", "output"),
        }
    ),
    "Statistics": _object({"model_stats": _array(MODEL_STATISTICS)}),
    "IndexRequest": _parameters({"ready": FLAG}),
    "Index": _array(
        _object(
            {
                **_alike(TEXT, "name", "version", "reason"),
                "state": {"enum": ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]},
            }
        )
    ),
    "Query": _object(
        {
            "id": {"type": "string", "minLength": 1, "maxLength": MAX_ID},
            "inputs": _array(SHARE, minItems=1),
            "outputs": _array(
                _object(
                    {"name": TEXT, "parameters": _parameters({"binary_data": FLAG})}, ["parameters"]
                )
            ),
            "parameters": _parameters(
                {
                    "binary_data_output": {**FLAG, "default": False},
                    "timeout": {
                        **COUNT,
                        "maximum": MAX_TIMEOUT,
                        "description": "Microseconds that the client waits; 0: for ever.",
                    },
                    **{name: {"enum": list(values)} for name, values in DEFAULTS.items()},
                }
            ),
        },
        ["outputs", "parameters"],
    ),
    "Answer": _object(
        {**_alike(TEXT, "model_name", "model_version", "id"), "outputs": _array(SHARE)}
    ),
    "Load": _object(
        {
            "session": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            "engine": TEXT,
            **_alike(ANYTHING, "options", "description"),
            "clients": _array(ANYTHING),
            "everybody": {"anyOf": [_object(LIMITS, list(LIMITS), more=True), {"type": "null"}]},
            "inputs": _array(SHARE),
        },
        ["everybody"],
        more=True,
    ),
    "Serve": _object(
        {"num_requests": LIMIT, "owner_seconds": OWNER_SECONDS, "lease": LEASED},
        ["num_requests", "owner_seconds", "lease"],
        more=True,
    ),
    "Extend": _object(
        {
            "lease": {"type": "string", "pattern": f"^({LEASE.pattern})$"},
            "limit": COUNT,
            "number": {"type": "integer", "minimum": 1},
            "final": FLAG,
        },
        ["final"],
        more=True,
    ),
    "Clients": _object(
        {
            "clients": _array(
                _object({**_alike(TEXT, "name", "digest"), **LIMITS}, list(LIMITS), more=True)
            )
        },
        more=True,
    ),
    "Revoked": _object({"revoked": TEXT}, more=True),
    "Status": _object(_alike(TEXT, "party", "role", "state"), more=True),
    "Document": _object({"openapi": TEXT}, more=True),
    "Pem": TEXT,
}
BINARY = ("Query", "Answer", "Load")
"""Messages whose tensors may follow their JSON as bytes."""
SECURITY = {
    Who.CLIENT: f"`{CLIENT_SCHEME} NAME.CREDENTIAL`: a client's name, and what it shows to this "
    "party alone, in URL-safe base 64. Not needed where everybody is let in.",
    Who.OWNER: f"`{OWNER_SCHEME} NUMBER.SESSION.BODY_SHA256.SIGNATURE`: signed with the owner's "
    "key for this party, process, method, path and body, and good for one use.",
}
OPTIONAL_HEADERS: dict[str, tuple[Schema, str]] = {
    oip.HEADER_LENGTH: (COUNT, "Where the JSON ends and the tensors' bytes begin."),
    "Content-Encoding": (
        {"enum": ["gzip", "deflate", "identity"]},
        "How the body is compressed; its length is bounded when it is not.",
    ),
}
"""Of a query."""


def document(calls: Sequence[Call]) -> dict[str, Any]:
    """Return the OpenAPI document of these calls; JSON-able."""
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    schemes = {
        who.value: {"type": "apiKey", "in": "header", "name": "Authorization", "description": said}
        for who, said in SECURITY.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "One party of a privserve cluster",
            "version": __version__,
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": "The Open Inference Protocol v2, on shares: each compute party takes a "
            "share of a query and answers with a share of the prediction. docs/oip.md says how to "
            "make and to join them.",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": schemes},
    }


def _operation(call: Call) -> dict[str, Any]:
    summary, _, rest = (call.handler.__doc__ or "").partition("\n")
    operation: dict[str, Any] = {"operationId": call.name, "summary": summary}
    if rest.strip():
        operation["description"] = " ".join(rest.split())
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", call.path)
    ]
    if call.takes == "Query":
        parameters += [
            {"name": name, "in": "header", "schema": schema, "description": said}
            for name, (schema, said) in OPTIONAL_HEADERS.items()
        ]
    if parameters:
        operation["parameters"] = parameters
    if call.who is not Who.ANYBODY:
        operation["security"] = [{call.who.value: []}]
    if call.takes is not None:
        operation["requestBody"] = {
            "required": call.takes not in ("IndexRequest", "Serve"),
            "content": _content(call.takes),
        }
    operation["responses"] = {
        str(call.status): {"description": "The answer.", "content": _content(call.gives)},
        **{str(status): _refusal(call, status) for status in sorted(call.refuses)},
    }
    return operation


def _content(name: str) -> dict[str, Any]:
    """How a message of this schema may be written."""
    if name == "Pem":
        return {"text/plain": {"schema": _ref(name)}}
    written: dict[str, Any] = {"application/json": {"schema": _ref(name)}}
    if name in BINARY:
        written["application/octet-stream"] = {}
    return written


def _refusal(call: Call, status: int) -> dict[str, Any]:
    said = "Ready" if call.gives == "Ready" and call.path == "/v2/health/ready" else "Error"
    return {"description": f"{HTTPStatus(status).phrase}.", "content": _content(said)}
