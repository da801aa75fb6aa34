"""`metadata.json`: the names, in order, by which a Core ML delegate is called.

Three forms are read: single (`inputNames`, `outputNames`, `identifier`), multifunction
(`identifier`, `methods`), and the draft's multifunction form with `default_method`, which is kept.
Source: ExecuTorch's `coreml_preprocess.py` and `runtime/delegate/serde_json.mm`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from harness.artifact.errors import ArtifactError
from harness.artifact.limits import MAX_METADATA_BYTES


@dataclass(frozen=True)
class MethodMetadata:
    """The input and output names of one method, in the order in which arguments are passed."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A whole `metadata.json`. Exactly one of `single` and `methods` is set."""

    identifier: str
    single: MethodMetadata | None = None
    methods: dict[str, MethodMetadata] | None = None
    default_method: str | None = None

    @property
    def is_multifunction(self) -> bool:
        """Whether each method has names of its own, and a Core ML function."""
        return self.methods is not None

    def method(self, name: str, what: str) -> MethodMetadata:
        """Return a method's names; a single-method model answers to any name.

        Raises ArtifactError, naming `what`, when a multifunction model lacks the method.
        """
        if self.single is not None:
            return self.single
        methods = self.methods or {}
        if name not in methods:
            raise ArtifactError(
                f"{what}: metadata.json has no method '{name}', only {', '.join(sorted(methods))}"
            )
        return methods[name]

    def to_bytes(self) -> bytes:
        """Return the JSON text as the exporter writes it: same keys, same order, no newline."""
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
        content = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{what}: metadata.json is not JSON ({error})") from None
    match content:
        case {"methods": {**methods}, "identifier": str(identifier), **rest} if methods:
            parsed = {
                str(name): _parse_method(m, f"{what}, '{name}'") for name, m in methods.items()
            }
            default = rest.get("default_method")
            if default is not None and (not isinstance(default, str) or default not in parsed):
                raise ArtifactError(
                    f"{what}: metadata.json's default_method is {default!r}, "
                    f"but its methods are {', '.join(sorted(parsed))}"
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
                    raise ArtifactError(f"{what}: metadata.json's {key} holds more than names")
                if len(set(names)) != len(names):
                    twice = sorted({name for name in names if names.count(name) > 1})
                    raise ArtifactError(
                        f"{what}: metadata.json's {key} names {', '.join(twice)} twice; arguments "
                        "are passed by these names, so each must stand once"
                    )
            return MethodMetadata(tuple(inputs), tuple(outputs))
    raise ArtifactError(f"{what}: metadata.json needs lists 'inputNames' and 'outputNames'")
