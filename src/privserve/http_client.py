"""A client's queries over HTTP, where a party, or what stands before it, speaks nothing else."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any
from urllib.parse import quote

import httpx

from privserve import oip
from privserve.addresses import join_address, reachable, split_address
from privserve.calls import raise_for_answer, unreachable
from privserve.errors import ClusterError, InputError, QueryError, several_models
from privserve.fixedpoint import RingArray
from privserve.lane_connection import Peer
from privserve.served_model import ServedModel

MAX_CONCURRENT = 32
CONNECT_SECONDS = 5.0
"""For each of a party's addresses, where it has several."""


class HttpClient:
    """Asks all compute parties at once, one request to each. Thread-safe."""

    def __init__(self, peers: Sequence[Peer], context: ssl.SSLContext, seconds: float) -> None:
        """context: whom to trust; `seconds` are for each request."""
        self.model = ""
        """Which the parties are to tell of; empty: the only one there is."""
        self._context, self._seconds = context, seconds
        self._peers = [(peer, self._connected(peer)) for peer in peers]
        self._requests = ThreadPoolExecutor(MAX_CONCURRENT * len(peers), "privserve-request")

    def _connected(self, peer: Peer) -> httpx.Client:
        address = reachable(peer.addresses, CONNECT_SECONDS)
        return httpx.Client(
            base_url=f"https://{join_address(*split_address(address))}",
            verify=self._context,
            timeout=self._seconds,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=MAX_CONCURRENT),
            trust_env=False,
        )

    def reconnect(self) -> None:
        """Make all connections anew."""
        before = self._peers
        self._peers = [(peer, self._connected(peer)) for peer, _ in before]
        for _, http in before:
            http.close()

    def about(self) -> list[dict[str, Any]]:
        """Return what each party says of itself and of `model`."""
        said = []
        for peer, http in self._peers:
            facts = self._facts(peer, http, "/v2")
            facts["revoked"] = self._call(peer, http, "GET", "/privserve/revoked").text
            if facts.get("role") == "compute":
                try:
                    name = quote(self._wanted(facts.get("models")), safe="")
                    facts["model"] = self._facts(peer, http, f"/v2/models/{name}")
                except QueryError as error:
                    facts["error"] = {
                        "error": str(error),
                        "code": error.code,
                        "status": error.status,
                    }
            said.append(facts)
        return said

    def _wanted(self, served: object) -> str:
        """Which of the models that a party names is meant; raises QueryError where many could."""
        names = [str(name) for name in served] if isinstance(served, list) else []
        if self.model or len(names) < 2:
            return self.model or (names[0] if names else "none")
        raise QueryError(several_models(names), 409)

    def ask(
        self, model: ServedModel, query_id: bytes, split: Sequence[dict[str, RingArray]]
    ) -> list[list[RingArray]]:
        """Send one share to each party; their answers, by party and output."""
        futures = [
            self._requests.submit(self._infer, peer, http, model, query_id.hex(), share)
            for (peer, http), share in zip(self._peers, split, strict=True)
        ]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future in done and future.exception() is not None:
                raise future.exception()  # type: ignore[misc]
        return [future.result() for future in futures]

    def _infer(
        self,
        peer: Peer,
        http: httpx.Client,
        model: ServedModel,
        query_id: str,
        share: dict[str, RingArray],
    ) -> list[RingArray]:
        asked = {"id": query_id, "parameters": {"binary_data_output": True}}
        parts, headers = oip.format_message(asked, share, "inputs")
        path = f"/v2/models/{model.name}/versions/{model.session}/infer"
        if peer.authorization:
            headers["Authorization"] = peer.authorization
        response = self._call(peer, http, "POST", path, content=b"".join(parts), headers=headers)
        length = response.headers.get(oip.HEADER_LENGTH)
        try:
            message, tensors = oip.parse_message(response.content, length, "outputs")
            if message.get("id") != query_id:
                raise InputError("it answers another query")
            answers = [tensors[tensor["name"]] for tensor in model.description["outputs"]]
            return [*answers, tensors[oip.GUARDS]] if model.description["guards"] else answers
        except (InputError, KeyError) as error:
            raise ClusterError(f"{peer.name} gave a malformed answer: {error}") from None

    def _call(
        self, peer: Peer, http: httpx.Client, method: str, path: str, **options: Any
    ) -> httpx.Response:
        try:
            response = http.request(
                method, path, extensions={"sni_hostname": peer.identity}, **options
            )
        except httpx.TransportError as error:
            is_late = isinstance(error, httpx.TimeoutException)
            raise unreachable(peer.name, peer.address, error, is_late=is_late) from None
        except RuntimeError:
            raise ClusterError("this client's connections were closed or made anew") from None
        raise_for_answer(response, peer.name)
        return response

    def _facts(self, peer: Peer, http: httpx.Client, path: str) -> dict[str, Any]:
        """The JSON object that a party answers with."""
        try:
            facts = self._call(peer, http, "GET", path).json()
        except ValueError:
            facts = None
        if not isinstance(facts, dict):
            raise ClusterError(f"{peer.name} gave a malformed answer: it is no JSON object")
        return facts

    def close(self) -> None:
        """Close all connections."""
        self._requests.shutdown(wait=False, cancel_futures=True)
        for _, http in self._peers:
            http.close()
