"""The vector code of packed products, in all widths and for processors other than this one.

The code for AArch64 is compiled but not run here. The same code in vectors of 16 bytes runs, with a
shuffle of x86 that equals Neon's for indices below 16.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.mil.packed import vector

ROOT = Path(__file__).parents[2]
WITHOUT_AVX2 = """
import llvmlite.binding as llvm
features = llvm.get_host_cpu_features()
features.update({name: False for name in features if name.startswith(("avx", "fma"))})
llvm.get_host_cpu_features = lambda: features

import numpy as np, torch
from harness.mil.packed import PackedWeight, vector
from harness.mil.packed.layouts import Blocks, Tables

assert vector.ORDER[:8] == [0, 4, 8, 12, 2, 6, 10, 14], vector.ORDER  # four lanes of pairs
random = np.random.default_rng(9)
numbers = random.integers(-8, 8, (96, 192))
scale = (random.random((96, 1)) + 0.1).astype(np.float16)
codes = (numbers & 15).astype(np.uint8)
codes = codes[:, ::2] | codes[:, 1::2] << 4
codes.flags.writeable = False
offset = np.zeros((96, 1), np.float32)
packed = PackedWeight(Blocks(codes, scale.astype(np.float32), offset, 8, True, True), torch.float32)
assert isinstance(packed._fast, Tables)
weight = (numbers * scale.astype(np.float32)).astype(np.float16).astype(np.float32)
eye = torch.eye(192)
np.testing.assert_array_equal(packed.linear(eye).T, weight)  # in tiles
np.testing.assert_array_equal(torch.cat([packed.linear(row[None]) for row in eye]).T, weight)
print("equal")
"""
FROM_MANY_THREADS = """
import copy, gc, threading
import numpy as np, torch
from harness.mil.packed import PackedWeight
from harness.mil.packed.layouts import Blocks

def weight(rows):
    codes = np.random.default_rng(rows).integers(0, 256, (rows, 96)).astype(np.uint8)
    scale, offset = np.full((rows, 1), 0.125, np.float32), np.zeros((rows, 1), np.float32)
    return PackedWeight(Blocks(codes, scale, offset, 8, True, True), torch.float32)

small, large = weight(48), weight(4096)
x = torch.randn(16, 192, generator=torch.Generator().manual_seed(1))
expected = small.linear(x), large.linear(x), large.dequantized()
wrong = []

def work():
    for _ in range(60):
        found = small.linear(x), large.linear(x), large.dequantized()
        wrong.extend(i for i in range(3) if not torch.equal(found[i], expected[i]))

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
copied = copy.deepcopy(small)
del small
gc.collect()
assert torch.equal(copied.linear(x), expected[0])
print("equal" if not wrong else wrong)
"""
ONE_SUM = """
import numpy as np, torch
from harness.mil.packed import PackedWeight
from harness.mil.packed.layouts import Blocks

codes = np.full((1, 16), 0x11, np.uint8)
codes.flags.writeable = False
one, zero = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
weight = PackedWeight(Blocks(codes, one, zero, 0, False, True), torch.float32)
print(weight.linear(torch.ones(1, 32)).item())
"""
FOR_AARCH64 = """
import llvmlite.binding as llvm
from llvmlite import ir

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
llvm.get_process_triple = lambda: "arm64-apple-darwin24.6.0"
from harness.mil.packed import vector

assert vector.available()
module, integer = ir.Module("vector"), ir.IntType(64)
module.triple = "arm64-apple-macosx14"
for emitted, kind in (
    (vector.emit_dot, ir.FloatType()),
    (vector.emit_expand, ir.VoidType()),
    (vector.emit_accumulate, ir.VoidType()),
):
    function = ir.Function(module, ir.FunctionType(kind, [integer] * 4), emitted.__name__)
    builder = ir.IRBuilder(function.append_basic_block())
    result = emitted(builder, *function.args)
    builder.ret_void() if result is None else builder.ret(result)
machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu="apple-m1", opt=3)
print(machine.emit_assembly(llvm.parse_assembly(str(module))))
"""


def printed(script, folder, root=ROOT):
    """Return the output of a script in a process and with a numba cache of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not vector.available(), reason="needs AVX2 or Neon")
def test_kernels_are_compiled_anew_when_the_vector_code_has_changed(tmp_path):
    """numba itself caches machine code until the kernel's own file changes."""
    shutil.copytree(ROOT / "harness", tmp_path / "harness")
    code = tmp_path / "harness/mil/packed/vector.py"
    sums = [printed(ONE_SUM, tmp_path / "kept", tmp_path)]
    sums.append(printed(ONE_SUM, tmp_path / "kept", tmp_path))
    kept = len(list((tmp_path / "kept").rglob("*.nbc")))
    start = "[ir.Constant(_F32, 0.0), sums[0]]"
    assert start in code.read_text()
    code.write_text(code.read_text().replace(start, start.replace("0.0", "65536.0")))
    sums.append(printed(ONE_SUM, tmp_path / "kept", tmp_path))
    assert sums == ["32.0\n", "32.0\n", "33.0\n"]
    assert len(list((tmp_path / "kept").rglob("*.nbc"))) == 2 * kept


@pytest.mark.skipif("pshuf" not in vector._SHUFFLE, reason="a shuffle of x86")
def test_vectors_of_16_bytes_give_every_weight_exactly(tmp_path):
    assert printed(WITHOUT_AVX2, tmp_path) == "equal\n"


def test_for_aarch64_it_is_vector_code_that_calls_nothing(tmp_path):
    lines = [line.split() for line in printed(FOR_AARCH64, tmp_path).splitlines()]
    instructions = {line[0] for line in lines if line}
    assert any(name.startswith("tbl") for name in instructions)
    assert any(name.startswith("fmla") for name in instructions)
    assert any(name.startswith("scvtf") for name in instructions)
    assert "bl" not in instructions


def test_threads_that_multiply_at_the_same_time_and_a_copy(tmp_path, monkeypatch):
    """The threading layer that numba always has aborts a process that calls it twice at once."""
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "workqueue")
    assert printed(FROM_MANY_THREADS, tmp_path) == "equal\n"
