"""`privserve status`: a cluster that is whole, one that is half dead, and none at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import SMALL, free_workers, make_config, serving, small_model, wait_until
from several import net

import privserve as ps
from privserve import onlooker, status


@pytest.fixture
def cluster(tag: str, tmp_path: Path) -> Iterator[ps.Cluster]:
    with ps.Cluster(*free_workers(), directory=tmp_path / "cluster") as cluster:
        yield cluster


def shown(config: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = status.main(["--config", str(config), *more])
    said = capsys.readouterr()
    assert said.err == ""
    return code, said.out


def row(text: str, first: str) -> list[str]:
    return next(line for line in text.splitlines() if line.split()[:1] == [first]).split()


def test_a_cluster_is_shown_while_it_lives_and_while_it_dies(
    cluster: ps.Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = cluster.config.path
    code, text = shown(config, capsys)
    assert code == 0
    assert "no model is shared" in text
    model = small_model()
    model.share(cluster, report=lambda line: None)
    with serving(cluster, model, 100), ps.Client(config, timeout=20) as client:
        for _ in range(4):
            client.query_model(np.repeat(SMALL, 2, axis=0))
        whole(config, capsys)
        for_anybody(config, capsys, tmp_path)
        stopped(cluster, config, capsys)
        half_dead(cluster, config, capsys)


def whole(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(config, capsys)
    assert code == 0
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["party", "role", "address"]
    for name, role in (("alice", "compute"), ("bob", "compute"), ("carol", "dealer")):
        found = row(text, name)
        assert found[1] == role
        assert found[-1] == "up"
        assert found[-3:-1] == ["90", "days"]
    assert row(text, "alice")[3] == "1", "a lane"
    served = row(text, "model")
    told = [line for line in lines if line.startswith("model ")][-1].split()
    assert served[:2] == ["model", "served"]
    assert told[:5] == ["model", "yes", "8", "100", "0"]
    assert told[-1] == "loaded"
    code, text = shown(config, capsys, "--json")
    found = json.loads(text)
    assert (code, found["ok"], found["owner"]) == (0, True, True)
    (one,) = found["models"]
    assert (one["serving"], one["answered"], one["limit"]) == (True, 8, 100)
    assert one["rows_per_second"] > one["p50_ms"] > 0
    assert all(party["memory"] > 10_000_000 for party in found["parties"])


def for_anybody(config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without the owner's key."""
    (tmp_path / "client").mkdir()
    for name in ("cluster.toml", "ca.pem"):
        shutil.copy(config.parent / name, tmp_path / "client")
    code, text = shown(tmp_path / "client" / "cluster.toml", capsys)
    assert code == 0
    assert "owner.key" in text
    assert row(text, "bob")[-1] == "up"
    assert [line.split() for line in text.splitlines() if line.startswith("model ")][-1][:3] == [
        "model",
        "yes",
        "-",
    ]


def stopped(cluster: ps.Cluster, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that its owner stopped is no fault."""
    net("six").share(cluster, report=lambda line: None)
    assert shown(config, capsys)[0] == 0
    cluster.stop_model("six")
    code, text = shown(config, capsys)
    assert code == 0
    assert row(text, "six")[-1] == "ended"
    assert "six: the model owner stopped the model" in text


def half_dead(cluster: ps.Cluster, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.revive = lambda tell: None  # type: ignore[method-assign]
    os.kill(cluster.process_ids["bob"], signal.SIGSTOP)
    began = time.monotonic()
    code, text = shown(config, capsys)
    assert code == 1
    assert onlooker.SECONDS <= time.monotonic() - began < 2 * onlooker.SECONDS
    assert "down: it gave no answer within 3 s" in text
    assert row(text, "alice")[-1] == "up", "the others are shown"
    os.kill(cluster.process_ids["bob"], signal.SIGKILL)
    wait_until(lambda: is_waiting(config, capsys), "alice notices that bob is gone")
    code, text = shown(config, capsys)
    assert code == 1
    assert "down: cannot reach bob at localhost:" in text
    assert row(text, "alice")[-5:] == ["up,", "no", "model", "is", "loaded"]
    told = [line.split() for line in text.splitlines() if line.startswith("model ")][-1]
    assert told[1] == "no", "it is not served now, whatever its queue says"
    assert told[-1] == "waiting"
    # He was stopped for as long as a silence may last: either is true; who saw it first is quoted.
    assert re.search("model: (carol says: )?bob (is gone|gave no sign of life)", text), text


def is_waiting(config: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    _, text = shown(config, capsys, "--json")
    return "waiting" in [model["state"] for model in json.loads(text)["models"]]


def test_a_cluster_that_is_not_there_is_three_rows_that_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, ["localhost:1", "localhost:2", "localhost:3"])
    code, text = shown(config.path, capsys)
    assert code == 1
    for name, port in (("alice", 1), ("bob", 2), ("carol", 3)):
        assert f"down: cannot reach {name} at localhost:{port}" in text
    code, text = shown(config.path, capsys, "--json")
    found = json.loads(text)
    assert (code, found["ok"], found["models"]) == (1, False, [])


def test_files_that_cannot_be_used_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(["--config", str(tmp_path / "none.toml")]) == 2
    assert "there is no" in capsys.readouterr().err
    config = make_config(tmp_path / "one", ["localhost:1", "localhost:2", "localhost:3"])
    other = make_config(tmp_path / "two", ["localhost:1", "localhost:2", "localhost:3"])
    shutil.copy(other.path.parent / "owner.key", config.path.parent)
    assert status.main(["--config", str(config.path)]) == 2
    assert "is not the key that" in capsys.readouterr().err


def test_watching_goes_on_until_ctrl_c_and_ends_with_how_it_was(tmp_path: Path, tag: str) -> None:
    config = make_config(tmp_path, ["localhost:1", "localhost:2", "localhost:3"])
    command = [sys.executable, "-m", "privserve", "status", "--watch", "--json"]
    watching = subprocess.Popen(
        [*command, "--config", str(config.path)], stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    try:
        looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
    finally:
        watching.send_signal(signal.SIGINT)
        rest, _ = watching.communicate(timeout=20)
    assert [look["ok"] for look in looks] == [False, False]
    assert watching.returncode == 1
    assert "Traceback" not in rest
