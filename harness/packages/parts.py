"""What is typed to name functions of packages: `A.mlpackage`, `A.mlpackage:decode`, `A:x=y`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.artifact.package import Package
from harness.errors import HarnessError
from harness.packages.combine import Part


def parse_parts(texts: Sequence[str]) -> list[Part]:
    """Return the functions that `texts` name.

    `A.mlpackage` names all its functions, by their own names. `A.mlpackage:source=target` names
    one and renames it. `A.mlpackage:name` names the function `name`, or, of a package with a single
    function, that function, renamed. Raises HarnessError, or ArtifactError for what is no package.
    """
    return [part for text in texts for part in _parse(text)]


def _parse(text: str) -> list[Part]:
    head, colon, names = text.rpartition(":")
    alone = not colon or "/" in names  # a colon in the path is not ours
    path = Path(text if alone else head)
    functions = sorted(Package.from_folder(path).functions)
    if not functions:
        raise HarnessError(f"{path}: a package without a function")
    if alone:
        return [Part(path, name, name) for name in functions]
    source, equals, target = names.partition("=")
    if equals:
        return [Part(path, source, target)]
    if names in functions:
        return [Part(path, names, names)]
    if len(functions) > 1:
        raise HarnessError(
            f"{path}: no function '{names}'; its functions: {', '.join(functions)}. "
            f"To rename one, say {path}:SOURCE=NAME"
        )
    return [Part(path, functions[0], names)]
