"""The CrypTen engine's refusals, its communicator, and what it asks the dealer for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from parties import run_session
from torch import nn
from torch.distributed import ReduceOp

import converters
from privserve.engines import load_engine
from privserve.engines.crypten import compat
from privserve.engines.crypten import engine as crypten_engine
from privserve.engines.crypten.compat import MeshCommunicator
from privserve.engines.crypten.dealing import OPERANDS
from privserve.engines.crypten.graph import lower
from privserve.errors import ClusterError, ModelError
from privserve.fixedpoint import decode, encode
from privserve.lift import read_lift
from privserve.prg import Prg


def graph(op: str, shape: list[int], weights: dict[str, np.ndarray], **attributes: Any) -> Any:
    """One node, called 'the node', on x and `weights`."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", [None, *shape]), ("y", None))
    ]
    node = helper.make_node(op, ["x", *weights], ["y"], "the node", **attributes)
    constants = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    inner = helper.make_graph([node], "g", values[:1], values[1:], constants)
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 17)])


KERNEL = {"w": np.ones((1, 1, 3, 3))}
REFUSED = {
    "an unknown op": (graph("Cos", [4], {}), "no such op"),
    "automatic padding": (
        graph("Conv", [1, 8, 8], KERNEL, auto_pad="SAME_UPPER"),
        "padding is automatic",
    ),
    "three axes": (
        graph("Conv", [1, 8, 8, 8], {"w": np.ones((1, 1, 3, 3, 3))}),
        "convolves over 3 axes",
    ),
    "an oblong pool": (
        graph("MaxPool", [1, 8, 8], {}, kernel_shape=[2, 3]),
        "pools squares only",
    ),
    "a padded pool": (
        graph("AveragePool", [1, 8, 8], {}, kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
        "without padding",
    ),
    "a dilated pool": (
        graph("MaxPool", [1, 8, 8], {}, kernel_shape=[2, 2], dilations=[2, 2]),
        "without dilation",
    ),
    "a transposed input": (
        graph("Gemm", [4], {"w": np.ones((4, 2))}, transA=1),
        "transposes its input",
    ),
}


@pytest.mark.parametrize(("model", "why"), REFUSED.values(), ids=REFUSED)
def test_what_crypten_cannot_run_is_refused_by_name(model: onnx.ModelProto, why: str) -> None:
    op = model.graph.node[0].op_type
    with pytest.raises(ModelError, match=rf"cannot run {op} \(node 'the node'\): .*{why}"):
        lower(model)


def test_the_public_graph_holds_zeros_where_the_weights_were() -> None:
    lowered = lower(graph("Conv", [1, 8, 8], KERNEL))
    np.testing.assert_array_equal(lowered.secrets["w"], KERNEL["w"])
    (public,) = lowered.public.graph.initializer
    assert not numpy_helper.to_array(public).any()


def test_values_beyond_the_accumulator_are_refused_with_the_remedy() -> None:
    model = graph("MatMul", [4], {"w": np.full((4, 2), 1e5)})
    with pytest.raises(ModelError, match=r"values may reach .* at 'y'.*--input-range"):
        crypten_engine.prepare(model, input_range=(-1e3, 1e3))
    crypten_engine.prepare(model, input_range=(-1e-3, 1e-3))


@pytest.mark.parametrize("bits", [7, 21])
def test_fraction_bits_outside_the_engines_are_refused(bits: int) -> None:
    with pytest.raises(ModelError, match=f"8 to 20 fraction bits, not {bits}"):
        crypten_engine.prepare(graph("MatMul", [4], {"w": np.ones((4, 2))}), fraction_bits=bits)


class FakeMesh:
    """Party 0 of two; the other one always sends the same words."""

    rank, n = 0, 2

    def __init__(self, theirs: np.ndarray) -> None:
        self.theirs = theirs
        self.sent: list[tuple[int, bytes]] = []
        self.limits: dict[int, int] = {}

    def send(self, peer: int, *buffers: Any) -> None:
        self.sent.append((peer, b"".join(bytes(b) for b in buffers)))

    def recv(self, peer: int) -> memoryview:
        return memoryview(bytearray(self.theirs.tobytes()))

    def exchange(self, payload: Any) -> list[memoryview | None]:
        return [None, self.recv(1)]

    def name(self, peer: int) -> str:
        return ("alice", "bob", "carol")[peer]

    def limit(self, peer: int, size: int) -> None:
        self.limits[peer] = size


MINE, THEIRS = torch.tensor([[1, 2], [3, 4]]), np.array([10, 20, 30, 2**63 - 1])


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (ReduceOp.SUM, [[11, 22], [33, -(2**63) + 3]]),
        (ReduceOp.BXOR, [[11, 22], [29, 2**63 - 5]]),
    ],
)
def test_an_all_reduce_combines_in_the_ring_and_keeps_its_argument(
    op: Any, expected: list[list[int]]
) -> None:
    communicator = MeshCommunicator(FakeMesh(THEIRS))
    mine = MINE.clone()
    assert communicator.all_reduce(mine, op).tolist() == expected
    first, second = communicator.all_reduce([mine[0], mine[1]], op, batched=True)
    assert [first.tolist(), second.tolist()] == expected
    assert communicator.exchanges == 2
    assert torch.equal(mine, MINE)
    assert communicator.mesh.limits == {1: 32}


