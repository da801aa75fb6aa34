"""Selects the part of an artifact to compare: all of it, a method, or a function of a program."""

from __future__ import annotations

from dataclasses import dataclass

from harness.artifact import Artifact
from harness.divergence.recording import Place
from harness.errors import HarnessError


@dataclass(frozen=True)
class Part:
    """The name of a method, of an ML Program function, or both; None means all."""

    method: str | None = None
    function: str | None = None

    def check(self, artifact: Artifact) -> None:
        """Raise HarnessError that lists the known names when the artifact has no such part."""
        functions = {d.program_function for row in artifact.delegates.values() for d in row}
        if artifact.package is not None:
            functions = set(artifact.package.functions)
        for what, name, known in (
            ("method", self.method, set(artifact.methods)),
            ("function", self.function, functions),
        ):
            if name is not None and name not in known:
                raise HarnessError(
                    f"{artifact.path}: no {what} '{name}'; there are {', '.join(sorted(known))}"
                )

    def methods(self, artifact: Artifact) -> list[str]:
        """Return the methods, or functions of an .mlpackage, that belong to the part."""
        if artifact.package is not None:
            return [name for name in artifact.methods if self.has(Place(name, None, name))]
        return [
            name
            for name, row in artifact.delegates.items()
            if any(self.has(Place(name, d.index, d.program_function)) for d in row)
        ]

    def has_method(self, name: str) -> bool:
        """Return whether a method belongs to the part."""
        return self.method in (None, name)

    def has(self, place: Place) -> bool:
        """Return whether the operations at a place belong to the part."""
        return self.has_method(place.method) and self.function in (None, place.function)

    def __str__(self) -> str:
        named = {"method": self.method, "function": self.function}
        said = [f"{what} '{name}'" for what, name in named.items() if name is not None]
        return " and ".join(said) or "it"
