"""The client: splits a query into shares, sends one to each compute party, joins the answer.

The plaintext never leaves this process: what goes out is a uniformly random share per
party, and what comes back is joined here, where the final softmax or sigmoid is applied.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from privserve import fixedpoint, oip, sharing
from privserve.activations import joined
from privserve.calls import connections, introduced, raise_for_answer, unreachable
from privserve.config import ClusterConfig, read_config
from privserve.credentials import KEY_FILE, ClientKey
from privserve.description import Description, TensorDescription, read_description
from privserve.errors import (
    ClusterError,
    ConfigError,
    GuessedRangeError,
    InputError,
    NotServing,
    QueryError,
    RangeError,
    StaleSession,
)
from privserve.fixedpoint import RingArray
from privserve.inputs import Inputs, batched, by_name
from privserve.revocation import Revocations

if TYPE_CHECKING:
    from privserve.cluster import Cluster

MAX_CONCURRENT = 32
OF_OUTPUTS = ("activation", "rounded_bits")
"""What a model's metadata have among an output's parameters."""


@dataclass(frozen=True)
class _Peer:
    name: str
    address: str
    identity: str
    """What its certificate has to say, whatever its address."""
    authorization: Mapping[str, str]
    """What shows this client to it, and to it alone."""
    http: httpx.Client


@dataclass(frozen=True)
class _Model:
    """What a client must know of the served model; read from the parties."""

    name: str
    session: str
    description: Description
    max_rows: int


class Client:
    """Queries a served model. Thread-safe; also a context manager."""

    def __init__(
        self,
        cluster: str | Path | ClusterConfig | Cluster | Sequence[str] = ".privserve/cluster.toml",
        *,
        ca: str | Path | None = None,
        key: str | Path | None = None,
        timeout: float = 60.0,
    ) -> None:
        """cluster: a cluster.toml, a running `Cluster`, or the compute parties' addresses
        together with `ca`, the cluster's ca.pem. key: the client's key, by default client.key
        beside cluster.toml or ca.pem where there is one. timeout: seconds that a query may take.
        """
        parties, authority, beside = _resolve(cluster, ca)
        client = _client_key(key, beside)
        self._timeout = timeout
        self._revocations = Revocations(authority)
        self._peers = [
            _Peer(name, address, identity, _authorization(client, identity), self._connect(address))
            for name, address, identity in parties
        ]
        # Two stages, so that queries that wait for their requests cannot starve them.
        self._queries = ThreadPoolExecutor(MAX_CONCURRENT, "privserve-query")
        self._requests = ThreadPoolExecutor(MAX_CONCURRENT * len(parties), "privserve-request")
        self._model: _Model | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._queries.shutdown(wait=False, cancel_futures=True)
        self._requests.shutdown(wait=False, cancel_futures=True)
        for peer in self._peers:
            peer.http.close()

    def query_model(self, x: Inputs, *, logits: bool = False, named: bool = False) -> Any:
        """Return the model's prediction for `x`, as Keras would give it, learnt by nobody else.

        x: real numbers in the Keras layout with a batch axis, such as (B, 28, 28, 1); for
        several inputs a list in the model's order or a dict by name. Returns float32 of
        Keras' output shape, a list in the model's order for several outputs; with named=True
        a dict by the outputs' names; with logits=True what goes into the final activation, but
        log-probabilities where that is a softmax: its input is told up to a constant only.
        Raises InputError or RangeError for an x that does not fit, GuessedRangeError (a
        RangeError) where x takes a deep model out of the ranges that were guessed when it was
        shared, LimitReached or NotServing when nobody answers queries now, ClusterError when a
        party is gone.
        """
        model, shares = self._asked(x)
        described = model.description
        if described["guards"]:
            _check_guards(described["guards"], sharing.join([parts[-1] for parts in shares]))
            shares = [parts[:-1] for parts in shares]
        outputs = {}
        bits = described["output_fraction_bits"]
        for tensor, parts in zip(described["outputs"], zip(*shares, strict=True), strict=True):
            values = joined(parts, tensor["activation"], bits, logits=logits)
            outputs[tensor["name"]] = values.astype(np.float32)
        if named:
            return outputs
        return next(iter(outputs.values())) if len(outputs) == 1 else list(outputs.values())

    def query_model_async(
        self, x: Inputs, *, logits: bool = False, named: bool = False
    ) -> Future[Any]:
        """Begin `query_model` in the background; returns a future of its result."""
        return self._queries.submit(self.query_model, x, logits=logits, named=named)

    def _asked(self, x: Inputs) -> tuple[_Model, list[list[RingArray]]]:
        """The model that was asked, and the answers by party and output.

        A client may outlive a model: what it knows of number formats belongs to one session,
        which the query names. Where that is over, the model is read and asked once more.
        """
        model = self._model or self._read_model()
        try:
            return model, self._ask(model, _encode(model, x))
        except QueryError as error:
            if isinstance(error, StaleSession) or error.status == 404:
                with self._lock:
                    if self._model is model:
                        self._model = None
            if not isinstance(error, StaleSession):
                raise  # 404: another model is shared by now, which need not be what was meant
        model = self._read_model()
        try:
            return model, self._ask(model, _encode(model, x))
        except StaleSession:
            raise NotServing("the model is being shared anew; try again in a moment") from None

    def _ask(self, model: _Model, elements: dict[str, RingArray]) -> list[list[RingArray]]:
        """Send one share to each party; their answers, by party and output."""
        split = {name: sharing.split(e, len(self._peers)) for name, e in elements.items()}
        query_id = uuid4().hex
        futures = [
            self._requests.submit(
                self._infer, peer, model, query_id, {name: s[i] for name, s in split.items()}
            )
            for i, peer in enumerate(self._peers)
        ]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future in done and future.exception() is not None:
                raise future.exception()  # type: ignore[misc]
        return [future.result() for future in futures]

    def _infer(
        self, peer: _Peer, model: _Model, query_id: str, share: dict[str, RingArray]
    ) -> list[RingArray]:
        parts, headers = oip.format_message({"id": query_id}, share, "inputs")
        path = f"/v2/models/{model.name}/versions/{model.session}/infer"
        headers = {**headers, **peer.authorization}
        response = self._call(peer, "POST", path, content=b"".join(parts), headers=headers)
        length = response.headers.get(oip.HEADER_LENGTH)
        try:
            message, tensors = oip.parse_message(response.content, length, "outputs")
            if message.get("id") != query_id:
                raise InputError("it answers another query")
            answers = [tensors[tensor["name"]] for tensor in model.description["outputs"]]
            return [*answers, tensors[oip.GUARDS]] if model.description["guards"] else answers
        except (InputError, KeyError) as error:
            raise ClusterError(f"{peer.name} gave a malformed answer: {error}") from None

    def _call(self, peer: _Peer, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = peer.http.request(
                method, path, extensions={"sni_hostname": peer.identity}, **options
            )
        except httpx.TransportError as error:
            raise unreachable(peer.name, peer.address, error) from None
        except RuntimeError:
            raise ClusterError("this client's connections were closed or made anew") from None
        raise_for_answer(response, peer.name)
        return response

    def _facts(self, peer: _Peer, path: str) -> dict[str, Any]:
        """The JSON object that a party answers with."""
        try:
            facts = self._call(peer, "GET", path).json()
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise ClusterError(f"{peer.name} gave a malformed answer: it is no JSON object")
        return facts

    def _connect(self, address: str) -> httpx.Client:
        return connections(address, self._revocations.context, self._timeout, MAX_CONCURRENT)

    def _learn_revoked(self) -> list[ClusterError | QueryError]:
        """Ask every party for the list of revoked certificates, and go by the newest one.

        Where that is news, connections are made anew, and why parties were not heard is returned.
        """
        news, unheard = [], []
        for peer in self._peers:
            try:
                listed = self._call(peer, "GET", "/privserve/revoked").content
                news.append(self._revocations.learn(listed, peer.name))
            except (ClusterError, QueryError) as error:
                unheard.append(error)
        if any(news):
            anew = [replace(peer, http=self._connect(peer.address)) for peer in self._peers]
            before, self._peers = self._peers, anew
            for peer in before:
                peer.http.close()
        elif unheard:
            raise unheard[0]
        return unheard

    def _read_model(self) -> _Model:
        """Check that these are all compute parties of one cluster, and read their model."""
        with self._lock:
            if self._model is not None:
                return self._model
            unheard = self._learn_revoked()
            about = [self._facts(peer, "/v2") for peer in self._peers]
            if unheard:
                raise unheard[0]
            _check_roles(self._peers, about)
            served = about[0].get("models")
            name = served[0] if isinstance(served, list) and served else "none"
            described = [self._facts(peer, f"/v2/models/{name}") for peer in self._peers]
            for peer, other in zip(self._peers, described, strict=True):
                if other != described[0]:
                    raise ClusterError(f"{peer.name} describes another model than the others do")
            self._model = _parse_model(self._peers[0].name, described[0])
            return self._model


def _resolve(cluster: Any, ca: str | Path | None) -> tuple[list[tuple[str, str, str]], Path, Path]:
    """((name, http address, identity) of each compute party, the ca.pem, where files are)."""
    if isinstance(cluster, str | Path):
        cluster = read_config(cluster)
    config = getattr(cluster, "config", cluster)
    if isinstance(config, ClusterConfig):
        parties = [(p.name, p.http, config.identity(p.name)) for p in config.compute]
        return parties, Path(ca or config.ca), config.path.parent
    if isinstance(config, Sequence) and config and ca is not None:
        found = introduced([str(address) for address in config], Path(ca))
        return found, Path(ca), Path(ca).parent
    raise ConfigError(
        "name the cluster: a cluster.toml, a started Cluster, or the compute parties' addresses "
        "with ca="
    )


def _client_key(given: str | Path | None, beside: Path) -> ClientKey | None:
    """The key of the file that was named, or of the one beside the cluster's other files."""
    if given is None:
        given = beside / KEY_FILE
        if not given.exists():
            return None
    return ClientKey.read(Path(given))


