"""The compose files: what they start, under which limits, and that the schema allows it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from invited import NAMES
from serving import ROOT

COMPOSE = ROOT / "deploy" / "compose"
FILES = ("common.yaml", "party.yaml", "trial.yaml")
SCHEMA = ("docker-compose==1.29.2", "compose/config/compose_spec.json")
"""The last package of PyPI that carries the Compose Specification's schema, of 2021."""


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / name).read_text())


def services(name: str) -> dict[str, dict[str, Any]]:
    """A file's services with what they extend, as compose merges them: its own keys win."""
    found = {}
    for service, own in read(name)["services"].items():
        extended = own.pop("extends")
        found[service] = {**read(extended["file"])["services"][extended["service"]], **own}
    return found


@pytest.mark.parametrize(
    ("name", "service"), [("party.yaml", "party"), *(("trial.yaml", party) for party in NAMES)]
)
def test_a_party_in_a_container_may_do_nothing_but_serve(name: str, service: str) -> None:
    party = services(name)[service]
    assert party["read_only"] is True
    assert party["cap_drop"] == ["ALL"]
    assert party["security_opt"] == ["no-new-privileges:true"]
    image = (ROOT / "deploy" / "party" / "Dockerfile").read_text()
    assert f"\nUSER {party['user']}\n" in image
    assert party["ulimits"]["core"] == 0
    assert party["memswap_limit"] == party["mem_limit"]  # no swap
    assert "privileged" not in party
    files, state = party["volumes"]
    assert (files["target"], files["read_only"]) == ("/etc/privserve", True)
    assert (state["type"], state["target"]) == ("volume", "/var/lib/privserve")
    assert state["source"] in read(name)["volumes"]
    assert party["tmpfs"][0].startswith("/var/cache/privserve:uid=10001,")


def test_one_party_listens_wherever_its_container_is_reached() -> None:
    party = services("party.yaml")["party"]
    assert party["command"] == ["--name", "${PARTY}", "--listen", "0.0.0.0:4000"]
    assert party["ports"] == ["${PORT:-4000}:4000"]
    assert party["healthcheck"]["test"][-1] == "4000"


def test_the_trials_parties_share_the_machines_network_and_no_port() -> None:
    """With the addresses that its head tells to make the cluster with."""
    (hosts,) = re.findall(r"--hosts (?:\\\n# +)?(\S+)", (COMPOSE / "trial.yaml").read_text())
    found = services("trial.yaml")
    assert tuple(found) == NAMES
    for name, address in zip(NAMES, hosts.split(","), strict=True):
        party = found[name]
        assert party["command"] == ["--name", name]
        assert party["network_mode"] == "host"
        assert address == f"127.0.0.1:{party['healthcheck']['test'][-1]}"
        assert party["volumes"][0]["source"].endswith(f"/{name}")
        assert party["volumes"][1]["source"] == name


def test_the_image_is_built_from_the_dockerfile() -> None:
    build = read("common.yaml")["services"]["party"]["build"]
    root = (COMPOSE / build["context"]).resolve()
    assert root == ROOT
    assert (root / build["dockerfile"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_compose_specification_allows_every_file(name: str, tmp_path: Path) -> None:
    """Needs the package index."""
    package, member = SCHEMA
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    subprocess.run([*command, "--dest", str(tmp_path)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        schema = json.loads(opened.read(member))
    validator = jsonschema_rs.Draft7Validator(schema)
    document = read(name)
    document.pop("name", None)  # younger than this schema
    validator.validate(document)
    next(iter(document["services"].values()))["read_onyl"] = True
    assert not validator.is_valid(document)
