"""What the servers learn: nothing in a share, nothing at the dealer, nothing in the logs."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ottt_openings import bits_by_value, online_values
from parties import Session, run_session
from serving import ROOT, SAMPLE_MODEL, free_workers, serving
from torch import nn

import converters
import privserve as ps
from privserve import sharing
from privserve.certificates import OWNER_KEY
from privserve.engines import ENGINES, Prepared, load_engine
from privserve.engines.ottt.compute import POOL_QUERIES
from privserve.engines.ottt.dealer import CREDIT
from privserve.engines.ottt.ops.opening import Opening
from privserve.fixedpoint import encode
from privserve.validation import read_program

EACH_ENGINE = [
    pytest.param(name, marks=[pytest.mark.slow] * (name == "crypten")) for name in ENGINES
]
"""CrypTen takes five times as long: `make test-all` asks it too."""

# With 255 degrees of freedom, chance exceeds this once in ten million runs.
CHI_SQUARE_LIMIT = 400.0


def chi_square(data: bytes) -> float:
    """The statistic of `data`'s bytes against the uniform distribution."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(abs(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]))


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """All weights of the sample model in fixed point: about 22,000 numbers."""
    prepared = ps.load_model(SAMPLE_MODEL).prepare("crypten")
    return np.concatenate([p.ravel() for p in prepared.parameters.values()])


SECRETS = ["zeros", "weights", "an image"]


def secret(kind: str, weights: np.ndarray) -> np.ndarray:
    if kind == "zeros":
        return np.zeros(50_000, np.int64)
    if kind == "weights":
        return weights
    return np.tile(encode(np.linspace(0, 1, 784), 14), 50)


def test_the_statistics_do_see_a_plaintext(weights: np.ndarray) -> None:
    for kind in SECRETS:
        assert chi_square(secret(kind, weights).tobytes()) > 100 * CHI_SQUARE_LIMIT
    assert correlation(weights, weights + 1000) > 0.9


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("kind", SECRETS)
def test_every_share_looks_uniform_and_uncorrelated(
    kind: str, parties: int, weights: np.ndarray
) -> None:
    plain = secret(kind, weights)
    for share in sharing.split(plain, parties):
        assert chi_square(share.tobytes()) < CHI_SQUARE_LIMIT
        assert not (share == plain).any()
        if kind != "zeros":
            assert correlation(share, plain) < 6 / np.sqrt(plain.size)


@pytest.mark.parametrize("parties", [2, 3])
def test_any_shares_but_all_look_uniform_together(parties: int, weights: np.ndarray) -> None:
    shares = sharing.split(weights, parties)
    for left_out in range(parties):
        others = [share for i, share in enumerate(shares) if i != left_out]
        assert chi_square(sharing.join(others).tobytes()) < CHI_SQUARE_LIMIT


def test_sharing_twice_gives_nothing_in_common(weights: np.ndarray) -> None:
    for first, second in zip(sharing.split(weights, 3), sharing.split(weights, 3), strict=True):
        assert not (first == second).any()
        assert correlation(first, second) < 6 / np.sqrt(weights.size)


def prepare(engine: str, seed: int) -> Prepared:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(100, 10)]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.uniform_(-0.1, 0.1)
                parameter.view(-1)[0] = 0.1  # the same range, whatever the seed
    converted = converters.convert(nn.Sequential(*layers), input_shape=(1, 12, 12))
    return load_engine(engine).prepare(converted.onnx, input_range=(-1, 1))


@functools.cache
def run(
    engine: str, seed: int, parties: int, again: bool = False
) -> tuple[Prepared, list[np.ndarray], Session]:
    prepared = prepare(engine, seed)
    draw = np.random.default_rng(seed)
    bits = prepared.description["fraction_bits"]
    batches = [encode(draw.uniform(-1, 1, (rows, 1, 12, 12)), bits) for rows in (1, 3)]
    session = run_session(prepared, [[batch] for batch in batches], parties, record=True)
    return prepared, batches, session


def frames(session: Session, party: str, way: str, peers: tuple[str, ...]) -> list[bytes]:
    return [p for w, peer, p in session.transcripts[party] if w == way and peer in peers]


