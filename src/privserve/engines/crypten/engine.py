"""The reference engine: CrypTen's own protocols, with a trusted third party as dealer.

Compute parties run a `crypten.nn` model whose parameters are the shares that they were
given; the dealer runs the server of CrypTen's TrustedThirdParty provider (Knott et al.,
"CrypTen: Secure Multi-Party Computation Meets Machine Learning", NeurIPS 2021). Truncation
between two compute parties is local and wraps with probability |x| / 2^63 per element, as in
CrypTen itself. `prepare` refuses models whose sound bound on |x| exceeds 2^50 units, where that is
2^-13 per element; values of real inputs lie far below the bound, but nothing detects a wrap.
"""

from __future__ import annotations

import base64
import importlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from privserve.engines import Prepared, RunStats
from privserve.engines.crypten.compat import LANE, WORD_BYTES
from privserve.engines.crypten.dealing import MAX_ELEMENTS
from privserve.engines.crypten.graph import HANDLERS, CryptenGraph, lower
from privserve.engines.crypten.session import deal_session, join_session
from privserve.errors import ClusterError, ModelError
from privserve.fixedpoint import RingArray, encode
from privserve.lift import lift_for, read_lift
from privserve.mesh import Mesh
from privserve.program import Lift

LANES: tuple[str, ...] = (LANE,)
OPS = frozenset(HANDLERS)
MOST_FRACTION_BITS = 16
LEAST_FRACTION_BITS = 14
DEFAULT_INPUT_RANGE = (-8.0, 8.0)
# An accumulator of b bits is wrapped by local truncation with probability 2^(b - 63) per
# element; sound bounds, as here, are far above what real inputs reach.
MAX_ACCUMULATOR_BITS = 50

Interval = tuple[NDArray[Any], NDArray[Any]]


PROCESS_BYTES = 600 << 20


def frame_limits(description: Mapping[str, Any], **_: Any) -> Mapping[str, int]:
    """See `engines.EngineModule`; which step sends how much only CrypTen knows, as it runs."""
    return {LANE: WORD_BYTES * MAX_ELEMENTS}


def fingerprint(description: Mapping[str, Any], **_: Any) -> str:
    """See `engines.EngineModule`: CrypTen asks for its triples one by one, by their shapes."""
    return f"crypten {version('crypten')}"


def memory(description: Mapping[str, Any], parties: int, **_: Any) -> tuple[int, int]:
    """See `engines.EngineModule`: torch and CrypTen, and little else for what they can run."""
    return PROCESS_BYTES, PROCESS_BYTES


def summary(description: Mapping[str, Any]) -> str:
    """See `engines.EngineModule`: the public facts; CrypTen tells no costs beforehand."""
    keys = ("inputs", "outputs", "fraction_bits", "input_range")
    facts = [f"{key}: {description[key]}" for key in keys]
    return "\n".join([*facts, f"strict_inputs: {description.get('lift') is not None}"])


def prepare(
    model: onnx.ModelProto,
    *,
    input_range: tuple[float, float] | None = None,
    fraction_bits: int | None = None,
    strict_inputs: bool = False,
    **_: Any,
) -> Prepared:
    """Split `model` into CrypTen's public graph and the encoded weights.

    input_range: what every input value stays within; (-8, 8) when None. fraction_bits: of
    inputs and weights; when None 16, or 14 where only that fits. strict_inputs: whether inputs
    are lifted first, so that bounds hold whatever a client sends. Raises ModelError naming op
    and node where CrypTen cannot run the model or a value may outgrow the ring.
    """
    low, high = input_range or DEFAULT_INPUT_RANGE
    bits = MOST_FRACTION_BITS if fraction_bits is None else fraction_bits
    if not 8 <= bits <= 20:
        raise ModelError(f"the crypten engine takes 8 to 20 fraction bits, not {bits}")
    graph = lower(model)
    shape = _shape(graph.public.graph.input[0])
    try:
        lift, out_shape = _fitted(graph, shape, (low, high), bits, strict_inputs)
    except ModelError:
        if fraction_bits is not None:
            raise
        # Wide ranges cost precision, two bits of room for each bit, before they are refused.
        bits = LEAST_FRACTION_BITS
        lift, out_shape = _fitted(graph, shape, (low, high), bits, strict_inputs)
    for name in graph.secrets:
        graph.secrets[name] = np.asarray(graph.secrets[name], dtype=np.float64)
    description = {
        "graph": base64.b64encode(graph.public.SerializeToString()).decode(),
        "inputs": [{"name": model.graph.input[0].name, "shape": shape}],
        "outputs": [
            {
                "name": model.graph.output[0].name,
                "shape": out_shape,
                "activation": graph.activation,
                "rounded_bits": 0,  # it carries no more bits than inputs do
            }
        ],
        "fraction_bits": bits,
        "output_fraction_bits": bits,
        "input_range": [low, high],
        "lift": None if lift is None else asdict(lift),
    }
    parameters = {name: encode(value, bits) for name, value in graph.secrets.items()}
    report = () if lift is None else (_strictness(lift, bits),)
    return Prepared("crypten", description, parameters, report)


