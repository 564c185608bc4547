"""A cable that is really pulled, between hosts with networks of their own: TCP meets it itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fault_play import Play
from fault_table import cell
from namespaces import NamespacedHosts, are_permitted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not are_permitted(), reason="namespaces of networks take root"),
]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespacedHosts]:
    made = NamespacedHosts(tmp_path_factory.mktemp("cables"))
    yield made
    made.close()


@pytest.mark.parametrize("victim", ["alice", "bob", "carol", "owner", "client"])
@pytest.mark.parametrize("phase", ["answering", "healing"])
def test_it_comes_to_what_the_table_says(hosts: NamespacedHosts, victim: str, phase: str) -> None:
    Play(hosts, cell("cut off", victim, phase)).run()
