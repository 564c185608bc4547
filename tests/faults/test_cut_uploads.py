"""A cable is cut while a model is on its way: its owner is told soon, whatever is left of it."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from faulty_link import Wires
from serving import free_workers, wait_until

import privserve as ps
from privserve import cell

BYTES = 8 << 20


@pytest.mark.slow
@pytest.mark.usefixtures("tag")
def test_a_model_that_gets_no_further_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took a minute, for which nothing was said."""
    monkeypatch.setattr(cell, "WRITE_SECONDS", 1.0)
    wires = Wires()
    with ps.Cluster(*free_workers(), directory=tmp_path / "made") as running:
        away = tmp_path / "away"
        shutil.copytree(running.config.path.parent, away)
        bob = running.config.parties[1].address
        link = wires.link(bob, seed=1)
        link.rate = 16 * BYTES  # so that there is a middle of it
        text = (away / "cluster.toml").read_text()
        (away / "cluster.toml").write_text(text.replace(bob, link.address))
        owner = ps.Cluster.connect(away / "cluster.toml", report=lambda line: None)
        net = torch.nn.Linear(2048, BYTES // 2048)
        with (
            ps.load_model(net, input_shape=(2048,), name="large") as model,
            ThreadPoolExecutor(1) as pool,
        ):
            shared = pool.submit(model.share, owner, report=lambda line: None)
            wait_until(lambda: link.carried > BYTES, "some of it is there", 60)
            link.cut()
            began = time.monotonic()
            with pytest.raises(ps.ClusterError, match=r"bob at .* did not answer in time"):
                shared.result(60)
            assert time.monotonic() - began < 30
            link.mend()
            model.stop()
        owner.stop()
    wires.close()