def _authorization(client: ClientKey | None, identity: str) -> dict[str, str]:
    if client is None:
        return {}
    party, cluster = identity.split(".")[:2]
    return {"Authorization": client.authorization(cluster, party)}


def _check_roles(peers: Sequence[_Peer], about: Sequence[Mapping[str, Any]]) -> None:
    expected = about[0].get("compute_parties", [])
    for peer, facts in zip(peers, about, strict=True):
        if facts.get("role") != "compute":
            raise ConfigError(
                f"{facts.get('party')} at {peer.address} is the dealer and takes no queries; "
                f"name the compute parties ({', '.join(expected)}) instead"
            )
    found = [str(facts.get("party")) for facts in about]
    if sorted(found) != sorted(expected):
        raise ConfigError(
            f"a query needs every compute party ({', '.join(expected)}), "
            f"but the addresses given are those of {', '.join(found)}"
        )


def _parse_model(party: str, described: Mapping[str, Any]) -> _Model:
    """Read what a party's front says of its model; raises ClusterError where it is malformed."""
    try:
        outputs = [
            {**_unbatched(tensor), **{key: tensor["parameters"][key] for key in OF_OUTPUTS}}
            for tensor in described["outputs"]
        ]
        inputs = [_unbatched(tensor) for tensor in described["inputs"]]
        facts = described["parameters"]
        return _Model(
            name=str(described["name"]),
            session=str(described["versions"][0]),
            description=read_description({**facts, "inputs": inputs, "outputs": outputs}),
            max_rows=int(facts["max_rows"]),
        )
    except (InputError, LookupError, TypeError, ValueError) as error:
        raise ClusterError(f"{party} gave a malformed answer: {error}") from None


