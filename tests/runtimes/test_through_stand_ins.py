"""`coreml:*` and `executorch`, which need a Mac, run on any machine through the stand-ins.

They run in a child; their results are compared with our executor's under the same policy.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.artifact import open_artifact
from harness.export.options import ExportOptions
from harness.fixtures.cache import exported, fixture

pytestmark = pytest.mark.linux

PYTHON = [sys.executable, "-W", "ignore"]
SHIM = [sys.executable, "-m", "harness", "shim", "--policy", "widen", "--"]
DTYPES = {"executorch": "torch.float16", "coreml:cpu_only": "torch.float32"}
"""`coreml` hands fp16 out as fp32, as Core ML does; `executorch` hands out what is declared."""
CACHES = 2 * 4  # keys and values of four layers

# Run in the child: every method of a file on a runtime, twice, on nonzero inputs. The
# runtimes are not isolated here, because isolation starts a process for each.
COMPARE = """
import json, sys
from math import prod
import torch
from harness.artifact import open_artifact
from harness.runtimes import default_runtime
from harness.runtimes.coreml import CoreMLRuntime
from harness.runtimes.executorch import ExecuTorchRuntime
from harness.runtimes.mil import MilRuntime

def random_input(spec):
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(spec.shape).to(dtype)
    if prod(spec.shape) == 1:  # a token, or which of a chunk's rows is asked for: one has one row
        return torch.zeros(spec.shape, dtype=dtype)
    return torch.randint(0, 3, spec.shape).to(dtype)

def compared(loaded, reference):
    for _ in range(2):
        inputs = [random_input(spec) for spec in reference.inputs]
        for have, want in zip(loaded(*inputs), reference(*inputs), strict=True):
            yield str(have.dtype), torch.equal(have, want.to(have.dtype)), bool(want.any())

torch.manual_seed(7)
runtimes = {"executorch": ExecuTorchRuntime(), "coreml:cpu_only": CoreMLRuntime("cpu_only")}
found = {
    "default": default_runtime(),
    "unavailable": [runtime.unavailable() for runtime in runtimes.values()],
    "neural engine": CoreMLRuntime("cpu_and_ne").unavailable(),
}
for path, name in json.loads(sys.argv[1]):
    artifact = open_artifact(path)
    found[f"{path} on {name}"] = {
        method: list(
            compared(
                runtimes[name].load(artifact, method), MilRuntime("widen").load(artifact, method)
            )
        )
        for method in artifact.methods
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return both modes of tiny, and the package of the multifunction one's blocks."""
    files = {
        mode: exported("tiny", ExportOptions(mode=mode)) for mode in ("single", "multifunction")
    }
    root = tmp_path_factory.mktemp("package") / "part.mlpackage"
    for name, data in open_artifact(files["multifunction"]).bundles[1].package.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files | {"package": root}


@pytest.fixture(scope="module")
def found(files: dict[str, Path]) -> Any:
    """Return the results of the child."""
    cases = [(str(files[mode]), name) for mode in ("single", "multifunction") for name in DTYPES]
    cases.append((str(files["package"]), "coreml:cpu_only"))
    command = [*SHIM, *PYTHON, "-c", COMPARE, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("runtime", DTYPES)
@pytest.mark.parametrize(
    ("mode", "methods"), [("single", {"forward"}), ("multifunction", {"forward", "prefill"})]
)
def test_a_program_gives_bit_for_bit_what_our_executor_gives(
    files: dict[str, Path], found: Any, runtime: str, mode: str, methods: set[str]
) -> None:
    results = found[f"{files[mode]} on {runtime}"]
    assert set(results) == methods
    for rows in results.values():
        assert len(rows) == 2 * (1 + CACHES)
        assert all(equal and has_values for _, equal, has_values in rows)
        assert {dtype for dtype, _, _ in rows} == {DTYPES[runtime]}


def test_the_functions_of_a_package_give_what_our_executor_gives(
    files: dict[str, Path], found: Any
) -> None:
    results = found[f"{files['package']} on coreml:cpu_only"]
    assert set(results) == {"forward", "prefill"}
    for rows in results.values():
        assert rows and all(equal and has_values for _, equal, has_values in rows)


def test_the_runtimes_are_available_but_no_neural_engine(found: Any) -> None:
    assert found["unavailable"] == [None, None]
    assert found["default"] == "coreml:cpu_only"
    assert found["neural engine"].startswith("the stand-in for Core ML has no Neural Engine")


def generated(files: dict[str, Path], runtime: str, *before: str) -> dict[str, Any]:
    tokenizer = str(fixture("tiny").tokenizer)
    run = [*PYTHON, "-m", "harness", "run", str(files["multifunction"]), "--json"]
    prompt = ["--tokenizer", tokenizer, "--prompt", "a b c", "--max-new-tokens", "8"]
    command = [*before, *run, *prompt, "--runtime", runtime]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.parametrize("runtime", DTYPES)
def test_text_is_that_of_our_executor_in_isolated_children_too(
    files: dict[str, Path], runtime: str
) -> None:
    here, there = generated(files, "mil:widen"), generated(files, runtime, *SHIM)
    assert there["runtime"] == runtime and len(there["tokens"]) == 8
    assert there["tokens"] == here["tokens"]
