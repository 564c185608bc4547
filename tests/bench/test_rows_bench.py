"""`python -m privserve.bench.rows`: the command is timed, its answers are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving import Digits

from privserve.bench.load_client import Samples
from privserve.bench.rows import Run, line_through, medians, report, run_once
from privserve.errors import PrivserveError


def test_a_line_through_the_times_tells_a_start_from_a_row() -> None:
    start, each, off = line_through([Run(n, 0.5 + 0.002 * n, 0) for n in (100, 300, 1000)])
    assert start == pytest.approx(0.5)
    assert each == pytest.approx(0.002)
    assert off < 1e-9
    assert line_through([Run(100, 1.0, 0), Run(200, 3.0, 0), Run(300, 3.0, 0)])[2] > 0.1


def test_medians_keep_every_wrong_row_and_the_report_says_them() -> None:
    runs = [Run(10, 1.0, 0), Run(20, 2.0, 0), Run(10, 9.0, 3), Run(10, 2.0, 0), Run(20, 4.0, 1)]
    found = medians(runs)
    assert found == [Run(10, 2.0, 3), Run(20, 3.0, 1)]
    lines = report(found).splitlines()
    assert lines[2].split() == ["10", "2.00", "5", "3"]
    assert "1.00 s to start and 100.000 ms a row" in lines[-1]


def test_the_command_is_run_and_wrong_answers_are_counted(digits: Digits, tmp_path: Path) -> None:
    inputs = np.asarray(digits.images[:50], dtype=np.float64)
    expected = digits.model.converted.predict(inputs.astype(np.float32))
    config = digits.cluster.config.path
    with digits.serving():
        right = run_once(tmp_path, config, Samples(inputs, (expected,), (0.1,)), 120, ())
        assert (right.rows, right.wrong) == (120, 0)
        assert right.rate > 1
        expected[7] += 1.0
        wrong = run_once(tmp_path, config, Samples(inputs, (expected,), (0.1,)), 120, ())
        assert wrong.wrong == 3
        with pytest.raises(PrivserveError, match="ended with 2"):
            run_once(tmp_path, config, Samples(inputs, (expected,), (0.1,)), 120, ["--nonsense"])
