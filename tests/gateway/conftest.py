"""One gateway for all tests that leave it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_process import GatewayProcess, gateway
from serving import Digits


@pytest.fixture(scope="session")
def front(digits: Digits) -> Iterator[GatewayProcess]:
    """A gateway to the running cluster, as its own process."""
    with gateway(digits.cluster.config.path) as running:
        yield running
