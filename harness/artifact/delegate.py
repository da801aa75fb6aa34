"""A Core ML delegate's payload: a flattened package, or a reference to one; and its metadata.

A reference is `CMJR` and JSON `{"version", "key", "functionName"}`; the program's named data holds
the package once, under `key`. ExecuTorch's draft (pull request 16552) wrote the JSON alone, with
`method` for `functionName`; no release reads that. With a flattened package comes no function name:
the delegate asks Core ML for none. `metadata.json` lists, in order, the names by which a delegate
passes arguments.
It has three forms: single (`inputNames`, `outputNames`, `identifier`), multifunction (`identifier`,
`methods`), and multifunction of ExecuTorch's draft, with a `default_method`.
Sources: ExecuTorch's `runtime/delegate/coreml_backend_delegate.mm`, `coreml_preprocess.py` and
`runtime/delegate/serde_json.mm`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.artifact.files import (
    MAX_METADATA_BYTES,
    MAX_REFERENCE_BYTES,
    SubFiles,
    read_flattened,
    require_distinct,
)
from harness.artifact.package import Package
from harness.errors import ArtifactError
from harness.text import listed, parse_json

BACKEND = "CoreMLBackend"
METADATA, PACKAGE = "metadata.json", "model.mlpackage"
REFERENCE_MAGIC = b"CMJR"


@dataclass(frozen=True)
class Reference:
    """A payload that points into the program's named data."""

    version: int
    key: str
    function: str | None
    is_draft: bool = False


def parse_reference(data: memoryview, what: str) -> Reference | None:
    """Return a payload's reference, None when the payload is not a reference.

    Raises ArtifactError, naming `what`, when a payload that starts like one cannot be parsed.
    """
    if bytes(data[:4]) != REFERENCE_MAGIC:
        return _parse_draft(data, what)
    try:
        content = parse_json(data[4:MAX_REFERENCE_BYTES])
    except ValueError:
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


def _parse_draft(data: memoryview, what: str) -> Reference | None:
    """Return a reference of the draft dialect: all of the payload is one JSON object with a key.

    A flattened package may start with a JSON file, too, but its tree follows.
    """
    if bytes(data[:1]) != b"{" or len(data) > MAX_REFERENCE_BYTES:
        return None
    try:
        content = parse_json(data)
    except ValueError:
        return None
    match content:
        case {"version": 1, "key": str(key), "method": str(method)}:
            return Reference(1, key, method, is_draft=True)
        case {"key": _}:
            raise ArtifactError(
                f"{what}: a reference without {REFERENCE_MAGIC.decode()}, of ExecuTorch's draft, "
                "needs 'version' 1, 'key' (text) and 'method' (text)"
            )
    return None


@dataclass(frozen=True)
class MethodMetadata:
    """The input and output names of one method, in the order in which arguments are passed."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A parsed `metadata.json`. Exactly one of `single` and `methods` is set."""

    identifier: str
    single: MethodMetadata | None = None
    methods: dict[str, MethodMetadata] | None = None
    default_method: str | None = None

    @property
    def is_multifunction(self) -> bool:
        """Whether each method has its own names, and its own Core ML function."""
        return self.methods is not None

    def method(self, name: str, what: str) -> MethodMetadata:
        """Return a method's names; a single-method model has the same names for any method.

        Raises ArtifactError, naming `what`, when a multifunction model lacks the method.
        """
        if self.single is not None:
            return self.single
        methods = self.methods or {}
        if name not in methods:
            raise ArtifactError(
                f"{what}: metadata.json has no method '{name}', only {listed(sorted(methods))}"
            )
        return methods[name]

    def to_bytes(self) -> bytes:
        """Return the bytes that ExecuTorch's exporter writes: its keys and order, no newline."""
        if self.single is not None:
            content: dict[str, Any] = {**_names(self.single), "identifier": self.identifier}
        else:
            methods = {name: _names(method) for name, method in (self.methods or {}).items()}
            content = {"identifier": self.identifier, "methods": methods}
            if self.default_method is not None:
                content["default_method"] = self.default_method
        return json.dumps(content).encode()


def _names(method: MethodMetadata) -> dict[str, list[str]]:
    return {"inputNames": list(method.input_names), "outputNames": list(method.output_names)}


