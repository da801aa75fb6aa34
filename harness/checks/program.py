"""Checks of ML Programs: types, states, fused attention, fp32 in an fp16 export, hazards.

Types are judged as bytes; the rules are in `harness.artifact`. The others have broken real exports:
states that nobody asked for (ExecuTorch 21855, 21979), fused attention on the Neural Engine
(15833), fp32 weights in an fp16 export (19786). Hazards are warnings: what a converter may have
made wrong, and what devices are known to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.artifact.files import release
from harness.artifact.hazards import hazards_of
from harness.artifact.hazards.interfaces import scalars_at_the_boundary
from harness.artifact.operands import FunctionTypes
from harness.artifact.proto import mil_types
from harness.checks.containers import findings_at, model_dtype, readable
from harness.checks.run import check
from harness.errors import ArtifactError
from harness.mil import get_policy, load_function
from harness.results import Finding
from harness.subject import Subject

_FUSED_ATTENTION = ("scaled_dot_product_attention",)
_UNREAD_INPUT = "H10"  # of a delegate, `types` calls it a failure
_FUSED_HAZARD = "H39"  # of a static language model, `program` calls it a failure
_STATE = ("read_state", "coreml_update_state", "write_state")


@check("program", damaged="A63")
def check_program(subject: Subject) -> Iterator[Finding]:
    """Check every operation of every function."""
    if not subject.is_language_model:
        yield from _check_operations(subject)
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
            for found, what, code in (
                (states, "states, although none were asked for", "A60"),
                (fused, "fused attention, although decomposed attention was asked for", "A61"),
                (wide, "fp32 results in an fp16 export", "A62"),
            ):
                yield Finding(
                    "program",
                    where,
                    ok=not found,
                    message=f"{what}: {', '.join(found[:5])}",
                    comparisons=len(operations),
                    code=code,
                )
            yield Finding(
                "program",
                where,
                comparisons=0,
                facts={"operations": sum(counts.values()), "opset": function.opset},
            )


def _check_operations(subject: Subject) -> Iterator[Finding]:
    """Check that every operation and parameter is in the opset of its function."""
    for number, package in enumerate(subject.artifact.packages):
        for name in sorted(package.functions):
            count, problem = len(package.operations(name).operations), ""
            try:
                load_function(package, name, get_policy("widen"), stateful=True)
            except ArtifactError as error:
                problem = str(error)
            yield Finding(
                "program",
                f"package {number}, function '{name}'",
                ok=not problem,
                message=problem,
                comparisons=count,
                facts={"operations": count, "opset": package.functions[name].opset},
                code="A63",
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


@check("types", needs=(readable,))
def check_types(subject: Subject) -> Iterator[Finding]:
    """Check the dtypes of operands, results and constants, and that every input is read."""
    for number, package in enumerate(subject.artifact.packages):
        for name in sorted(package.functions):
            types = FunctionTypes(package, name)
            problems = list(types.problems())
            where = f"package {number}, function '{name}'"
            yield from findings_at(where, problems, "A50", types.operations)
            if model_dtype(subject) != "float16":  # there, `program` reports these
                text = "is declared FLOAT32, but its operation gives FLOAT16"
                wide = [(f"'{result}'", text) for result in types.wide]
                yield from findings_at(where, wide, "A51", 0)
            unread = types.unread_inputs()
            if subject.artifact.pte is not None:
                ignored = [(f"input '{one}'", "no operation reads it") for one in unread]
                yield from findings_at(where, ignored, "A52", 0)
            elif unread:  # a model of one's own may take what it ignores
                yield Finding("types", where, facts={"unread inputs": ", ".join(unread)})


@check("hazards", needs=(readable,))
def check_hazards(subject: Subject) -> Iterator[Finding]:
    """Look for the hazards of each function; one finding for each place."""
    for number, package in enumerate(subject.artifact.packages):
        for name in sorted(package.functions):
            where = f"package {number}, function '{name}'"
            for code, found in hazards_of(package, name):
                if code == _UNREAD_INPUT and subject.artifact.pte is not None:
                    continue
                if code == _FUSED_HAZARD and subject.is_language_model:
                    continue
                yield Finding(
                    "hazards",
                    f"{where}, {found.place}",
                    ok=False,
                    message=found.evidence,
                    code=code,
                    warning=True,
                )
            count = len(package.operations(name).operations)
            yield Finding("hazards", where, comparisons=count)
        for name in package.files:  # a large model's weights were read one after another
            release(package.files[name])
    for found in scalars_at_the_boundary(subject.artifact):
        yield Finding(
            "hazards", found.place, ok=False, message=found.evidence, code="H49", warning=True
        )
