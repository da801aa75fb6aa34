"""The description of a combined package: its functions' inputs and outputs, and its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.artifact.package import Package
from harness.artifact.proto import new_model
from harness.errors import HarnessError

if TYPE_CHECKING:
    from coremltools.proto.Model_pb2 import FunctionDescription, Model

MULTIFUNCTION_VERSION = 9
"""The first specification version (iOS 18) with several functions."""

_DESCRIBED = ("input", "output", "state")
_NAMED = ("predictedFeatureName", "predictedProbabilitiesName")
_METADATA = ("shortDescription", "versionString", "author", "license")


def copied_description(package: Package, function: str) -> FunctionDescription:
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


def describe(model: Model, packages: Sequence[Package], default_function: str) -> tuple[str, ...]:
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
        MULTIFUNCTION_VERSION, *(other.specificationVersion for other in models)
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
