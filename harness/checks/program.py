"""Checks an ML Program for states, fused attention and fp32 arithmetic in an fp16 export.

Each of them has broken a real export: states that nobody asked for (ExecuTorch 21855, 21979), fused
attention on the Neural Engine (15833), fp32 weights in an fp16 export (19786).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.artifact.proto import mil_types
from harness.checks.run import check
from harness.errors import ArtifactError
from harness.mil import get_policy, load_function
from harness.results import Finding
from harness.subject import Subject

_FUSED_ATTENTION = ("scaled_dot_product_attention",)
_STATE = ("read_state", "coreml_update_state", "write_state")


@check("program")
def check_program(subject: Subject) -> Iterator[Finding]:
    """Check every operation of every function."""
    if not subject.is_language_model:
        yield from _check_versions(subject)
        return
    for number, package in enumerate(subject.artifact.packages):
        for name in sorted(package.functions):
            function = package.functions[name]
            operations = package.operations(name).operations
            counts = Counter(operation.type for operation in operations)
            states = list(package.states(name))
            states += [kind for kind in _STATE if counts[kind]]
            fused = [kind for kind in _FUSED_ATTENTION if counts[kind]]
            wide = list(_wide_operations(operations)) if subject.dtype == "fp16" else []
            where = f"package {number}, function '{name}'"
            for found, what in (
                (states, "states, although none were asked for"),
                (fused, "fused attention, although decomposed attention was asked for"),
                (wide, "fp32 results in an fp16 export"),
            ):
                yield Finding(
                    "program",
                    where,
                    ok=not found,
                    message=f"{what}: {', '.join(found[:5])}",
                    comparisons=len(operations),
                )
            yield Finding(
                "program",
                where,
                comparisons=0,
                facts={"operations": sum(counts.values()), "opset": function.opset},
            )


def _check_versions(subject: Subject) -> Iterator[Finding]:
    """Check that operations and parameters are in the opset, and the opset in the specification.

    A specification of version N has the opsets up to `CoreMLN`, less one: version 9 is iOS 18's,
    whose opset is CoreML8. Source: `_SPECIFICATION_VERSION_*` in coremltools' `__init__.py`.
    """
    for number, package in enumerate(subject.artifact.packages):
        version = package.model.specificationVersion
        for name in sorted(package.functions):
            function, where = package.functions[name], f"package {number}, function '{name}'"
            operations = package.operations(name).operations
            opset = function.opset.removeprefix("CoreML")
            is_new = opset.isdecimal() and int(opset) + 1 > version
            problem = f"opset {function.opset} is newer than specification version {version}"
            try:
                load_function(package, name, get_policy("widen"), stateful=True)
            except ArtifactError as error:
                is_new, problem = True, str(error)
            yield Finding(
                "program",
                where,
                ok=not is_new,
                message=problem,
                comparisons=len(operations),
                facts={"operations": len(operations), "opset": function.opset},
            )


def _wide_operations(operations: Any) -> Iterator[str]:
    """Yield the operations that compute in fp32; a constant parameter (an epsilon) may be fp32."""
    for operation in operations:
        if operation.type == "const":
            continue
        for output in operation.outputs:
            tensor = output.type.tensorType
            dtype = mil_types().get(tensor.dataType)
            if dtype is not None and dtype.name == "FLOAT32":
                yield f"{operation.type} '{output.name}'"
