"""Triton's own HTTP client, as it is on PyPI, infers on shares: one client for each compute party.

The model has two outputs and guarded ranges. What the client sends is encoded and split, and what
it gets is joined, with the formats that the model's metadata tell; all else is the client's.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import gevent.ssl
import numpy as np
import pytest
import torch
from serving import client_headers, free_workers, serving, wait_until
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

import privserve as ps
from privserve import fixedpoint, oip, sharing

X = np.linspace(-1, 1, 48).reshape(3, 16)
OUTPUTS = ["output_0", "output_1"]
TOLERANCE = 2e-2


class Deep(torch.nn.Module):
    """So deep that no sound bound fits in the ring: its ranges are guessed, and guarded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        layers: list[torch.nn.Module] = []
        for _ in range(30):
            linear = torch.nn.Linear(16, 16)
            torch.nn.init.normal_(linear.weight, std=0.35)
            layers += [linear, torch.nn.ReLU()]
        self.trunk = torch.nn.Sequential(*layers)
        self.first, self.second = torch.nn.Linear(16, 2), torch.nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.trunk(x)
        return self.first(hidden), self.second(hidden)


def trusting(ca: str) -> gevent.ssl.SSLContext:
    """gevent's `create_default_context` makes sockets that block: no two clients could wait."""
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    return context


class Tritons:
    """A client of Triton's for each compute party of a cluster, and what it shows there."""

    def __init__(self, cluster: ps.Cluster, model: ps.SecureModel) -> None:
        self.model = model
        self.parties = cluster.config.parties
        self.all = {
            party.name: InferenceServerClient(
                party.address,
                ssl=True,
                ssl_options={"server_hostname": cluster.config.identity(party.name)},
                ssl_context_factory=partial(trusting, str(cluster.config.ca)),
                concurrency=2,
                network_timeout=30.0,
            )
            for party in self.parties
        }
        self.compute = [self.all[party.name] for party in cluster.config.compute]
        self.shown = [
            client_headers(cluster.config, party.name) for party in cluster.config.compute
        ]
        self.about: dict[str, Any] = self.compute[0].get_model_metadata("deep")
        self.version = self.about["versions"][0]
        self.name = self.about["inputs"][0]["name"]

    def ask(
        self,
        rows: slice = slice(0, 2),
        outputs: list[InferRequestedOutput] | None = None,
        *,
        binary: bool = True,
        **options: Any,
    ) -> list[InferResult]:
        """Ask both parties for these rows of X; what each answers."""
        bits = self.about["parameters"]["fraction_bits"]
        shares = sharing.split(fixedpoint.encode(X[rows], bits), 2)
        options.setdefault("request_id", uuid4().hex)
        options.setdefault("model_version", self.version)
        waiting = []
        for triton, headers, share in zip(self.compute, self.shown, shares, strict=True):
            tensor = InferInput(self.name, list(share.shape), "INT64")
            tensor.set_data_from_numpy(share, binary_data=binary)
            options["headers"] = dict(headers)  # it adds to them
            waiting.append(triton.async_infer("deep", [tensor], outputs=outputs, **options))
        results: list[InferResult] = []
        errors: list[InferenceServerException] = []
        for answer in waiting:  # all are read: a connection serves nobody else before
            try:
                results.append(answer.get_result())
            except InferenceServerException as error:
                errors.append(error)
        for error in errors:
            raise error
        return results

    def joined(self, results: list[InferResult], name: str) -> np.ndarray:
        joined = sharing.join([result.as_numpy(name) for result in results])
        return fixedpoint.decode(joined, self.about["parameters"]["output_fraction_bits"])

    def check(self, results: list[InferResult], rows: slice, names: list[str]) -> None:
        """The answers hold these outputs, rightly, and guards that sum to zero; nothing else."""
        expected = dict(zip(OUTPUTS, self.model.converted.predict(X[rows]), strict=True))
        for result in results:
            told = result.get_response()
            assert [output["name"] for output in told["outputs"]] == [*names, oip.GUARDS]
            assert (told["model_name"], told["model_version"]) == ("deep", self.version)
        for name in names:
            np.testing.assert_allclose(self.joined(results, name), expected[name], atol=TOLERANCE)
        assert not sharing.join([result.as_numpy(oip.GUARDS) for result in results]).any()


