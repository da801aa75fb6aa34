"""The table of operations: the operations of each opset, their parameters and their sources."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from harness.errors import ArtifactError
from harness.mil.operation import Operation

OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML8", "CoreML9")
"""iOS 15, 16, 17, 18 and 26; the last adds no operation."""


@dataclass(frozen=True)
class Entry:
    """An operation of the table.

    It has the page in coremltools' MIL reference, the tolerance class, and the names of its
    parameters for each opset in which they changed.
    """

    name: str
    source: str
    tolerance: str
    changes: Mapping[str, frozenset[str]]

    @property
    def since(self) -> str:
        """The opset that introduced the operation."""
        return min(self.changes)

    def parameters(self, opset: str) -> frozenset[str] | None:
        """Return the names of the parameters in an opset, None when it lacks the operation."""
        earlier = [known for known in self.changes if known <= opset]
        return self.changes[max(earlier)] if earlier else None


@cache
def operations() -> Mapping[str, Entry]:
    """Return all operations by name."""
    rows = tomllib.loads((files("harness.mil") / "operations.toml").read_text("utf-8"))
    return {
        name: Entry(
            name,
            row["source"],
            row["tolerance"],
            {opset: frozenset(row[opset].split()) for opset in OPSETS if opset in row},
        )
        for name, row in rows.items()
    }


def check_known(operation: Operation) -> None:
    """Raise ArtifactError for a parameter, an operation or an opset that does not exist."""
    if operation.opset not in OPSETS:
        raise operation.error(f"opset '{operation.opset}' is not one of {', '.join(OPSETS)}")
    entry = operations()[operation.type]
    known = entry.parameters(operation.opset)
    if known is None:
        raise ArtifactError(
            f"{operation.where}: operation '{entry.name}' came with opset {entry.since}; "
            f"the program's is {operation.opset}"
        )
    unknown = operation.given - known
    if unknown:
        raise operation.error(
            f"parameter '{min(unknown)}' is not understood (opset {operation.opset})"
        )