def _strictness(lift: Lift, fraction_bits: int) -> str:
    """What strict inputs are lifted to, and by what."""
    low, high = lift.interval(2.0**-fraction_bits)
    return (
        f"inputs are strict: whatever a client sends is lifted to [{low:g}, {high:g}]; each of "
        f"its low {lift.bits} bits becomes an XOR share and an additive one again"
    )


def _fitted(
    graph: CryptenGraph,
    shape: list[int],
    input_range: tuple[float, float],
    bits: int,
    strict_inputs: bool,
) -> tuple[Lift | None, list[int]]:
    """What inputs of so many fraction bits are lifted to, and the output's shape.

    Raises ModelError where a value may outgrow the ring, for all inputs that are let in.
    """
    lift = lift_for(input_range, bits) if strict_inputs else None
    ends = input_range if lift is None else lift.interval(2.0**-bits)
    return lift, _check_range(graph, shape, *ends, bits)


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    if not all(d > 0 for d in dims):
        raise ModelError(
            f"the shape of '{value.name}' is not fixed ({dims}); convert the model with an "
            "input shape"
        )
    return dims


def _check_range(
    graph: CryptenGraph, shape: list[int], low: float, high: float, bits: int
) -> list[int]:
    """Bound every intermediate value; return the output's shape without its batch axis.

    Interval arithmetic, node by node: the largest value of W x for x in [lo, hi] is
    W+ hi + W- lo, with W+ and W- the positive and the negative part of W.
    """
    standard = onnx.ModelProto()
    standard.CopyFrom(graph.public)
    del standard.graph.initializer[:]
    standard = _to_standard(standard)
    values: dict[str, Interval] = {
        t.name: (onnx.numpy_helper.to_array(t),) * 2 for t in standard.graph.initializer
    }
    values.update({name: (w, w) for name, w in graph.secrets.items()})
    box = np.ones((1, *shape))
    values[standard.graph.input[0].name] = (low * box, high * box)
    worst_name, worst = "", 0.0
    for node in standard.graph.node:
        values[node.output[0]] = _interval(node, [values[name] for name in node.input])
        largest = max(float(np.abs(end).max()) for end in values[node.output[0]])
        if node.op_type == "AveragePool":  # CrypTen sums first and divides afterwards
            largest *= math.prod(onnx.helper.get_node_attr_value(node, "kernel_shape"))
        if not largest <= worst:
            worst_name, worst = node.output[0], largest
    needed = math.log2(max(worst, 1e-9)) + 2 * bits
    if not math.isfinite(worst) or needed > MAX_ACCUMULATOR_BITS:
        raise ModelError(
            f"values may reach {worst:.3g} at '{worst_name}' for inputs in [{low:g}, {high:g}]; "
            f"with {bits} fraction bits that needs {needed:.0f} of {MAX_ACCUMULATOR_BITS} bits; "
            "declare a smaller --input-range, use fewer --fraction-bits, or --engine ottt"
        )
    final = values[standard.graph.output[0].name][0]
    return [int(d) for d in final.shape[1:]]


def _interval(node: onnx.NodeProto, ends: list[Interval]) -> Interval:
    """The box that holds a node's output where its inputs are in the boxes `ends`."""

    def run(*inputs: NDArray[Any]) -> NDArray[Any]:
        evaluator: Any = ReferenceEvaluator(node)
        result: NDArray[Any] = evaluator.run(None, dict(zip(node.input, inputs, strict=True)))[0]
        return result

    if node.op_type in ("Conv", "MatMul"):
        (low, high), (weight, _), *bias = ends
        up, down = np.maximum(weight, 0), np.minimum(weight, 0)
        zeros = [np.zeros_like(b[0]) for b in bias]
        biases = [b[0] for b in bias]
        return (
            run(low, up, *biases) + run(high, down, *zeros),
            run(high, up, *biases) + run(low, down, *zeros),
        )
    if node.op_type == "Sub":
        return run(ends[0][0], ends[1][1]), run(ends[0][1], ends[1][0])
    if node.op_type == "Mul":
        products = [run(x, y) for x in ends[0] for y in ends[1]]
        return np.minimum.reduce(products), np.maximum.reduce(products)
    # Everything else never decreases when an input grows.
    return run(*(low for low, _ in ends)), run(*(high for _, high in ends))