@pytest.fixture(scope="module")
def tritons() -> Iterator[Tritons]:
    with (
        ps.Cluster(*free_workers()) as cluster,
        ps.load_model(Deep(), input_shape=(16,), name="deep") as model,
    ):
        with pytest.warns(UserWarning, match="guessed"):
            model.share(cluster)
        with serving(cluster, model):
            found = Tritons(cluster, model)
            yield found
            for triton in found.all.values():
                triton.close()


ROWS = slice(0, 2)


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_it_infers_with_bytes_and_json_compressed_or_not(
    tritons: Tritons, packed: str | None, binary: bool
) -> None:
    results = tritons.ask(
        ROWS,
        binary=binary,
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
        request_id=(name := uuid4().hex),
    )
    tritons.check(results, ROWS, OUTPUTS)
    assert [result.get_response()["id"] for result in results] == [name, name]


def test_it_gets_the_outputs_that_it_asks_for_as_bytes_and_as_json(tritons: Tritons) -> None:
    for second, first in ((True, True), (True, False), (False, True), (False, False)):
        wanted = [
            InferRequestedOutput("output_1", binary_data=second),
            InferRequestedOutput("output_0", binary_data=first),
        ]
        results = tritons.ask(ROWS, wanted)
        tritons.check(results, ROWS, ["output_1", "output_0"])
        for name, is_raw in (("output_1", second), ("output_0", first)):
            for result in results:
                assert ("data" in result.get_output(name)) is not is_raw
    alone = tritons.ask(slice(2, 3), [InferRequestedOutput("output_1")])
    tritons.check(alone, slice(2, 3), ["output_1"])


def refused(tritons: Tritons, status: int, **options: Any) -> str:
    with pytest.raises(InferenceServerException) as error:
        tritons.ask(ROWS, **options)
    assert error.value.status() == str(status), error.value
    return str(error.value.message())


def test_what_it_may_not_ask_for_is_said(tritons: Tritons) -> None:
    unknown = [InferRequestedOutput("output_2")]
    assert "no output 'output_2'; it has 'output_0'" in refused(tritons, 400, outputs=unknown)
    classes = [InferRequestedOutput("output_0", class_count=3)]
    assert "'classification'" in refused(tritons, 400, outputs=classes)
    assert "'priority'" in refused(tritons, 400, priority=1)
    sequence = {"sequence_id": 7, "sequence_start": True}
    assert "'sequence_id'" in refused(tritons, 400, **sequence)
    assert "'mine'" in refused(tritons, 400, parameters={"mine": 1})
    assert f"versions/{tritons.version}/infer" in refused(tritons, 409, model_version="")
    assert "shared anew" in refused(tritons, 409, model_version="1")
    assert "the query's time was up" in refused(tritons, 504, timeout=1)
    tritons.check(tritons.ask(ROWS, timeout=60_000_000), ROWS, OUTPUTS)


@pytest.mark.parametrize("datatype", ["FP32", "INT32", "UINT64", "BOOL"])
def test_a_datatype_that_is_no_shares_is_refused_with_its_name(
    tritons: Tritons, datatype: str
) -> None:
    tensor = InferInput(tritons.name, [1, 16], datatype)
    kind = {"FP32": np.float32, "INT32": np.int32, "UINT64": np.uint64, "BOOL": np.bool_}[datatype]
    tensor.set_data_from_numpy(np.zeros((1, 16), kind))
    with pytest.raises(InferenceServerException, match="is not INT64") as error:
        tritons.compute[0].infer(
            "deep", [tensor], tritons.version, headers=dict(tritons.shown[0]), request_id="typed"
        )
    assert error.value.status() == "400"


