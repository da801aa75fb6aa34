"""What the tests of operations by family share: cases, and programs of flexible shape."""

import tempfile
from pathlib import Path

import numpy as np

from harness.artifact import Package
from tests.mil.programs import execute


def check(case, tolerance=2e-6):
    """Execute a case, (build, inputs, expected, options), and compare every result."""
    build, inputs, expected, *options = case
    results = execute(build, *inputs, **(options[0] if options else {}))
    wanted = expected if isinstance(expected, tuple) else (expected,)
    assert len(results) == len(wanted) > 0
    for result, want in zip(results, wanted, strict=True):
        want = np.asarray(want)
        assert result.shape == want.shape
        np.testing.assert_allclose(result, want, rtol=tolerance, atol=tolerance)


def save_flexible(build, specs, target="iOS18"):
    """Save `build(mb, *inputs)` with inputs [(shape, dtype)]; a dimension that is None may have
    any size up to 64.
    """
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol, types

    kinds = {"fp32": types.fp32, "int32": types.int32}
    names = "abcdef"[: len(specs)]
    placeholders = [
        mb.TensorSpec([get_new_symbol() if n is None else n for n in shape], dtype=kinds[kind])
        for shape, kind in specs
    ]
    ranges = [
        ct.TensorType(
            name=name,
            shape=[ct.RangeDim(1, 64) if n is None else n for n in shape],
            dtype={"fp32": np.float32, "int32": np.int32}[kind],
        )
        for name, (shape, kind) in zip(names, specs, strict=True)
    ]
    scope = {"build": build, "mb": mb}
    exec(f"def main({', '.join(names)}):\n    return build(mb, {', '.join(names)})", scope)
    opset = getattr(ct.target, target)
    program = mb.program(input_specs=placeholders, opset_version=opset)(scope["main"])
    return to_package(program, target, inputs=ranges)


def to_package(program, target="iOS18", **options):
    """Convert and save a MIL program with no passes."""
    import coremltools as ct

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        **options,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        model.save(str(path))
        package = Package.from_folder(path)
        for name in package.files:  # map them all while they are there
            _ = package.files[name]
    return package