def _to_standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """CrypTen's attribute dialect back to standard ONNX, for evaluation."""
    for node in model.graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Conv":
            pairs = list(attributes["pads"].ints)
            half = pairs[::2]
            del attributes["pads"].ints[:]
            attributes["pads"].ints.extend([*half, *half])
        elif node.op_type == "Reshape":
            shape = np.array(attributes["shape"].ints, np.int64)
            name = f"{node.output[0]}_shape"
            model.graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
            node.input.append(name)
            del node.attribute[:]
        elif node.op_type == "Pad":
            pads = np.array(attributes["pads"].ints, np.int64)
            name = f"{node.output[0]}_pads"
            model.graph.initializer.append(onnx.numpy_helper.from_array(pads, name))
            node.input.append(name)
            del node.attribute[:]
    return model


def check(model: onnx.ModelProto) -> None:
    """See `engines.EngineModule`."""
    lower(model)


class Compute:
    """One compute party of a CrypTen session. One per process at a time."""

    def __init__(
        self,
        description: Mapping[str, Any],
        shares: Mapping[str, RingArray],
        meshes: Mapping[str, Mesh],
        **_: Any,
    ) -> None:
        """Build the model from its public graph and this party's `shares`; collective."""
        self._comm = join_session(meshes[LANE])
        self._bits = int(description["fraction_bits"])
        self._lift = read_lift(description.get("lift"))
        # What CrypTen encodes by itself, such as the reciprocals of pooling.
        importlib.import_module("crypten").cfg.encoder.precision_bits = self._bits
        self.stats = RunStats()
        self._model = self._build(base64.b64decode(description["graph"]), shares)
        # torch and CrypTen load much on first use; a query should not have to wait for that.
        self.run([np.zeros((1, *t["shape"]), np.int64) for t in description["inputs"]])
        self.stats = RunStats()

    def _build(self, graph: bytes, shares: Mapping[str, RingArray]) -> Any:
        from crypten.nn import from_onnx

        with warnings.catch_warnings():
            # It wraps the file's read-only arrays; `set_parameter` below replaces them all.
            warnings.simplefilter("ignore", UserWarning)
            model = from_onnx(io.BytesIO(graph))
        model.eval()
        children = dict(model.named_children())
        for name, share in shares.items():
            if name not in children:
                raise ClusterError(f"the model's graph has no weight '{name}'")
            children[name].set_parameter("data", self._mpc(share))
            children[name].encrypted = True
        for module in model.modules():
            module.encrypted = True
        return model

    def _mpc(self, share: RingArray) -> Any:
        from crypten.mpc import MPCTensor

        tensor = torch.from_numpy(np.array(share, dtype=np.int64))
        return MPCTensor.from_shares(tensor, precision=self._bits)

    def packs(self) -> None:
        """Return None: the dealer is asked for each tuple."""

    def run(self, inputs: Sequence[RingArray]) -> list[RingArray]:
        """Evaluate the model on shares; see `engines.Compute`."""
        import crypten

        before = self._comm.exchanges
        with crypten.no_grad(), torch.no_grad():
            x = inputs[0] if self._lift is None else self._lifted(inputs[0], self._lift)
            answer = self._model(self._mpc(x))
        self.stats.exchanges += self._comm.exchanges - before
        return [np.ascontiguousarray(answer.share.numpy())]

    def _lifted(self, share: RingArray, lift: Lift) -> RingArray:
        """This party's share of start + (x - start) mod 2^bits, exactly; collective.

        The low bits of x - start as XOR shares (a sum of all parties' shares, bit by bit), each
        of them as an additive share: no truncation, so nothing can wrap.
        """
        from crypten import mpc

        start = lift.start if self._comm.get_rank() == 0 else 0
        bits = self._mpc(share - start).to(mpc.binary)
        low = bits.to(mpc.arithmetic, precision=self._bits, bits=lift.bits)
        return np.asarray(low.share.numpy() + start, np.int64)

    def close(self) -> None:
        """Forget the shares."""
        self._model = None


def deal(description: Mapping[str, Any], meshes: Mapping[str, Mesh], **_: Any) -> None:
    """Serve CrypTen's triples until the session's channels close (PeerLost)."""
    deal_session(meshes[LANE])
