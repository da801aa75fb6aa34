"""Compares Core ML's own results with torch's on a Mac; skipped with a reason elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.artifact import Package
from harness.runtimes.coreml import CompiledPackage, CoreMLFunction, CoreMLRuntime


@pytest.mark.parametrize("option", ["cpu_only", "cpu_and_gpu", "cpu_and_ne"])
def test_a_small_program_computes_what_torch_does(tmp_path: Path, option: str) -> None:
    reason = CoreMLRuntime(option).unavailable()
    if reason is not None:
        pytest.skip(reason)
    import coremltools
    from coremltools.converters.mil import Builder

    specs = [Builder.TensorSpec(shape=(2, 3)) for _ in range(2)]  # one object has one name

    @Builder.program(input_specs=specs, opset_version=coremltools.target.iOS18)
    def program(x, y):  # type: ignore[no-untyped-def]
        return Builder.sub(x=x, y=y, name="difference"), Builder.mul(x=x, y=y, name="product")

    path = tmp_path / "small.mlpackage"
    coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS18).save(str(path))
    compiled = CompiledPackage(Package.from_folder(path))
    run = CoreMLFunction(compiled, "main", ("x", "y"), ("product", "difference"), option.upper())
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    product, difference = run([x, y])
    torch.testing.assert_close(product, x * y, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(difference, x - y, rtol=2e-3, atol=2e-3)