def _unbatched(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor's name and its shape without the batch axis."""
    return {"name": tensor["name"], "shape": tensor["shape"][1:]}


def _check_guards(layers: Sequence[str], flags: RingArray) -> None:
    """Raise GuessedRangeError unless all flags, int64[rows, layers, words], are zero."""
    left: dict[int, list[str]] = {}
    for row, guard in zip(*np.nonzero(np.any(flags, axis=2)), strict=True):
        names = left.setdefault(int(row), [])
        if layers[int(guard)] not in names:
            names.append(layers[int(guard)])
    if not left:
        return
    first = next(iter(left))
    rows = ", ".join(map(str, list(left)[:10])) + (", ..." if len(left) > 10 else "")
    raise GuessedRangeError(
        f"there is no answer: in layer '{left[first][0]}' a value left the range that was guessed "
        f"from samples when the model was shared (row {rows} of {len(flags)}); leave such rows "
        "away, or have the model shared with calibration samples that include their like or with "
        "a narrower input range",
        left,
    )


def _encode(model: _Model, x: Inputs) -> dict[str, RingArray]:
    """Check every input and encode it; int64 by input name."""
    described = model.description
    given = by_name({tensor["name"]: tensor["shape"] for tensor in described["inputs"]}, x)
    elements: dict[str, RingArray] = {}
    rows: dict[str, int] = {}
    for tensor in described["inputs"]:
        values = _check(tensor, given[tensor["name"]], model)
        rows[tensor["name"]] = len(values)
        elements[tensor["name"]] = fixedpoint.encode(values, described["fraction_bits"])
    if len(set(rows.values())) != 1:
        found = ", ".join(f"{count} of '{name}'" for name, count in rows.items())
        raise InputError(f"all inputs need the same number of rows, not {found}")
    return elements


def _check(tensor: TensorDescription, values: ArrayLike, model: _Model) -> NDArray[np.float64]:
    name, shape = tensor["name"], tuple(tensor["shape"])
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"input '{name}' is not a rectangular array") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"input '{name}' must hold real numbers, not {array.dtype}")
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        hint = "; add a batch axis: x[None]" if array.shape == shape else ""
        raise InputError(
            f"input '{name}' must have the shape {batched(shape)}, not {array.shape}{hint}"
        )
    if not 1 <= len(array) <= model.max_rows:
        raise InputError(
            f"a query holds 1 to {model.max_rows} rows, not {len(array)}; split it into several"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise RangeError(f"input '{name}' contains NaN or infinity")
    low, high = model.description["input_range"]
    if array.min() < low or array.max() > high:
        raise RangeError(
            f"input '{name}' holds values from {array.min():g} to {array.max():g}, outside "
            f"[{low:g}, {high:g}], for which the model was shared; scale the input as for training "
            "(pixels / 255?) or have the model shared with a wider input range"
        )
    return array
