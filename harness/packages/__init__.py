"""Core ML packages out of other artifacts: taken out, or combined into one. No torch.

`combine_packages` works on the bytes. It copies functions unchanged, each with its opset, merges
weights by content, and rewrites the references to them. It converts nothing, so that a function
computes the same as before. coremltools' `save_multifunction` makes the same package by way of its
typed program, except for constants, which it writes anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.artifact.blob import WeightFile
from harness.artifact.package import (
    MANIFEST,
    SPECIFICATION,
    WEIGHT_REFERENCE,
    WEIGHTS,
    Package,
    blob_references,
    write_manifest,
)
from harness.artifact.proto import new_model
from harness.errors import HarnessError
from harness.files import Kind, partial_folder
from harness.packages.extract import Extraction, extract_packages
from harness.text import require_outside

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Function
    from coremltools.proto.Model_pb2 import FunctionDescription, Model

__all__ = ["Combined", "Extraction", "Part", "combine_packages", "extract_packages", "parse_parts"]

_MULTIFUNCTION_VERSION = 9  # the first specification version (iOS 18) with several functions
_DESCRIBED = ("input", "output", "state")
_NAMED = ("predictedFeatureName", "predictedProbabilitiesName")
_METADATA = ("shortDescription", "versionString", "author", "license")
_FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # Core ML compiles it to an identifier


class Part(NamedTuple):
    """A function to copy: its package, its name there, and its name in the combined package."""

    package: Path
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.package}:{self.source}"


@dataclass(frozen=True)
class Combined:
    """The outcome of a combination.

    `stored` is the bytes of weights in the package; `used` counts a weight once for each function
    that uses it. `left_out` names the metadata that differed between the parts.
    """

    default_function: str
    stored: int
    used: int
    left_out: tuple[str, ...]


def combine_packages(
    parts: Sequence[tuple[str | Path, str, str]],
    output: str | Path,
    default_function: str | None = None,
    replace: bool = False,
) -> Combined:
    """Write a package of the functions `parts`: (package, its function, name in the new one).

    `default_function` is a name in the new package; without it, that of the first part is the
    default. The same parts give the same bytes. `output` appears whole or not at all; an existing
    .mlpackage is replaced only when `replace` is set. Raises HarnessError when names collide, when
    a function does not exist, when packages cannot be combined, and for an `output` inside one of
    them; ArtifactError when one is damaged.
    """
    chosen = [Part(Path(package), source, target) for package, source, target in parts]
    output = Path(output)
    require_outside(output, *(part.package for part in chosen), replaces=True)
    _check_names(chosen, output, default_function)
    packages = {part.package: Package.from_folder(part.package) for part in chosen}
    default = default_function or chosen[0].target
    model = new_model()
    left_out = _describe(model, list(packages.values()), default)
    for part in chosen:
        _copy_function(model, part, packages[part.package])
    with partial_folder(output, Kind(MANIFEST, ("Data/*",)), replace) as folder:
        stored, used = _write(model, chosen, packages, folder)
    return Combined(default, stored, used, left_out)


def _check_names(parts: Sequence[Part], output: Path, default: str | None) -> None:
    if output.suffix != ".mlpackage":
        raise HarnessError(f"{output}: a package's name must end in .mlpackage")
    if not parts:
        raise HarnessError("nothing to combine: name at least one package")
    taken: dict[str, Part] = {}
    for part in parts:
        if not _FUNCTION_NAME.fullmatch(part.target):
            raise HarnessError(
                f"{part}: {part.target!r} cannot name a function; "
                "letters, digits and underscores can, and no digit comes first"
            )
        if part.target in taken:
            raise HarnessError(
                f"{taken[part.target]} and {part} would both become the function '{part.target}'; "
                "give each a name of its own"
            )
        taken[part.target] = part
    if default is not None and default not in taken:
        raise HarnessError(
            f"no part becomes the default function '{default}'; the names are {', '.join(taken)}"
        )


def _copy_function(model: Model, part: Part, package: Package) -> None:
    """Add a part's function and its description; raises ArtifactError when either is missing."""
    package.operations(part.source)  # raises when the function or its block is missing
    model.mlProgram.functions[part.target].CopyFrom(package.functions[part.source])
    description = _copied_description(package, part.source)
    description.name = part.target
    model.description.functions.append(description)


