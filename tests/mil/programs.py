"""Real ML Programs, built and saved by coremltools, loaded by our reader."""

import functools
import gc
import tempfile
from pathlib import Path

import numpy as np
import torch

from harness.artifact import Package
from harness.mil import get_policy, load_function


def save(build, shapes, target="iOS18", dtype="fp32", dtypes=None):
    """Build a program of `build(mb, *inputs)` and return its Package.

    `shapes` gives the inputs a, b, ...; their dtypes are fp32 unless `dtypes` says otherwise.
    """
    ct, mb, types = _coremltools()
    kinds = {"fp32": types.fp32, "fp16": types.fp16, "int32": types.int32, "bool": types.bool}
    names = "abcdef"[: len(shapes)]
    specs = [
        mb.TensorSpec(shape, dtype=kinds[kind])
        for shape, kind in zip(shapes, dtypes or [dtype] * len(shapes), strict=True)
    ]

    namespace = {"build": build, "mb": mb}
    exec(f"def main({', '.join(names)}):\n    return build(mb, {', '.join(names)})", namespace)
    main = mb.program(input_specs=specs, opset_version=getattr(ct.target, target))(
        namespace["main"]
    )
    model = ct.convert(
        main,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, target),
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    folder = Path(_folder().name)
    path = folder / f"{len(list(folder.iterdir()))}.mlpackage"
    model.save(str(path))
    return Package.from_folder(path)


@functools.cache
def _coremltools():
    """Import coremltools once, and freeze the objects in memory.

    `ct.convert` collects garbage each time, which then takes 20 ms instead of 400 ms.
    """
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    gc.freeze()
    return ct, mb, types


@functools.cache
def _folder():
    """Return a folder that is removed when the tests end."""
    return tempfile.TemporaryDirectory(prefix="harness-programs-")


def save_flexible(build, specs, target="iOS18"):
    """Save `build(mb, *inputs)` with inputs [(shape, dtype)].

    A dimension that is None may have any size up to 64.
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
    return saved(model)


def saved(model):
    """Save a model of coremltools; return its package, held in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mlpackage"
        model.save(str(path))
        package = Package.from_folder(path)
        for name in package.files:  # map them all while they are there
            _ = package.files[name]
    return package


def run(package, *arrays, policy="widen", function="main"):
    """Execute with inputs a, b, ...; return the outputs as numpy arrays, in declared order."""
    loaded = load_function(package, function, get_policy(policy))
    tensors = [torch.from_numpy(np.asarray(array)) for array in arrays]
    results = loaded(dict(zip(loaded.inputs, tensors, strict=True)))
    return [result.numpy() for result in results.values()]


def execute(build, *arrays, policy="widen", **options):
    """Build, save, load and execute in one go."""
    arrays = [np.asarray(array) for array in arrays]
    kinds = {"float32": "fp32", "float16": "fp16", "int32": "int32", "bool": "bool"}
    dtypes = [kinds[str(array.dtype)] for array in arrays]
    package = save(build, [array.shape for array in arrays], dtypes=dtypes, **options)
    return run(package, *arrays, policy=policy)