def random_part(received: list[bytes]) -> bytes:
    """The masked values among `received`: small frames may hold padded bits.

    CrypTen opens a masked bit as a word of 0 or 1; such words are packed here.
    """
    parts = []
    for frame in received:
        if len(frame) < 256:
            continue
        words = np.frombuffer(frame, np.int64) if len(frame) % 8 == 0 else None
        is_bits = words is not None and ((words == 0) | (words == 1)).all()
        parts.append(np.packbits(words == 1)[:-1].tobytes() if is_bits else frame)
    return b"".join(parts)


COMPUTE = ("alice", "bob", "dave")


@pytest.mark.parametrize(
    ("engine", "parties"),
    [
        ("ottt", 2),
        ("ottt", 3),
        pytest.param("crypten", 2, marks=pytest.mark.slow),
        pytest.param("crypten", 3, marks=pytest.mark.slow),
    ],
)
def test_what_the_dealer_receives_depends_on_no_weight_and_no_query(
    engine: str, parties: int
) -> None:
    runs = [run(engine, seed, parties) for seed in (1, 2)]
    for prepared, batches, session in runs:
        inbound = b"".join(frames(session, "carol", "received", COMPUTE))
        for secret_array in [*prepared.parameters.values(), *batches]:
            word = secret_array.ravel()[:2].tobytes()
            assert word not in inbound
    first, second = (
        [frames(session, "carol", "received", (peer,)) for peer in COMPUTE]
        for _, _, session in runs
    )
    if engine == "crypten":
        assert first == second, "the same requests, whatever is computed"
        return
    for requests in (first, second):
        # When packs are asked for follows from when batches begin and end; how many in all, and
        # that nothing else is said, does not.
        alice, *others = ([CREDIT.unpack(frame) for frame in peer] for peer in requests)
        assert not any(others)
        counts = [count for count, _ in alice]
        used = sum(len(batch) for batch in runs[0][1])
        assert counts[-1] == 0
        assert all(0 < count <= POOL_QUERIES for count in counts[:-1])
        assert POOL_QUERIES // 4 <= sum(counts) <= used + POOL_QUERIES


def orders(values: list[np.ndarray], openings: list[Opening]) -> tuple[bytes, bytes]:
    """The bits that were opened, value after value and place after place (all lowest first)."""
    bits = [bits_by_value(v, o.bits) for v, o in zip(values, openings, strict=True)]
    by_value = np.concatenate([part.ravel() for part in bits])
    by_place = np.concatenate([part.T.ravel() for part in bits])
    return np.packbits(by_value).tobytes(), np.packbits(by_place).tobytes()


def exchanged() -> tuple[list[Opening], list[np.ndarray], list[np.ndarray], bytes]:
    """Of a run of ottt: its openings, bob's shares, what was opened; bob's share of W - B.

    Only bits that an op opens: words are padded with zeros, which are no secret.
    """
    prepared, batches, session = run("ottt", 1, 2)
    program, rows = read_program(prepared.description), [len(batch) for batch in batches]
    theirs = frames(session, "alice", "received", ("bob",))
    mine = frames(session, "alice", "sent", ("bob",))
    received = list(online_values(program, theirs, rows))
    sent = [values for _, values in online_values(program, mine, rows)]
    opened = [
        share ^ own if opening.xor else share + own
        for (opening, share), own in zip(received, sent, strict=True)
    ]
    openings, shares = [opening for opening, _ in received], [share for _, share in received]
    return openings, shares, opened, theirs[0]


def test_what_ottt_opens_and_every_share_of_it_looks_uniform() -> None:
    openings, shares, opened, weights = exchanged()
    assert chi_square(weights) < CHI_SQUARE_LIMIT
    for values in (shares, opened):
        for data in orders(values, openings):
            assert len(data) > 5000
            assert chi_square(data) < CHI_SQUARE_LIMIT


def a_bit_short(values: np.ndarray, bits: int) -> np.ndarray:
    """As under masks whose top bit is never set."""
    return values & ((1 << (bits - 1)) - 1)


def a_mask_left_out(values: np.ndarray, bits: int) -> np.ndarray:
    """As if every sixteenth value, which is small, were opened without a mask."""
    bare = values.copy()
    bare.reshape(-1)[::16] &= 7
    return bare


