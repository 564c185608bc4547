"""The browser's client: its vectors, its arithmetic under Node, and Node asking real parties."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import web_vectors
from serving import ROOT, Digits

import privserve as ps
from privserve.credentials import KEY_FILE
from scripts import web_page

NODE = shutil.which("node")
LEAST_NODE = 20
SERVED = ROOT / "src" / "privserve" / "web"
HERE = Path(__file__).parent


def _node_version() -> int:
    if NODE is None:
        return 0
    said = subprocess.run([NODE, "--version"], capture_output=True, text=True, timeout=20).stdout
    return int(said.strip().removeprefix("v").partition(".")[0])


needs_node = pytest.mark.skipif(_node_version() < LEAST_NODE, reason="there is no Node 20 here")


def same(found: Any, wanted: Any) -> bool:
    """Whether both are the same but for the last bits of reals, which go by NumPy's build."""
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-12, abs_tol=1e-300)
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], wanted[k]) for k in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)


def test_the_vectors_are_what_the_python_client_makes_of_them() -> None:
    assert same(json.loads(web_vectors.as_text()), json.loads(web_vectors.VECTORS.read_text()))


def test_the_page_is_what_its_sources_make() -> None:
    assert web_page.page() == web_page.PAGE.read_text()


def test_the_types_name_what_the_module_exports() -> None:
    export = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)
    of_module = export.findall((SERVED / "privserve-client.js").read_text())
    of_types = export.findall((SERVED / "privserve-client.d.ts").read_text())
    assert sorted(of_module) == sorted(of_types)


@needs_node
def test_the_module_goes_by_the_vectors() -> None:
    ran = subprocess.run(
        [str(NODE), "--test", str(HERE / "client.test.mjs")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "# tests 0" not in ran.stdout


@needs_node
def test_node_asks_running_parties_and_is_told_what_the_python_client_is(digits: Digits) -> None:
    """By their own ports, whose certificates the cluster's authority signed."""
    config = digits.cluster.config
    x = digits.images[:3]
    asked = {
        "parties": [f"https://{p.address}" for p in config.compute],
        "key": (config.path.parent / KEY_FILE).read_text(),
        "cluster": config.cluster,
        "x": {"data": x.reshape(-1).tolist(), "shape": list(x.shape)},
    }
    with digits.serving(), ps.Client(digits.cluster, timeout=30) as client:
        ran = subprocess.run(
            [str(NODE), str(HERE / "ask.mjs")],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(config.ca)},
        )
        assert ran.returncode == 0, ran.stderr
        said = json.loads(ran.stdout)
        assert np.allclose(said["probabilities"], client.query_model(x).reshape(-1), atol=0.02)
        logs = client.query_model(x, logits=True).reshape(-1)
        assert np.allclose(said["logits"], logs, atol=0.05)
    assert said["stranger"] == "unknown_client"
    assert said["range"] == "InputRangeError"