def test_it_reads_what_is_served(tritons: Tritons) -> None:
    for triton in tritons.compute:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert "statistics" in triton.get_server_metadata()["extensions"]
        for version in ("", tritons.version):
            assert triton.is_model_ready("deep", version)
            assert triton.get_model_metadata("deep", version) == tritons.about
            config = triton.get_model_config("deep", version)
            assert config["max_batch_size"] == tritons.about["parameters"]["max_rows"]
            assert [tensor["name"] for tensor in config["output"]] == OUTPUTS
            assert config["input"] == [
                {"name": tritons.name, "data_type": "TYPE_INT64", "dims": [16]}
            ]
        entry = {"name": "deep", "version": tritons.version, "state": "READY", "reason": ""}
        assert triton.get_model_repository_index() == [entry]
        assert not triton.is_model_ready("deep", "1")
        with pytest.raises(InferenceServerException, match="no version '1' of 'deep'") as error:
            triton.get_model_metadata("deep", "1")
        assert error.value.status() == "404"


def test_its_statistics_count_queries_rows_and_batches(tritons: Tritons) -> None:
    def counted() -> list[dict[str, Any]]:
        found = []
        for triton, headers in zip(tritons.compute, tritons.shown, strict=True):
            (facts,) = triton.get_inference_statistics(headers=headers)["model_stats"]
            found.append(facts)
            for name, version in (("deep", ""), ("deep", tritons.version)):
                again = triton.get_inference_statistics(name, version, headers=headers)
                assert again["model_stats"][0]["version"] == facts["version"] == tritons.version
        return found

    before = counted()
    for _ in range(3):
        tritons.ask(ROWS)
    refused(tritons, 504, timeout=1)

    def differ(key: str) -> list[int]:
        pairs = zip(before, counted(), strict=True)
        return [
            new["inference_stats"][key]["count"] - old["inference_stats"][key]["count"]
            for old, new in pairs
        ]

    wait_until(lambda: differ("success") == [3, 3], "the answered ones are counted")
    wait_until(lambda: differ("fail") == [1, 1], "the refused one is counted")
    assert differ("queue") == differ("compute_infer") == [3, 3]
    for old, new in zip(before, counted(), strict=True):
        assert new["inference_count"] - old["inference_count"] == 6
        assert new["execution_count"] - old["execution_count"] == 3
        took = {key: value["ns"] for key, value in new["inference_stats"].items()}
        assert took["success"] >= took["queue"] + took["compute_infer"] > 0
        assert new["last_inference"] >= old["last_inference"] > 1_600_000_000_000
        sizes = {entry["batch_size"]: entry["compute_infer"] for entry in new["batch_stats"]}
        assert sum(entry["count"] for entry in sizes.values()) == new["execution_count"]
        assert "default" not in str(new), "statistics name no client"


def test_its_statistics_are_for_clients_only(tritons: Tritons) -> None:
    for triton in tritons.compute:
        with pytest.raises(InferenceServerException, match="does not know the client"):
            triton.get_inference_statistics("deep")


def test_what_a_party_does_not_do_is_said(tritons: Tritons) -> None:
    for triton in tritons.all.values():
        with pytest.raises(InferenceServerException, match="only the model owner"):
            triton.load_model("deep")
        with pytest.raises(InferenceServerException, match="only the model owner"):
            triton.unload_model("deep")
        shared = [
            lambda t=triton: t.get_system_shared_memory_status(),
            lambda t=triton: t.register_system_shared_memory("r", "/r", 64),
            lambda t=triton: t.unregister_system_shared_memory("r"),
            lambda t=triton: t.get_cuda_shared_memory_status("r"),
            lambda t=triton: t.unregister_cuda_shared_memory(),
        ]
        for call in shared:
            with pytest.raises(InferenceServerException, match="shares no memory"):
                call()
        settings = [
            lambda t=triton: t.get_trace_settings(),
            lambda t=triton: t.update_trace_settings("deep", {}),
            lambda t=triton: t.get_log_settings(),
            lambda t=triton: t.update_log_settings({}),
        ]
        for call in settings:
            with pytest.raises(InferenceServerException, match="what to trace or to log"):
                call()


def test_the_dealer_says_who_infers(tritons: Tritons) -> None:
    carol = tritons.all["carol"]
    assert carol.is_server_ready()
    assert not carol.is_model_ready("deep")
    with pytest.raises(InferenceServerException, match="carol is the dealer") as error:
        carol.get_model_metadata("deep")
    assert error.value.status() == "403"
