"""Options of ExecuTorch's Core ML backend: compile specs and the partitioner's, at other values.

A child process of that ExecuTorch lowers a small module with each; what an option promises is read
from the artifact. Sources: the specification versions and opsets of coremltools' `AvailableTarget`,
and `CoreMLBackend.generate_compile_specs`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from harness.artifact import Artifact, open_artifact
from harness.artifact.facts import artifact_facts
from harness.artifact.proto import mil_types
from harness.checks import Check
from harness.child import Child, serve
from harness.diff import diff_artifacts
from harness.export.environments import Environment
from harness.export.executorch import python_path_of
from harness.results import Finding

BASE = {"minimum_deployment_target": "iOS17", "compute_precision": "FLOAT16", "compute_unit": "ALL"}
_QUANTIZER = {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel"}


def _versions(artifact: Artifact) -> object:
    (package,) = artifact_facts(artifact).packages
    return package.specification_version, package.functions[0].opset


def _dtypes(artifact: Artifact) -> object:
    (package,) = artifact.packages
    (name,) = package.functions
    linear = next(op for op in package.operations(name).operations if op.type == "linear")
    return mil_types()[linear.outputs[0].type.tensorType.dataType].name


def _specs(artifact: Artifact) -> object:
    assert artifact.pte is not None
    (delegate,) = artifact.pte.methods["forward"].delegates
    return dict(delegate.compile_specs)["compute_units"].decode()


def _kernels(artifact: Artifact) -> object:
    return artifact_facts(artifact).methods[0].kernel_calls


def _quantized(artifact: Artifact) -> object:
    (package,) = artifact_facts(artifact).packages
    return package.functions[0].operations.get("constexpr_affine_dequantize", 0)


@dataclass(frozen=True)
class Row:
    """An option of the backend at `value`: `read` finds in the artifact what it promises."""

    option: str
    value: Any
    read: Callable[[Artifact], object]
    before: object
    after: object

    @property
    def name(self) -> str:
        """The option and its value, as the name of a case."""
        value = "int8" if isinstance(self.value, dict) else self.value
        return f"{self.option}={value[0] if isinstance(value, list) else value}"


ROWS = (
    Row("minimum_deployment_target", "iOS15", _versions, (8, "CoreML7"), (6, "CoreML5")),
    Row("minimum_deployment_target", "iOS16", _versions, (8, "CoreML7"), (7, "CoreML6")),
    Row("minimum_deployment_target", "iOS18", _versions, (8, "CoreML7"), (9, "CoreML8")),
    Row("compute_precision", "FLOAT32", _dtypes, "FLOAT16", "FLOAT32"),
    Row("compute_unit", "CPU_ONLY", _specs, "all", "cpu_only"),
    Row(
        "skip_ops_for_coreml_delegation",
        ["aten.relu.default"],
        _kernels,
        {},
        {"aten::relu.out": 1},
    ),
    Row("op_linear_quantizer_config", _QUANTIZER, _quantized, 0, 1),
)


class Backend:
    """Lowers the small module by an ExecuTorch's backend, in a child process that is kept."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        variables = {"PYTHONPATH": self._stack.enter_context(python_path_of(environment))}
        python = str(environment.python or sys.executable)
        child = Child("harness.suites.options.backend", environment.label, variables, python=python)
        self._child = self._stack.enter_context(child)

    @cached_property
    def base(self) -> Artifact:
        """The artifact of `BASE`."""
        return self.lowered()

    def lowered(self, **changed: Any) -> Artifact:
        """Return the artifact of `BASE` with some options changed."""
        output = self._folder / f"{len(list(self._folder.iterdir()))}.pte"
        request = {"options": BASE | changed, "output": str(output)}
        self._child.ask(request, "asked to lower a module")
        return open_artifact(output)

    def close(self) -> None:
        """End the child."""
        self._stack.close()


def check_of(row: Row) -> Check[Backend]:
    """Return the check of an option of the backend."""
    return Check(row.name, partial(_findings, row))


def _findings(row: Row, backend: Backend) -> Iterator[Finding]:
    both = [backend.base, backend.lowered(**{row.option: row.value})]
    found = [row.read(artifact) for artifact in both]
    kind = "changed"
    if not [one for one in diff_artifacts(*both) if not one.is_incidental]:
        kind = "dead"
    elif found != [row.before, row.after]:
        kind = "broken"
    text = f"{found[0]} -> {found[1]}"
    yield Finding(
        "options",
        row.option,
        ok=kind == "changed",
        message=f"{kind}: {text}, not {row.before} -> {row.after}",
        comparisons=2,
        facts={"verdict": kind, "what changed": text},
        code="O01" if kind == "dead" else "O02",
    )


def lower(request: dict[str, Any]) -> None:
    """Lower the module with a request's options into its output; runs in the child."""
    os.chdir(os.environ["TMPDIR"])
    import coremltools as ct
    import torch
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    options = request["options"]
    quantizer = options.get("op_linear_quantizer_config")
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, options["minimum_deployment_target"]),
        compute_precision=getattr(ct.precision, options["compute_precision"]),
        compute_unit=getattr(ct.ComputeUnit, options["compute_unit"]),
        **({"op_linear_quantizer_config": quantizer} if quantizer else {}),
    )
    partitioner = CoreMLPartitioner(
        compile_specs=specs,
        skip_ops_for_coreml_delegation=options.get("skip_ops_for_coreml_delegation"),
    )
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
    captured = torch.export.export(module, (torch.randn(1, 64),))
    lowered = to_edge_transform_and_lower(captured, partitioner=[partitioner])
    Path(request["output"]).write_bytes(lowered.to_executorch().buffer)


if __name__ == "__main__":
    serve(lower)
