"""What an ML Program must not hold: states, fused attention, fp32 arithmetic in an fp16 export.

Each has broken a real export: states where none were asked for (ExecuTorch 21855, 21979), fused
attention on the Neural Engine (15833), fp32 weights leaking into fp16 (19786).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.artifact.dtypes import MIL_TYPES
from harness.results import Finding
from harness.subject import Subject

_FUSED_ATTENTION = ("scaled_dot_product_attention",)
_STATE = ("read_state", "coreml_update_state", "write_state")


def check_program(subject: Subject) -> Iterator[Finding]:
    """Look at every operation of every function."""
    for number, bundle in enumerate(subject.artifact.bundles):
        for name in sorted(bundle.package.functions):
            function = bundle.package.functions[name]
            operations = bundle.package.operations(name).operations
            counts = Counter(operation.type for operation in operations)
            states = [i.name for i in function.inputs if i.type.WhichOneof("type") == "stateType"]
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


def _wide_operations(operations: Any) -> Iterator[str]:
    """Yield the operations that compute in fp32; a constant parameter (an epsilon) may be fp32."""
    for operation in operations:
        if operation.type == "const":
            continue
        for output in operation.outputs:
            tensor = output.type.tensorType
            if MIL_TYPES.get(tensor.dataType) and MIL_TYPES[tensor.dataType].name == "FLOAT32":
                yield f"{operation.type} '{output.name}'"