def _write(
    model: Model, parts: Sequence[Part], packages: dict[Path, Package], folder: Path
) -> tuple[int, int]:
    """Write the files of the package; return the bytes of weights, stored and used."""
    (folder / WEIGHTS).parent.mkdir(parents=True)
    used = 0
    with (folder / WEIGHTS).open("wb") as file:
        weights = WeightFile(file)
        for part in parts:
            function = model.mlProgram.functions[part.target]
            used += _move_weights(function, packages[part.package], weights)
        digest = weights.finish()
    if not weights.count:
        (folder / WEIGHTS).unlink()  # coremltools, too, leaves the folder empty
    specification = model.SerializeToString(deterministic=True)
    (folder / SPECIFICATION).write_bytes(specification)
    write_manifest(folder, hashlib.sha256(digest + specification).digest())
    return weights.stored, used


def _move_weights(function: Function, package: Package, weights: WeightFile) -> int:
    """Add a function's weights and rewrite its references to them; return their size in bytes."""
    moved: dict[tuple[str, int], int] = {}
    used = 0
    for reference in blob_references(function):
        key = (reference.fileName, reference.offset)
        if key not in moved:
            blob = package.blob(*key)
            used += len(blob.data)
            if used > package.size:
                raise HarnessError(f"{package.what}: its weights overlap; it is damaged")
            moved[key] = weights.add(blob)
        reference.fileName, reference.offset = WEIGHT_REFERENCE, moved[key]
    return used


def parse_parts(texts: Sequence[str]) -> list[Part]:
    """Return the functions that arguments of a command line name.

    `A.mlpackage` names all its functions. `A.mlpackage:source=target` names one and renames it.
    `A.mlpackage:name` names the function `name`; if the package has a single function, `name` is
    that function's new name. Raises HarnessError for a name that the package does not have, and
    ArtifactError when the path is not a package.
    """
    return [part for text in texts for part in _parse(text)]


def _parse(text: str) -> list[Part]:
    head, colon, names = text.rpartition(":")
    alone = not colon or "/" in names  # a colon in the path is not ours
    path = Path(text if alone else head)
    functions = sorted(Package.from_folder(path).functions)
    if not functions:
        raise HarnessError(f"{path}: the package has no function")
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
            f"To rename one, write {path}:SOURCE=NAME"
        )
    return [Part(path, functions[0], names)]


def _copied_description(package: Package, function: str) -> FunctionDescription:
    """Return a copy of a function's description, without its name.

    Raises ArtifactError unless the function is described once.
    """
    description = package.description(function)
    copy = new_model().description.functions.add()
    for field in _DESCRIBED:
        getattr(copy, field).extend(getattr(description, field))
    for field in _NAMED:
        setattr(copy, field, getattr(description, field))
    return copy


def _describe(model: Model, packages: Sequence[Package], default_function: str) -> tuple[str, ...]:
    """Set the versions, default function and metadata of `model`; return the metadata left out.

    The specification version is the highest of all packages, and at least 9. Metadata is kept where
    all packages agree. Raises HarnessError when the packages cannot be combined.
    """
    models = [package.model for package in packages]
    for package in packages:
        if package.model.isUpdatable:
            raise HarnessError(
                f"{package.what}: an updatable model; Core ML does not allow it several functions"
            )
    versions = {m.mlProgram.version: p.what for m, p in zip(models, packages, strict=True)}
    if len(versions) > 1:
        found = ", ".join(f"{version} ({what})" for version, what in sorted(versions.items()))
        raise HarnessError(
            f"the ML Programs are of versions {found}; convert them with one version of coremltools"
        )
    model.specificationVersion = max(
        _MULTIFUNCTION_VERSION, *(other.specificationVersion for other in models)
    )
    model.description.defaultFunctionName = default_function
    model.mlProgram.version = models[0].mlProgram.version
    return (*_merge_metadata(model, models), *_merge_attributes(model, models))


def _merge_metadata(model: Model, models: Sequence[Model]) -> list[str]:
    target = model.description.metadata
    sources = [other.description.metadata for other in models]
    differing = []
    for field in _METADATA:
        values = {getattr(source, field) for source in sources}
        if len(values) == 1:
            setattr(target, field, values.pop())
        else:
            differing.append(field)
    for key in sorted({key for source in sources for key in source.userDefined}):
        values = {source.userDefined.get(key) for source in sources}
        if len(values) == 1:
            target.userDefined[key] = values.pop()
        else:
            differing.append(key)
    return differing


def _merge_attributes(model: Model, models: Sequence[Model]) -> list[str]:
    """Keep an attribute of the ML Program, such as its build info, where all models agree."""
    first, *others = (other.mlProgram.attributes for other in models)
    for name, value in first.items():
        if all(name in other and other[name] == value for other in others):
            model.mlProgram.attributes[name].CopyFrom(value)
    names = {name for other in (first, *others) for name in other}
    return sorted(names - set(model.mlProgram.attributes))