@pytest.mark.parametrize("flaw", [a_bit_short, a_mask_left_out])
def test_the_statistic_sees_openings_that_are_not_uniform(
    flaw: Callable[[np.ndarray, int], np.ndarray],
) -> None:
    openings, _, opened, _ = exchanged()
    flawed = [flaw(v, o.bits) for v, o in zip(opened, openings, strict=True)]
    assert max(map(chi_square, orders(flawed, openings))) > CHI_SQUARE_LIMIT


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_what_compute_parties_exchange_holds_no_plaintext(engine: str) -> None:
    prepared, batches, session = run(engine, 1, 2)
    for party, peer in (("alice", "bob"), ("bob", "alice")):
        received = frames(session, party, "received", (peer,))
        assert received
        everything = b"".join(received)
        for plain in [*prepared.parameters.values(), *batches]:
            flat = plain.ravel()
            assert flat[:2].tobytes() not in everything


def test_what_crypten_exchanges_looks_uniform() -> None:
    _, _, session = run("crypten", 1, 2)
    for party, peer in (("alice", "bob"), ("bob", "alice")):
        large = random_part(frames(session, party, "received", (peer,)))
        assert len(large) > 5000
        assert chi_square(large) < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("engine", EACH_ENGINE)
def test_two_runs_of_one_query_exchange_nothing_alike(engine: str) -> None:
    first, second = (
        random_part(frames(run(engine, 1, 2, again)[2], "alice", "received", ("bob",)))
        for again in (False, True)
    )
    assert len(first) == len(second) > 5000
    same = np.frombuffer(first, np.uint8) == np.frombuffer(second, np.uint8)
    assert same.mean() < 0.02  # chance gives 1/256


def test_logs_hold_no_token_no_key_and_no_value(tag: str, tmp_path: Path) -> None:
    secret_value = 0.7071
    module = nn.Linear(4, 2)
    with torch.no_grad():
        module.weight.fill_(secret_value)
    model = ps.load_model(module, input_shape=(4,))
    x = np.full((1, 4), 0.5772)
    with ps.Cluster(*free_workers(), directory=tmp_path) as cluster:
        model.share(cluster)
        with ps.Client(cluster) as client, serving(cluster, model, 1):
            answer = client.query_model(x)
            with pytest.raises(ps.PrivserveError):
                client.query_model(x)
        owner = (tmp_path / OWNER_KEY).read_text().splitlines()[1]
    for name in ("alice", "bob", "carol"):
        log = (tmp_path / name / "party.log").read_text()
        assert name in log
        key = (tmp_path / name / f"{name}.key").read_text().splitlines()[1]
        forbidden = [owner, key, "0.7071", "0.707", "0.577", f"{answer[0, 0]:.3f}"]
        for bits in (14, 16, 18):
            forbidden += [str(int(encode(v, bits))) for v in (secret_value, 0.5772)]
        for text in forbidden:
            assert text not in log
        words = log.replace("'", " ").replace(":", " ").split()
        assert not [w for w in words if w.lstrip("-").isdecimal() and len(w) > 9], "share-like"


SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "converters").rglob("*.py")])
WEAK_MODULES = {"random", "numpy.random"}
WEAK_NAMES = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli",
    "multinomial", "manual_seed", "Generator", "default_rng", "RandomState",
}  # fmt: skip
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def imported(tree: ast.Module) -> set[str]:
    """Every module and every module.name that a file imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def weak_randomness(tree: ast.Module) -> set[str]:
    """The uses of generators that are not made for secrets."""
    found = imported(tree) & WEAK_MODULES
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        root, _, rest = name.partition(".")
        weak_torch = root == "torch" and rest.rpartition(".")[2] in WEAK_NAMES
        if weak_torch or (root in ("np", "numpy") and rest.startswith("random")):
            found.add(name)
    return found


@pytest.mark.parametrize(
    "code",
    ["import random", "from numpy import random", "np.random.rand(3)", "torch.randint(3, (1,))",
     "import numpy.random as r", "torch.random.manual_seed(1)", "from random import choice"],
)  # fmt: skip
def test_the_search_for_weak_randomness_finds_it(code: str) -> None:
    assert weak_randomness(ast.parse(code))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_draws_from_a_weak_generator_or_unpickles(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not weak_randomness(tree)
    assert not {name.partition(".")[0] for name in imported(tree)} & UNPICKLERS
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert dotted(node.func) not in ("torch.load", "eval", "exec", "yaml.load")
            pickles = [k for k in node.keywords if k.arg == "allow_pickle"]
            assert all(isinstance(k.value, ast.Constant) and not k.value.value for k in pickles)
