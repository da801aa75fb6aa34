"""Lints of what converters emit and devices do wrong: hazards that no execution on a CPU shows.

Each is a *warning*: the bytes are valid, but may compute something else than the model's author
meant, or something else on a device. The check `hazards` lists them; their sources are public
reports, named by the rows of `findings.toml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.artifact.hazards import defects, devices, interfaces, narrowing, numerics, passes
from harness.artifact.hazards.lint import LINTS, Function, Hazard, readable
from harness.artifact.package import Package

__all__ = ["LINTS", "Function", "Hazard", "hazards_of"]

_MODULES = (defects, devices, interfaces, narrowing, numerics, passes)  # they register lints


def hazards_of(
    package: Package, function: str, codes: Iterable[str] = LINTS
) -> Iterator[tuple[str, Hazard]]:
    """Yield the code and the place of each hazard in a function, in the order of codes.

    Only the lints of `codes` run. Raises ArtifactError when the function cannot be read.
    """
    with readable(package, function):
        walked = Function(package, function)
        for code in sorted(codes):
            for found in LINTS[code](walked):
                yield code, found
