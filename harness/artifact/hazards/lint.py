"""What a lint of hazards is: a generator of hazards in one function, found by its code.

Write one with `@hazard(CODE)` in a module that `harness.artifact.hazards` imports, and give the
code a row in `harness/checks/findings.toml`. A lint names only what is really in the program:
`Function.bounds` says what cannot occur.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from harness.artifact.hazards.bounds import UNKNOWN, Bounds, Known, as_declared
from harness.artifact.hazards.graph import Graph, Operation, Value
from harness.artifact.hazards.ranges import bounds_of_results
from harness.artifact.package import Package
from harness.errors import ArtifactError

_VERSION = "com.github.apple.coremltools.version"


@dataclass(frozen=True)
class Hazard:
    """One place that may go wrong: an operation, a value, an input or an output, and the evidence.

    The evidence is a clause about the place: "'scores' may be below 6e-08".
    """

    place: str
    evidence: str


class Function(Graph):
    """A function of a package with the bounds of its values."""

    @cached_property
    def version(self) -> tuple[int, ...] | None:
        """The version of coremltools that made the package, None when the package has none."""
        return parse_version(self.package.model.description.metadata.userDefined.get(_VERSION, ""))

    @cached_property
    def _bounds(self) -> Known:
        """The bounds of each value. Inputs are finite, and have none."""
        found = Known()
        for operation in self.operations:
            result = bounds_of_results(operation, found)
            found.update((value, as_declared(value, result)) for value in operation.results)
        return found

    def bounds(self, value: Value | None) -> Bounds:
        """Return what a value's elements can be."""
        return UNKNOWN if value is None else self._bounds[value]

    def reading(
        self, is_end: Callable[[Operation], bool], is_passed: Callable[[Operation], bool]
    ) -> frozenset[Operation]:
        """Return the operations with a result that an end reads, through those that pass it on."""
        found: set[Operation] = set()
        for operation in reversed(self.operations):  # readers come after producers
            readers = (one for result in operation.results for one in result.readers)
            if any(is_end(one) or (one in found and is_passed(one)) for one in readers):
                found.add(operation)
        return frozenset(found)

    def is_before(self, *version: int) -> bool:
        """Return whether a coremltools before this version made the package."""
        return self.version is not None and self.version < version


def parse_version(text: str) -> tuple[int, ...] | None:
    """Return a version's numbers, (9, 1) for "9.1.dev1"; None without a number."""
    numbers = re.match(r"\d+(\.\d+)*", text[:40])
    return tuple(int(one[:9]) for one in numbers[0].split(".")) if numbers else None


# What a program that no converter makes may raise; an attribute that is missing is our own defect.
_UNREADABLE = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


@contextmanager
def readable(package: Package, function: str) -> Iterator[None]:
    """Turn what a program raises that no converter makes into an ArtifactError."""
    try:
        yield
    except _UNREADABLE as error:
        raise ArtifactError(
            f"{package.what}, function '{function}': its operations cannot be read "
            f"({type(error).__name__}: {error}); convert the model again"
        ) from error


Lint = Callable[[Function], Iterator[Hazard]]
LINTS: dict[str, Lint] = {}


def hazard(code: str) -> Callable[[Lint], Lint]:
    """Register a lint under its code, which no other lint has."""

    def register(lint: Lint) -> Lint:
        if code in LINTS:
            raise ValueError(f"two lints have the code {code}")
        LINTS[code] = lint
        return lint

    return register


def at(operation: Operation, evidence: str) -> Hazard:
    """Return a hazard of an operation."""
    return Hazard(operation.place, evidence)
