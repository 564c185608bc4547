"""The gateway's gRPC front: the Open Inference Protocol's service, on asyncio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import numpy as np

from privserve.errors import ConfigError, InputError, PrivserveError
from privserve.gateway.asked import Inference, read_parameters, refuse_unknown
from privserve.gateway.grpc_messages import ONEOF, SERVICE, message_classes
from privserve.gateway.metadata import VERSION, model_facts, server_facts
from privserve.gateway.refusals import GRPC_CODES, note_bug, status_of, text_of
from privserve.gateway.tensors import ANSWERED, Numbers, checked_shape, from_bytes, from_list
from privserve.gateway.upstreams import Upstreams

MAX_MESSAGE_BYTES = 256 << 20
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where the elements of a datatype are that does not come as raw bytes."""

Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


def create_server(
    upstream: Upstreams, address: str, tls: tuple[bytes, bytes] | None
) -> tuple[grpc.aio.Server, int]:
    """Return a server that is not started yet, and its port.

    address: host:port, port 0 for any. tls: the private key and the certificates, PEM. Raises
    ConfigError where it cannot listen there.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # or a second gateway would take half of the calls
        ]
    )
    service = _Service(upstream, message_classes())
    methods: dict[str, Handler] = {
        "ServerLive": service.server_live,
        "ServerReady": service.server_ready,
        "ServerMetadata": service.server_metadata,
        "ModelReady": service.model_ready,
        "ModelMetadata": service.model_metadata,
        "ModelInfer": service.model_infer,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _refusing(method),
            request_deserializer=service.messages[f"{name}Request"].FromString,
            response_serializer=service.messages[f"{name}Response"].SerializeToString,
        )
        for name, method in methods.items()
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, grpc.ssl_server_credentials([tls]))
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(
            f"--grpc: cannot listen on {address}; stop what uses that port or choose another"
        )
    return server, port


def _refusing(method: Handler) -> Handler:
    """The method, with errors as gRPC has them."""

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(request, context)
        except PrivserveError as error:
            code = GRPC_CODES.get(status_of(error), "UNKNOWN")
            await context.abort(getattr(grpc.StatusCode, code), text_of(error))
        except Exception as error:
            note_bug(error)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the gateway's log")

    return answer


class _Service:
    """The calls. One that its caller cancels, or whose deadline passes, is cancelled by gRPC."""

    def __init__(self, upstream: Upstreams, messages: Mapping[str, Any]) -> None:
        self._upstream = upstream
        self.messages = messages

    async def server_live(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Say that the process answers."""
        return self.messages["ServerLiveResponse"](live=True)

    async def server_ready(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Say whether a model is being served now."""
        return self.messages["ServerReadyResponse"](ready=bool(await self._upstream.served()))

    async def server_metadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Say what this is."""
        return self.messages["ServerMetadataResponse"](**server_facts())

    async def model_ready(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Say whether this model is being served now."""
        is_named = request.version in ("", VERSION)
        ready = is_named and request.name in await self._upstream.served()
        return self.messages["ModelReadyResponse"](ready=ready)

    async def model_metadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Describe the model."""
        model = await self._upstream.model(request.name, request.version, now=True)
        facts = model_facts(model)
        del facts["parameters"]  # there is no field for them
        return self.messages["ModelMetadataResponse"](**facts)

    async def model_infer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Answer an inference; as raw bytes where it came as such, else as typed lists."""
        model = await self._upstream.model(request.model_name, request.model_version)
        answers = await self._upstream.infer(model, _inference(request))
        answer = self.messages["ModelInferResponse"](
            model_name=model.name, model_version=VERSION, id=request.id
        )
        for name, array in answers.items():
            tensor = answer.outputs.add(name=name, datatype=ANSWERED, shape=array.shape)
            if request.raw_input_contents:
                answer.raw_output_contents.append(np.ascontiguousarray(array, "<f4").tobytes())
            else:
                tensor.contents.fp32_contents.extend(array.reshape(-1).tolist())
        return answer


def _inference(request: Any) -> Inference:
    """Read a request; raises InputError naming what is malformed."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(
            f"{len(request.inputs)} inputs need as many raw_input_contents, not {len(raw)}"
        )
    if not request.inputs:
        raise InputError("the request needs 'inputs'")
    inputs: dict[str, Numbers] = {}
    for i, tensor in enumerate(request.inputs):
        if tensor.name in inputs:
            raise InputError(f"input '{tensor.name}' is given twice")
        refuse_unknown(tensor.parameters, set(), f"input '{tensor.name}'")
        shape = checked_shape(tensor.name, list(tensor.shape))
        if not raw:
            inputs[tensor.name] = _typed(tensor, shape)
        elif tensor.HasField("contents"):
            raise InputError(f"input '{tensor.name}' has contents and raw_input_contents")
        else:
            inputs[tensor.name] = from_bytes(tensor.name, tensor.datatype, shape, raw[i])
    outputs = []
    for tensor in request.outputs:
        if tensor.name in outputs:
            raise InputError(f"output '{tensor.name}' is asked for twice")
        refuse_unknown(tensor.parameters, set(), f"output '{tensor.name}'")
        outputs.append(tensor.name)
    given = {name: _value(parameter) for name, parameter in request.parameters.items()}
    logits, timeout = read_parameters(given)
    return Inference(inputs, outputs, request.id, logits, timeout)


def _typed(tensor: Any, shape: tuple[int, ...]) -> Numbers:
    """An input out of the list of its datatype; raises InputError where another is filled."""
    expected = CONTENTS.get(tensor.datatype)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if expected is None:
        from_list(tensor.name, tensor.datatype, (0,), [])  # which refuses what holds no numbers
        raise InputError(
            f"input '{tensor.name}' of datatype {tensor.datatype} has to come in raw_input_contents"
        )
    if filled not in ([], [expected]):
        raise InputError(
            f"input '{tensor.name}' of datatype {tensor.datatype} takes its elements from "
            f"{expected}, not from {', '.join(filled)}"
        )
    return from_list(tensor.name, tensor.datatype, shape, getattr(tensor.contents, expected))


def _value(parameter: Any) -> Any:
    """What a parameter holds; None where it holds nothing."""
    chosen = parameter.WhichOneof(ONEOF)
    return None if chosen is None else getattr(parameter, chosen)