@pytest.mark.parametrize("words", [0, 3, 5])
@pytest.mark.parametrize("call", ["all_reduce", "gather", "all_gather", "reduce"])
def test_a_peers_tensor_of_another_size_is_refused_by_name(call: str, words: int) -> None:
    communicator = MeshCommunicator(FakeMesh(np.arange(words)))
    arguments = (MINE, 0) if call in ("gather", "reduce") else (MINE,)
    with pytest.raises(ClusterError, match=f"bob sent {8 * words} bytes where 32 were to come"):
        getattr(communicator, call)(*arguments)


def test_gathering_reducing_and_unknown_reductions() -> None:
    communicator = MeshCommunicator(FakeMesh(THEIRS))
    for parts in (communicator.gather(MINE, 0), communicator.all_gather(MINE)):
        assert [p.flatten().tolist() for p in parts] == [[1, 2, 3, 4], THEIRS.tolist()]
    assert communicator.reduce(MINE, 0).flatten().tolist()[:3] == [11, 22, 33]
    assert communicator.reduce(MINE, 1) is None
    with pytest.raises(ValueError, match="not used in inference"):
        communicator.all_reduce(MINE, ReduceOp.MAX)


def test_what_would_move_pickled_objects_is_refused_by_name() -> None:
    communicator = MeshCommunicator(FakeMesh(THEIRS))
    with pytest.raises(ClusterError, match="'broadcast_obj', which moves pickled objects"):
        communicator.broadcast_obj({})


def test_random_tensors_have_their_size_and_width() -> None:
    drawn = compat.generate_kbit_random_tensor((1000,), bitlength=3)
    assert set(drawn.tolist()) == set(range(8))
    assert compat.generate_random_ring_element(torch.Size([2, 3])).shape == (2, 3)
    with pytest.raises(ValueError, match=r"Z_2\^64"):
        compat.generate_random_ring_element((3,), ring_size=2**32)


def test_requests_to_the_dealer_hold_shapes_only() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    prepared = crypten_engine.prepare(converters.convert(module, input_shape=(1, 6, 6)).onnx)
    x = encode(np.random.default_rng(1).uniform(-1, 1, (2, 1, 6, 6)), 16)
    session = run_session(prepared, [[x]], record=True)
    received = [(peer, p) for way, peer, p in session.transcripts["carol"] if way == "received"]
    requests = [p for peer, p in received if peer == "alice"]
    assert len(requests) > 5
    assert requests == [p for peer, p in received if peer == "bob"]

    def numbers(value: Any) -> list[int]:
        if isinstance(value, list):
            return [number for item in value for number in numbers(item)]
        if isinstance(value, dict):
            return numbers(list(value.values()))
        return [] if isinstance(value, str) or value is None else [value]

    for request in requests:
        message = json.loads(request)
        assert set(message) == {"function", "args", "kwargs"}
        assert message["function"] in OPERANDS
        assert all(0 <= number < 10_000 for number in numbers(message))