def parse_metadata(data: bytes | memoryview, what: str) -> ModelMetadata:
    """Parse a `metadata.json`; raises ArtifactError, naming `what` and the key at fault."""
    if len(data) > MAX_METADATA_BYTES:
        raise ArtifactError(
            f"{what}: metadata.json has {len(data)} bytes; {MAX_METADATA_BYTES} are allowed"
        )
    try:
        content = parse_json(data)
    except ValueError as error:
        raise ArtifactError(f"{what}: metadata.json is not JSON ({error})") from None
    match content:
        case {"methods": {**methods}, "identifier": str(identifier), **rest} if methods:
            parsed = {
                str(name): _parse_method(m, f"{what}, '{name}'") for name, m in methods.items()
            }
            default = rest.get("default_method")
            if default is not None and (not isinstance(default, str) or default not in parsed):
                raise ArtifactError(
                    f"{what}: metadata.json's default_method is {default!r:.200}, "
                    f"but its methods are {listed(sorted(parsed))}"
                )
            return ModelMetadata(identifier, methods=parsed, default_method=default)
        case {"inputNames": list(), "outputNames": list(), "identifier": str(identifier)}:
            return ModelMetadata(identifier, single=_parse_method(content, what))
    raise ArtifactError(
        f"{what}: metadata.json needs 'identifier' (text) and either 'inputNames' and "
        "'outputNames' (lists) or a non-empty 'methods' (object)"
    )


def _parse_method(content: Any, what: str) -> MethodMetadata:
    match content:
        case {"inputNames": list(inputs), "outputNames": list(outputs)}:
            for key, names in (("inputNames", inputs), ("outputNames", outputs)):
                if not all(isinstance(name, str) for name in names):
                    raise ArtifactError(f"{what}: metadata.json's {key} must hold names only")
                if twice := [name for name, count in Counter(names).items() if count > 1]:
                    raise ArtifactError(
                        f"{what}: metadata.json's {key} names {listed(sorted(twice))} twice; "
                        "arguments are passed by these names, so each must occur once"
                    )
            return MethodMetadata(tuple(inputs), tuple(outputs))
    raise ArtifactError(f"{what}: metadata.json needs lists 'inputNames' and 'outputNames'")


class Bundle:
    """The files in one payload: `metadata.json` and `model.mlpackage`."""

    def __init__(self, data: memoryview, what: str) -> None:
        self.data = data
        self.what = what

    @cached_property
    def files(self) -> Mapping[str, memoryview]:
        """All files of the payload by path."""
        files = read_flattened(self.data, self.what)
        require_distinct(files, self.what)
        return files

    @cached_property
    def metadata_bytes(self) -> memoryview:
        """The bytes of `metadata.json`."""
        if METADATA not in self.files:
            raise ArtifactError(f"{self.what}: no metadata.json in the payload")
        return self.files[METADATA]

    @cached_property
    def metadata(self) -> ModelMetadata:
        """The parsed `metadata.json`."""
        return parse_metadata(self.metadata_bytes, self.what)

    @cached_property
    def package(self) -> Package:
        """The Core ML package."""
        if not any(name.startswith(f"{PACKAGE}/") for name in self.files):
            compiled = any(name.startswith("model.mlmodelc/") for name in self.files)
            found = "holds a compiled model.mlmodelc" if compiled else "holds no model"
            raise ArtifactError(
                f"{self.what}: {found} instead of a model.mlpackage; export with "
                "MODEL_TYPE.MODEL, so that the program can be read"
            )
        return Package(SubFiles(self.files, PACKAGE), self.what)


@dataclass(frozen=True)
class Delegate:
    """A Core ML delegate of a method: its package, its function and its names."""

    method: str
    index: int
    payload: memoryview
    reference: Reference | None
    bundle: Bundle

    @property
    def where(self) -> str:
        """The delegate's name in messages."""
        return f"method '{self.method}', delegate {self.index}"

    @property
    def function(self) -> str | None:
        """The name of the Core ML function that the delegate asks for, None when it gives none."""
        return self.reference.function if self.reference else None

    @property
    def names(self) -> MethodMetadata:
        """The names of inputs and outputs, in the order of the delegate's arguments."""
        return self.bundle.metadata.method(self.method, self.where)

    @property
    def program_function(self) -> str:
        """The ML Program function that runs: the one asked for, or the package's default."""
        return self.function or self.bundle.package.default_function
