"""The gateway to a cluster with several models: by name, listed, replaced under its requests."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from gateway_process import GatewayProcess, gateway
from serving import free_workers
from several import Askers, net, numbers_for, quiet, served
from test_http_front import ask, request_of

import privserve as ps

X4, X6 = numbers_for("four"), numbers_for("six", 2)


def infer(front: GatewayProcess, name: str, x: np.ndarray) -> np.ndarray:
    asked = request_of(x, "input")
    status, _, said = ask(front.http, "POST", f"/v2/models/{name}/infer", asked)
    assert status == 200, said
    (output,) = said["outputs"]
    return np.reshape(output["data"], output["shape"])


def index(front: GatewayProcess, **asked: bool) -> dict[str, str]:
    path, body = "/v2/repository/index", json.dumps(asked).encode()
    status, _, said = ask(front.http, "POST", path, body)
    assert status == 200, said
    return {entry["name"]: entry["state"] for entry in said}


@pytest.mark.usefixtures("tag")
def test_the_gateway_serves_every_model_and_follows_them() -> None:
    with ps.Cluster(*free_workers()) as cluster, net("four") as four, net("six") as six:
        four.share(cluster, report=quiet)
        with served(cluster, four), gateway(cluster.config.path) as front:
            np.testing.assert_allclose(
                infer(front, "four", X4), four.converted.predict(X4), atol=1e-2
            )
            assert ask(front.http, "GET", "/v2/models/six/ready")[0] == 404
            six.share(cluster, report=quiet)
            assert index(front) == {"four": "READY", "six": "UNAVAILABLE"}
            assert index(front, ready=True) == {"four": "READY"}
            status, _, said = ask(front.http, "GET", "/v2/models/six/ready")
            assert (status, "does not serve it now" in said["error"]) == (503, True)
            with served(cluster, six):
                assert ask(front.http, "GET", "/v2/models/six/ready")[0] == 200
                np.testing.assert_allclose(
                    infer(front, "six", X6), six.converted.predict(X6), atol=1e-2
                )
                status, _, said = ask(front.http, "POST", "/v2/models/seven/infer", b"{}")
                assert (status, "'four', 'six'" in said["error"]) == (404, True)
                replace_under_requests(cluster, front, four)
                np.testing.assert_allclose(
                    infer(front, "six", X6), six.converted.predict(X6), atol=1e-2
                )
            assert ask(front.http, "GET", "/v2/health/ready")[0] == 503, "none is served any more"
            front.stop()


def replace_under_requests(
    cluster: ps.Cluster, front: GatewayProcess, before: ps.SecureModel
) -> None:
    after = net("four", 2)
    asking = Askers(
        [partial(infer, front, "four", X4)] * 3,
        [before.converted.predict(X4), after.converted.predict(X4)],
    )
    asking.wait_for(0)
    after.share(cluster, report=quiet)
    with served(cluster, after):
        asking.wait_for(1)
        asking.stop()
        (told,) = [m for m in cluster.models() if m.name == "four" and m.place == "current"]
        assert told.answered == asking.counts[1]
    after.stop()
