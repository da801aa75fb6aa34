"""`coreml:*` and `executorch`, written for Macs, on any machine: through the stand-ins, in a child.

What they give is compared with our executor of the same policy, called directly.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures.cache import exported, fixture
from harness.export.options import ExportOptions

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has Core ML itself")

SHIM = [sys.executable, "-m", "harness.cli", "shim", "--policy", "widen", "--"]
THROUGH = ("executorch", "coreml:cpu_only")

# Run in the child: every method on the runtimes, twice, on inputs that are no zeros.
COMPARE = """
import json, sys
import torch
from harness.artifact import open_artifact
from harness.runtimes import default_runtime, get_runtime

def random_input(spec, generator):
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(0, 3, spec.shape, generator=generator).to(dtype)

artifact = open_artifact(sys.argv[1])
generator = torch.Generator().manual_seed(7)
found = {"default": default_runtime(), "methods": {}}
for method in artifact.methods:
    reference = get_runtime("mil:widen").load(artifact, method)
    calls = [[random_input(s, generator) for s in reference.inputs] for _ in range(2)]
    expected = [reference(*inputs) for inputs in calls]
    for name in sys.argv[2:]:
        runtime = get_runtime(name)
        assert runtime.unavailable() is None, runtime.unavailable()
        loaded = runtime.load(artifact, method)
        rows = []
        for inputs, wants in zip(calls, expected, strict=True):
            for have, want in zip(loaded(*inputs), wants, strict=True):
                rows.append([
                    str(have.dtype),
                    torch.equal(have, want.to(have.dtype)),
                    bool(want.any()),
                    have.numel(),
                ])
        found["methods"][f"{method} on {name}"] = rows
print(json.dumps(found))
"""


def compared(path: Path) -> dict[str, Any]:
    command = [*SHIM, sys.executable, "-W", "ignore", "-c", COMPARE, str(path), *THROUGH]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("mode", "methods"), [("single", ["forward"]), ("multifunction", ["forward", "prefill"])]
)
def test_a_program_gives_bit_for_bit_what_our_executor_gives(mode: str, methods: list[str]) -> None:
    """`coreml` hands fp16 out as fp32, as Core ML does; `executorch` in the declared dtype."""
    path = exported("tiny", ExportOptions(mode=mode))
    found = compared(path)
    assert found["default"] == "coreml:cpu_only"
    dtypes = {"executorch": "torch.float16", "coreml:cpu_only": "torch.float32"}
    assert set(found["methods"]) == {f"{m} on {r}" for m in methods for r in THROUGH}
    for name, rows in found["methods"].items():
        assert len(rows) == 2 * (1 + 2 * 4), "logits, and keys and values of four layers"
        for dtype, equal, has_values, count in rows:
            assert equal and has_values and count > 0, name
            assert dtype == dtypes[name.partition(" on ")[2]]


def test_the_functions_of_a_package_give_what_our_executor_gives(tmp_path: Path) -> None:
    from harness.artifact import open_artifact

    path = exported("tiny", ExportOptions(mode="multifunction"))
    bundle = open_artifact(path).bundles[1]
    root = tmp_path / "part.mlpackage"
    for name, data in bundle.package.files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    command = [*SHIM, sys.executable, "-W", "ignore", "-c", COMPARE, str(root), "coreml:cpu_only"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    methods = json.loads(done.stdout.splitlines()[-1])["methods"]
    assert set(methods) == {"forward on coreml:cpu_only", "prefill on coreml:cpu_only"}
    for rows in methods.values():
        assert rows and all(equal and has_values for _, equal, has_values, _ in rows)


def test_text_is_the_same_on_every_runtime(tmp_path: Path) -> None:
    path = exported("tiny", ExportOptions(mode="multifunction"))
    tokenizer = fixture("tiny").tokenizer
    run = [sys.executable, "-W", "ignore", "-m", "harness.cli", "run", str(path), "--json"]
    prompt = ["--tokenizer", str(tokenizer), "--prompt", "a b c", "--max-new-tokens", "8"]
    tokens = {}
    for runtime in ("mil:widen", *THROUGH):
        command = [*SHIM, *run, *prompt, "--runtime", runtime]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        facts = json.loads(done.stdout)
        assert facts["runtime"] == runtime
        tokens[runtime] = facts["tokens"]
    assert len(tokens["mil:widen"]) == 8
    assert tokens["executorch"] == tokens["coreml:cpu_only"] == tokens["mil:widen"]


def test_a_neural_engine_is_not_to_be_had_through_the_stand_in() -> None:
    script = (
        "from harness.runtimes import get_runtime\n"
        "print(get_runtime('coreml:cpu_and_ne').unavailable())"
    )
    done = subprocess.run(
        [*SHIM, sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
    )
    assert "the stand-in for Core ML has no Neural Engine" in done.stdout, done.stderr
