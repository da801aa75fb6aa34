"""Opens models from files and from memory, and compiles them: to files and a text, `model.mil`.

The stand-in's compiled model (`.mlmodelc`) is a folder with the package's files and a note. Only
Core ML can load a model that Core ML compiled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from harness.artifact import Package
from harness.artifact.files import checked_path, map_file
from harness.artifact.package import DATA, MANIFEST, MODEL_PATH, SPECIFICATION
from harness.artifact.proto import declared_shape, mil_types
from harness.errors import ArtifactError, HarnessError
from harness.files import private_folder, token
from harness.mil.values import read_constant
from harness.shim.predictors import check_executable
from harness.shim.structure import IN_MEMORY

if TYPE_CHECKING:
    from coremltools.proto import MIL_pb2

COMPILED = ".mlmodelc"
TEXT = "model.mil"
_NOTE = "compiled-by-harness.txt"
_NOTE_TEXT = (
    "Core ML did not compile this model and cannot load it. The folder holds the files of an\n"
    ".mlpackage for the stand-in of coreml-llm-harness. On a Mac, compile the .mlpackage itself.\n"
)
_OPENED: WeakValueDictionary[tuple[object, ...], Package] = WeakValueDictionary()


class ModelAssetProxy:
    """A model that can be loaded: a package, from files or from memory."""

    def __init__(self, package: Package) -> None:
        self.package = package


def open_model(path: str) -> Package:
    """Open an .mlpackage, or a compiled model of the stand-in.

    A model in one file (.mlmodel) has no weights beside it. Opening a package again while it is
    open returns the same object: its functions share their weights. Raises ArtifactError for
    anything else.
    """
    folder = Path(path)
    if folder.suffix == ".mlmodel" and folder.is_file():
        return package_of_bytes(map_file(folder), what=path)
    _refuse_foreign(folder)
    package = Package.from_folder(folder)
    key = (str(folder.resolve()), *_stamps(folder, package))
    package = _OPENED.setdefault(key, package)
    for name in package.files:
        _ = package.files[name]  # mapped now: the folder may be deleted while the model is in use
    return package


def open_compiled(path: str) -> Package:
    """Open a compiled model of the stand-in; raises ArtifactError for anything else."""
    if not path.rstrip("/").endswith(COMPILED):
        raise ArtifactError(
            f"{path}: not a compiled model ({COMPILED}); give a path that "
            "get_compiled_model_path() or coremltools.models.utils.compile_model() returned"
        )
    return open_model(path)


def compile_model(path: str) -> str:
    """Compile the model at `path` for the stand-in; return the new folder.

    The caller moves or deletes the folder, which lies directly among the temporary files: nothing
    is left around it. Raises ArtifactError for a model that cannot be executed.
    """
    source = Path(path)
    package = open_model(path)
    with private_folder("harness-compiled") as folder:
        made = write_compiled(package, folder, source)
        return str(made.rename(folder.parent / f"{source.stem}.{token()}{COMPILED}"))


def write_compiled(package: Package, folder: Path, source: Path) -> Path:
    """Write a package below `folder` as a compiled model, named after its source."""
    check_executable(package)
    root = folder / f"{source.stem}{COMPILED}"
    package.write(root)
    (root / _NOTE).write_text(_NOTE_TEXT)
    if package.specification.WhichOneof("Type") == "mlProgram":
        (root / TEXT).write_text(program_text(package), encoding="utf-8")
    return root


def package_of_bytes(
    specification: bytes | memoryview,
    weights: Mapping[str, bytes] | None = None,
    what: str = IN_MEMORY,
) -> Package:
    """Return a package of a specification and of weight files by name ("weights/weight.bin").

    Raises ArtifactError for a name outside the folder to which the package is written.
    """
    item = {"path": SPECIFICATION.removeprefix("Data/")}
    manifest = {"itemInfoEntries": {"model": item}, "rootModelIdentifier": "model"}
    files: dict[str, bytes | memoryview] = {
        MANIFEST: json.dumps(manifest).encode(),
        SPECIFICATION: specification,
    }
    for name, data in (weights or {}).items():
        below = checked_path(name.removeprefix(MODEL_PATH))
        files["/".join((DATA, *below))] = data
    views = {name: memoryview(data) for name, data in files.items()}
    return Package(views, what)


def asset_of_path(path: str) -> ModelAssetProxy:
    """Return the asset of a compiled model."""
    with as_runtime_error():
        return ModelAssetProxy(open_compiled(path))


def asset_of_memory(specification: bytes, weights: Mapping[str, bytes]) -> ModelAssetProxy:
    """Return the asset of a model in memory."""
    with as_runtime_error():
        package = package_of_bytes(specification, weights)
        check_executable(package)
        return ModelAssetProxy(package)


def _refuse_foreign(folder: Path) -> None:
    if folder.suffix == COMPILED and folder.is_dir() and not (folder / _NOTE).exists():
        raise ArtifactError(
            f"{folder}: Core ML compiled it, and only Core ML can load it; "
            "load the .mlpackage from which it was compiled"
        )


def _stamps(folder: Path, package: Package) -> list[object]:
    """Return a key that distinguishes a package from a later one at the same path.

    It leaves out the manifest, which coremltools writes again whenever it opens a package.
    """
    stamps: list[object] = []
    for name in sorted(package.files.keys() - {MANIFEST}):
        found = (folder / name).stat()
        stamps.append((name, found.st_ino, found.st_size, found.st_mtime_ns))
    return stamps


@contextmanager
def as_runtime_error() -> Iterator[None]:
    """Turn a HarnessError into a RuntimeError: coremltools catches no other."""
    try:
        yield
    except HarnessError as error:
        raise RuntimeError(str(error)) from error


# --- the text, as coremltools' own tests expect it of Core ML's compiler

_TARGETS = {"CoreML5": "ios15", "CoreML6": "ios16", "CoreML7": "ios17", "CoreML8": "ios18"} | {
    "CoreML9": "ios26"
}
_PLAIN_SCALARS = 9  # the specification version from which a scalar's type is not a tensor's
_INDENT = "    "
_MAX_SPELLED = 1_000_000  # elements of a program's text; large constants belong in weight files


def program_text(package: Package) -> str:
    """Return an ML Program as Core ML's compiler writes it into `model.mil`.

    The text has at most a million elements of arrays; an array beyond them is `...`. Raises
    ArtifactError for a constant that contradicts itself.
    """
    return "\n".join(_Text(package).lines()) + "\n"


class _Text:
    """Spells the messages of one package."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._plain = package.model.specificationVersion >= _PLAIN_SCALARS
        self._room = _MAX_SPELLED

    def lines(self) -> Iterator[str]:
        program = self._package.model.mlProgram
        yield "program(1.3)" if self._plain else "program(1.0)"
        if program.attributes:
            yield f"[{self._attributes(program.attributes)}]"
        yield "{"
        for name in sorted(self._package.functions):
            function = self._package.functions[name]
            inputs = ", ".join(f"{self._type(i.type)} {i.name}" for i in function.inputs)
            target = _TARGETS.get(function.opset, function.opset)
            extra = f" [{self._attributes(function.attributes)}]" if function.attributes else ""
            yield f"{_INDENT}func {name}<{target}>({inputs}){extra} {{"
            block = self._package.operations(name)
            yield from self._operations(block, 3)
            yield f"{_INDENT * 2}}} -> ({', '.join(block.outputs)});"
        yield "}"

    def _operations(self, block: MIL_pb2.Block, depth: int) -> Iterator[str]:
        for operation in block.operations:
            results = ", ".join(f"{self._type(o.type)} {o.name}" for o in operation.outputs)
            arguments = ", ".join(
                f"{name} = {self._argument(operation.inputs[name])}"
                for name in sorted(operation.inputs)
            )
            line = f"{_INDENT * depth}{results} = {operation.type}({arguments})"
            if operation.attributes:
                line += f"[{self._attributes(operation.attributes)}]"
            if not operation.blocks:
                yield f"{line};"
                continue
            yield line
            for number, inner in enumerate(operation.blocks, 1):
                inputs = ", ".join(f"{self._type(i.type)} {i.name}" for i in inner.inputs)
                yield f"{_INDENT * (depth + 1)}({inputs}) {{"
                yield from self._operations(inner, depth + 2)
                end = ";" if number == len(operation.blocks) else ","
                yield f"{_INDENT * (depth + 1)}}} -> ({', '.join(inner.outputs)}){end}"

    def _attributes(self, values: Mapping[str, MIL_pb2.Value]) -> str:
        return ", ".join(f"{name} = {self._value(values[name])}" for name in sorted(values))

    def _argument(self, argument: MIL_pb2.Argument) -> str:
        parts = [
            binding.name if binding.WhichOneof("binding") == "name" else self._value(binding.value)
            for binding in argument.arguments
        ]
        return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"

    def _type(self, message: MIL_pb2.ValueType) -> str:
        match message.WhichOneof("type"):
            case "tensorType":
                return self._tensor_type(message.tensorType)
            case "stateType":
                return f"state<{self._type(message.stateType.wrappedType)}>"
            case "listType":
                length = message.listType.length
                size = length.constant.size if length.WhichOneof("dimension") == "constant" else "?"
                return f"list<{self._type(message.listType.type)}, {size}>"
            case "dictionaryType":
                held = message.dictionaryType
                return f"dict<{self._type(held.keyType)}, {self._type(held.valueType)}>"
            case "tupleType":
                return f"tuple<{', '.join(map(self._type, message.tupleType.types))}>"
        return "?"

    def _tensor_type(self, message: MIL_pb2.TensorType) -> str:
        known = mil_types().get(message.dataType)
        dtype = known.name.lower().replace("float", "fp") if known else "?"
        sizes = ["?" if size is None else str(size) for size in declared_shape(message)]
        return dtype if self._plain and not sizes else f"tensor<{dtype}, [{', '.join(sizes)}]>"

    def _value(self, value: MIL_pb2.Value) -> str:
        kind = self._type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            reference = value.blobFileValue
            path = self._scalar("string", json.dumps(reference.fileName))
            offset = self._scalar("uint64", str(reference.offset))
            return f"{kind}(BLOBFILE(path = {path}, offset = {offset}))"
        immediate = value.immediateValue
        match immediate.WhichOneof("value"):
            case "tensor":
                where = f"{self._package.what}, a constant"
                constant = read_constant(value, self._package, where)
                count = constant.type.count
                if count > max(1, self._room):
                    return f"{kind}(...)"
                self._room -= count if count > 1 else 0
                return f"{kind}({_elements(constant.python)})"
            case "list":
                return f"{kind}(({', '.join(map(self._value, immediate.list.values))}))"
            case "tuple":
                return f"{kind}(({', '.join(map(self._value, immediate.tuple.values))}))"
            case "dictionary":
                pairs = [
                    f"{{{_inner(self._value(pair.key))}, {_inner(self._value(pair.value))}}}"
                    for pair in immediate.dictionary.values
                ]
                return f"{kind}({{{', '.join(pairs)}}})"
        return f"{kind}()"

    def _scalar(self, dtype: str, text: str) -> str:
        return f"{dtype}({text})" if self._plain else f"tensor<{dtype}, []>({text})"


def _elements(value: Any) -> str:
    """Return a scalar or a nested list; floats are hexadecimal, so that none is rounded."""
    match value:
        case list():
            return f"[{', '.join(map(_elements, value))}]"
        case bool():
            return str(value).lower()
        case float() if math.isfinite(value):
            digits, exponent = value.hex().split("p")
            return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}p{exponent}"
        case float():
            return str(value)
        case str():
            return json.dumps(value)
    return str(value)


def _inner(text: str) -> str:
    """Return what a spelled scalar holds, without its type."""
    return text[text.index("(") + 1 : -1]