def test_a_wide_range_costs_precision_before_it_is_refused() -> None:
    converted = converters.convert(torch.nn.Linear(4, 2), input_shape=(4,))
    prepare = crypten_engine.prepare
    narrow = prepare(converted.onnx, input_range=(-8, 8))
    wide = prepare(converted.onnx, input_range=(-400_000, 400_000))
    assert narrow.description["fraction_bits"] == 16
    assert wide.description["fraction_bits"] == 14
    with pytest.raises(ModelError, match="input-range"):
        prepare(converted.onnx, input_range=(-400_000, 400_000), fraction_bits=16)


def test_bounds_are_reached_by_the_worst_input_and_never_passed() -> None:
    layer = torch.nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -3.0, 0.5]]))
        layer.bias.copy_(torch.tensor([-1.0]))
    graph = lower(converters.convert(layer, input_shape=(3,)).onnx)
    ends = {"x": (np.full((1, 3), -1.0), np.full((1, 3), 4.0))}
    ends |= {name: (value, value) for name, value in graph.secrets.items()}
    ends[graph.public.graph.input[0].name] = ends["x"]
    for node in graph.public.graph.node:
        ends[node.output[0]] = crypten_engine._interval(node, [ends[name] for name in node.input])
    low, high = ends[graph.public.graph.output[0].name]
    assert low.item() == pytest.approx(-2 - 12 - 0.5 - 1)
    assert high.item() == pytest.approx(8 + 3 + 2 - 1)


@pytest.mark.parametrize("engine", ["crypten", "ottt"])
def test_a_hard_swish_runs_on_both_engines(engine: str) -> None:
    """Each used to send its users to the other one."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(6, 8), nn.Hardswish(), nn.Linear(8, 3))
    converted = converters.convert(net, input_shape=(6,))
    assert any(node.op_type == "HardSwish" for node in converted.onnx.graph.node)
    prepared = load_engine(engine).prepare(converted.onnx, input_range=(-6, 6))
    x = np.linspace(-6, 6, 60).reshape(10, 6)
    session = run_session(prepared, [[encode(x, prepared.description["fraction_bits"])]])
    got = decode(session.answers[0][0], prepared.description["output_fraction_bits"])
    assert np.abs(got - converted.predict(x)).max() < 1e-2


@pytest.mark.parametrize("parties", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_ring_element_is_lifted_exactly_and_inputs_stay_what_they_are(parties: int) -> None:
    model = graph("Add", [6], {"w": np.zeros(6)})
    prepared = crypten_engine.prepare(model, input_range=(-1, 3), strict_inputs=True)
    lift = read_lift(prepared.description["lift"])
    assert lift is not None
    honest = encode(np.linspace(-1, 3, 60).reshape(10, 6), 16)
    size = 2**lift.bits
    borders = [lift.start + n * size + step for n in (-1, 0, 1, 2) for step in (-1, 0, 1)]
    edges = np.array([*borders, 2**63 - 1, -(2**63), 0, 1 << 62, -1, 1 << 40], np.int64)
    x = np.concatenate([honest, edges.reshape(3, 6), Prg().int64((40, 6))])
    session = run_session(prepared, [[x]], parties)
    expected = [[lift.start + (int(v) - lift.start) % size for v in row] for row in x]
    assert session.answers[0][0].tolist() == expected
    assert session.answers[0][0][:10].tolist() == honest.tolist()


def test_the_bounds_of_strict_inputs_are_those_of_all_that_is_let_in() -> None:
    """A range that just fits, and does not once its inputs are lifted to twice of it."""
    model = graph("MatMul", [4], {"w": np.ones((4, 1))})
    options: dict[str, Any] = {"input_range": (0, 1 << 16), "fraction_bits": 16}
    crypten_engine.prepare(model, **options)
    with pytest.raises(ModelError, match=r"values may reach 5.24e\+05 .*input-range"):
        crypten_engine.prepare(model, **options, strict_inputs=True)
    options["input_range"] = (0, (1 << 16) - 1)
    crypten_engine.prepare(model, **options, strict_inputs=True)
