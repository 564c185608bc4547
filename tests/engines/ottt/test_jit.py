"""When kernels are compiled, for which types, and what a process imports for that."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serving import ROOT

from privserve.engines.ottt.bits import pack, unpack_add
from privserve.engines.ottt.jit import compile_kernels

COMPILED = """
import gc, sys
from numba.core.dispatcher import Dispatcher
kernels = [d for d in gc.get_objects() if isinstance(d, Dispatcher)]
kernels = [d for d in kernels if d.py_func.__module__.startswith("privserve.")]
print("kernels", len(kernels), "compiled", sum(bool(d.overloads) for d in kernels))
"""


def output_of(code: str, *, path: Path = ROOT / "src") -> str:
    """What a fresh Python prints that runs `code` on the package in `path`."""
    paths = f"import sys; sys.path[:0] = [{str(path)!r}, {str(ROOT / 'tests/support')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + code], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_compiles_no_kernel() -> None:
    code = """
from ottt_models import random_weights, tutorial_net
from privserve.engines import ottt
prepared = ottt.prepare(tutorial_net(random_weights()), input_range=(0, 1))
assert "total" in ottt.summary(prepared.description)
ottt.frame_limits(prepared.description)
ottt.memory(prepared.description, 2)
"""
    words = output_of(code + COMPILED).split()
    assert words[2:] == ["compiled", "0"]
    assert int(words[1]) > 25


@pytest.mark.parametrize("names", ["Compute, LANES, frame_limits", "deal, LANES, frame_limits"])
def test_a_party_imports_no_onnx_no_torch_and_no_compiler(names: str) -> None:
    code = f"""
from privserve.engines.ottt import {names}
import sys
print([m for m in ("onnx", "torch", "h5py", "privserve.compiler") if m in sys.modules])
"""
    assert output_of(code).strip() == "[]"


def test_a_kernel_refuses_other_types_instead_of_compiling_for_them() -> None:
    words, packed = np.zeros(4, np.int64), np.zeros(4, np.int64)
    before = [len(kernel.overloads) for kernel in (pack, unpack_add)]  # type: ignore[attr-defined]
    assert before == [1, 1]
    for wrong in (words.astype(np.float64), np.zeros(8, np.int64)[::2], words[None], [0, 0, 0, 0]):
        with pytest.raises(TypeError, match="No matching definition"):
            pack(wrong, 4, 8, packed)
    readonly = words[None].copy()
    readonly.setflags(write=False)
    unpack_add(readonly, 4, 64, words[None])
    with pytest.raises(TypeError, match="No matching definition"):
        unpack_add(words[None], 4, 64, readonly)
    assert before == [len(kernel.overloads) for kernel in (pack, unpack_add)]  # type: ignore[attr-defined]


def test_a_kernel_that_is_not_compiled_yet_is_an_error() -> None:
    code = """
import numpy as np
from privserve.engines.ottt.bits import pack
try:
    pack(np.zeros(4, np.int64), 4, 8, np.zeros(4, np.int64))
except TypeError as error:
    print(error)
"""
    assert "No matching definition" in output_of(code)


def test_kernels_are_compiled_once_for_all_processes(tmp_path: Path) -> None:
    """The second process finds the first one's on the disk."""
    shutil.copytree(
        ROOT / "src/privserve", tmp_path / "privserve", ignore=lambda *_: {"__pycache__"}
    )
    code = """
from privserve.engines.ottt.bits import pack, unpack_add, unpack_xor
from privserve.engines.ottt.jit import compile_kernels
compile_kernels()
for kernel in (pack, unpack_add, unpack_xor):
    print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""
    assert output_of(code, path=tmp_path).split() == ["0", "1"] * 3
    assert output_of(code, path=tmp_path).split() == ["1", "0"] * 3


def test_a_kernel_is_compiled_anew_where_one_that_it_calls_has_changed(tmp_path: Path) -> None:
    """The file of the caller stays the same."""
    shutil.copytree(
        ROOT / "src/privserve", tmp_path / "privserve", ignore=lambda *_: {"__pycache__"}
    )
    package = tmp_path / "privserve/engines/ottt"
    head = "from privserve.engines.ottt.jit import Words, compile_kernels, kernel\n"
    caller = "from privserve.engines.ottt.callee import add\n\n"
    caller += "@kernel\ndef call(out: Words) -> None:\n    add(out)\n"
    (package / "caller.py").write_text(head + caller)
    code = """
import numpy as np
from privserve.engines.ottt.caller import call, compile_kernels
compile_kernels()
out = np.zeros(1, np.int64)
call(out)
print(out[0], sum(call.stats.cache_hits.values()))
"""
    # Of different lengths: Python tells sources apart by their size and the second.
    for added, hits in ((1, 0), (1, 1), (20, 0)):
        callee = f"@kernel\ndef add(out: Words) -> None:\n    out[0] += {added}\n"
        (package / "callee.py").write_text(head + "\n" + callee)
        assert output_of(code, path=tmp_path).split() == [str(added), str(hits)]


def test_compiling_again_does_nothing() -> None:
    versions = dict(pack.overloads)  # type: ignore[attr-defined]
    compile_kernels()
    assert dict(pack.overloads) == versions  # type: ignore[attr-defined]
