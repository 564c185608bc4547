"""What a command leaves behind: its exit code, and one line where it failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from privserve import certify, clients
from privserve.errors import ClusterError
from privserve.exit_codes import exit_code

ERRORS = {
    "one of ours": (ClusterError("bob is gone"), 2, "error: bob is gone\n"),
    "a file": (
        FileNotFoundError(2, "No such file or directory", "model.h5"),
        2,
        "error: model.h5: No such file or directory\n",
    ),
    "no file": (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
    "a text": (OSError("the line broke"), 2, "error: the line broke\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, ""),
}


@pytest.mark.parametrize(("error", "code", "said"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr() == ("", said)


def test_work_that_ends_says_its_own_code_and_ctrl_c_what_it_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert exit_code(lambda: 1) == 1
    assert exit_code(interrupted, "all is stopped") == 130
    assert capsys.readouterr().err == "all is stopped\n"


def test_a_bug_is_not_swallowed() -> None:
    def work() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code(work)


@pytest.mark.parametrize("command", [certify, clients], ids=["certify", "clients"])
def test_a_cluster_that_is_not_there_is_one_line(
    command: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--config", str(tmp_path / "cluster.toml"), "list"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "cluster.toml" in said
    assert said.count("\n") == 1
