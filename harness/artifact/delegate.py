"""What a Core ML delegate is handed: the flattened package itself, or a reference to one.

A reference is `CMJR` and JSON `{"version", "key", "functionName"}`; the package stands once under
`key` in the program's named data. A flattened package has no function name: Core ML is then
asked for none. Source: ExecuTorch's `runtime/delegate/coreml_backend_delegate.mm`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from harness.artifact.errors import ArtifactError
from harness.artifact.flattened import read_flattened
from harness.artifact.limits import MAX_REFERENCE_BYTES
from harness.artifact.metadata import MethodMetadata, ModelMetadata, parse_metadata
from harness.artifact.package import Package, SubFiles

BACKEND = "CoreMLBackend"
REFERENCE_MAGIC = b"CMJR"


@dataclass(frozen=True)
class Reference:
    """A payload that points into the program's named data."""

    version: int
    key: str
    function: str | None


def parse_reference(data: memoryview, what: str) -> Reference | None:
    """Return the reference that a payload is, None when it is no reference.

    Raises ArtifactError, naming `what`, when it starts like one but is none.
    """
    if bytes(data[:4]) != REFERENCE_MAGIC:
        return None
    try:
        content = json.loads(bytes(data[4:MAX_REFERENCE_BYTES]))
    except (ValueError, RecursionError):
        content = None
    match content:
        case {"version": 1, "key": str(key)}:
            function = content.get("functionName")
            if function is None or isinstance(function, str):
                return Reference(1, key, function)
        case {"version": int(version), "key": str()}:
            raise ArtifactError(f"{what}: a reference of version {version}; version 1 is known")
    raise ArtifactError(
        f"{what}: starts with {REFERENCE_MAGIC.decode()} but is not a reference: JSON with "
        "'version' 1, 'key' (text) and 'functionName' (text) must follow"
    )


class Bundle:
    """The files that one payload holds: `metadata.json` and `model.mlpackage`."""

    def __init__(self, data: memoryview, what: str) -> None:
        self.data = data
        self.what = what

    @cached_property
    def files(self) -> Mapping[str, memoryview]:
        """All files of the payload, by path."""
        return read_flattened(self.data, self.what)

    @cached_property
    def metadata_bytes(self) -> memoryview:
        """The bytes of `metadata.json`."""
        if "metadata.json" not in self.files:
            raise ArtifactError(f"{self.what}: no metadata.json in the payload")
        return self.files["metadata.json"]

    @cached_property
    def metadata(self) -> ModelMetadata:
        """`metadata.json`, parsed."""
        return parse_metadata(self.metadata_bytes, self.what)

    @cached_property
    def package(self) -> Package:
        """The Core ML package."""
        if not any(name.startswith("model.mlpackage/") for name in self.files):
            compiled = any(name.startswith("model.mlmodelc/") for name in self.files)
            found = "a compiled model.mlmodelc" if compiled else "neither of the two"
            raise ArtifactError(
                f"{self.what}: {found} instead of a model.mlpackage; export with "
                "MODEL_TYPE.MODEL, so that the program can be read"
            )
        return Package(SubFiles(self.files, "model.mlpackage"), self.what)


@dataclass(frozen=True)
class Delegate:
    """One Core ML delegate of one method: which package, which function, which names."""

    method: str
    index: int
    payload: memoryview
    reference: Reference | None
    bundle: Bundle

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"method '{self.method}', delegate {self.index}"

    @property
    def function(self) -> str | None:
        """The Core ML function that is asked for by name; None asks for none."""
        return self.reference.function if self.reference else None

    @property
    def names(self) -> MethodMetadata:
        """The input and output names, in the order of the delegate's arguments."""
        return self.bundle.metadata.method(self.method, self.where)

    @property
    def program_function(self) -> str:
        """The ML Program function that runs: the named one, else the package's default."""
        package = self.bundle.package
        return self.function or package.model.description.defaultFunctionName or "main"
