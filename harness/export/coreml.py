"""Our own exporter: it makes a folder of Core ML packages of a checkpoint, without ExecuTorch.

It plans each method as a chain of stages, divided into partitions. It lowers a stage without its
weights, and all blocks as one, so that torch and coremltools process little. Then it quantizes the
weights and writes them once per package: the functions of a package refer to the same bytes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact.blob import WeightFile
from harness.artifact.delegate import PACKAGE
from harness.artifact.exported import EXPORT
from harness.artifact.package import WEIGHT_REFERENCE, WEIGHTS
from harness.errors import NotInstalledError
from harness.export import Progress
from harness.export.folder import program_constants, write_package, write_program
from harness.export.options import ExportOptions, check_fit
from harness.export.plan import PackagePlan, Piece, plan_methods, plan_packages
from harness.files import partial_folder
from harness.models import ModelConfig
from harness.models.config import load_params

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2

    from harness.export.weight_store import Weight, WeightStore


def export(
    checkpoint: str | Path,
    params: str | Path,
    options: ExportOptions,
    output: str | Path,
    progress: Progress | None = None,
) -> Path:
    """Write the folder of a checkpoint's export to `output`, whole or not at all.

    It replaces an earlier export at `output`; anything else there is an error. The same checkpoint
    and options give the same bytes. Raises HarnessError for options, params and checkpoints that do
    not fit, and NotInstalledError without coremltools.
    """
    config = load_params(params)
    check_fit(options, config)
    if importlib.util.find_spec("coremltools") is None:
        raise NotInstalledError("coremltools is not installed; pip install 'coremltools==9.0'")
    show = progress or (lambda stage: None)
    with partial_folder(Path(output), EXPORT, replace=True) as folder:
        show("importing torch")
        from harness.export.weight_store import WeightStore
        from harness.models.checkpoint import load_checkpoint

        show("loading the checkpoint")
        store = WeightStore(
            config, load_checkpoint(checkpoint, config, options.quantization), options
        )
        methods = plan_methods(config, options)
        packages = plan_packages(methods, options.weight_sharing)
        for package in packages:
            _write(folder / package.name, package, config, options, store, show)
        show("finishing")
        write_program(folder, methods, packages, program_constants(config, options, methods))
    return Path(output)


def _write(
    folder: Path,
    package: PackagePlan,
    config: ModelConfig,
    options: ExportOptions,
    store: WeightStore,
    show: Progress,
) -> None:
    """Lower a package's functions, store their weights, and write it into a new folder."""
    from harness.export.lowering import link, lower, weight_input
    from harness.export.weight_store import fill

    functions = {}
    for method, partition in package.members:
        show(f"lowering {partition.name} of {method}")
        lowered: dict[object, MIL_pb2.Function] = {}
        for stage in partition.stages:
            if stage.signature not in lowered:
                lowered[stage.signature] = lower(config, stage, options.dtype)
        stages = [lowered[stage.signature] for stage in partition.stages]
        functions[method] = link(partition, stages)
    show(f"storing the weights of {package.name}")
    path = folder / PACKAGE / WEIGHTS
    path.parent.mkdir(parents=True)
    stored: dict[Piece, Weight] = {}
    with path.open("wb") as file:
        weights = WeightFile(file)
        for method, partition in package.members:
            for piece in partition.pieces:
                if piece not in stored:
                    stored[piece] = store.add(piece, weights)
            inputs = {weight_input(i): stored[piece] for i, piece in enumerate(partition.pieces)}
            fill(functions[method], inputs, WEIGHT_REFERENCE)
        digest = weights.finish()
    write_package(folder, package, functions, digest)
