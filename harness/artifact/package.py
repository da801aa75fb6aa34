"""A Core ML package (.mlpackage): its ML Program, the functions in it, its weights, its files.

A package is a set of files, from a folder or from a flattened payload; its `Manifest.json` names
the model specification. An ML Program refers to a weight by a `BlobFileValue`, which can be the
value of an attribute (of an operation, a block or the function), of an operation's input, or of an
entry of a tuple, list or dictionary. Sources: coremltools' `MIL.proto` and `libmodelpackage`.
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact.blob import Blob, read_blob
from harness.artifact.files import (
    MAX_MANIFEST_BYTES,
    MAX_PACKAGE_FILES,
    FolderFiles,
    is_folder,
    sha256,
)
from harness.artifact.proto import checked_program, parse_specification
from harness.errors import ArtifactError
from harness.text import no_package, parse_json

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Block, Function, Value
    from coremltools.proto.Model_pb2 import FunctionDescription, Model, ModelDescription, Pipeline

    Description = FunctionDescription | ModelDescription

MANIFEST = "Manifest.json"
_AUTHOR = "com.apple.CoreML"
DATA = f"Data/{_AUTHOR}"
SPECIFICATION = f"{DATA}/model.mlmodel"
WEIGHTS = f"{DATA}/weights/weight.bin"
MODEL_PATH = "@model_path/"  # how a program writes the folder of its specification
WEIGHT_REFERENCE = WEIGHTS.replace(f"{DATA}/", MODEL_PATH)


class Package:
    """A package, read lazily. `files` maps paths relative to the package's root to bytes."""

    def __init__(self, files: Mapping[str, memoryview], what: str) -> None:
        self.files = files
        self.what = what
        self._blobs: dict[tuple[str, int], Blob] = {}
        self._weights: dict[str, frozenset[tuple[str, int]]] = {}
        self._digests: dict[tuple[str, int], bytes] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> Package:
        """Open an .mlpackage folder; each of its files is mapped when it is first read.

        Raises ArtifactError for a folder without a manifest before it lists the folder's files.
        """
        try:
            is_package = (folder / MANIFEST).exists()
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be read ({error.strerror})") from None
        if is_folder(folder) and not is_package:
            raise ArtifactError(f"{folder}: {no_package(folder, MAX_PACKAGE_FILES)}")
        return cls(FolderFiles(folder), str(folder))

    def write(self, folder: Path) -> None:
        """Write the files into a new folder; raises ArtifactError as `write_files` does."""
        write_files(self.files, folder, self.what)

    @cached_property
    def spec_path(self) -> str:
        """The path of the model specification, from the manifest."""
        manifest = self.files.get(MANIFEST)
        if manifest is None:
            raise ArtifactError(f"{self.what}: not an .mlpackage (no Manifest.json)")
        try:
            content = parse_json(manifest[:MAX_MANIFEST_BYTES])
            path = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        except (ValueError, KeyError, TypeError):
            raise ArtifactError(f"{self.what}: Manifest.json names no root model") from None
        if f"Data/{path}" not in self.files:
            raise ArtifactError(f"{self.what}: Manifest.json names '{path}', which does not exist")
        return f"Data/{path}"

    @cached_property
    def specification(self) -> Model:
        """The parsed `Model` message, of an ML Program or of another kind of model."""
        return parse_specification(self.files[self.spec_path], self.what)

    @cached_property
    def model(self) -> Model:
        """The parsed `Model` message; raises ArtifactError unless it holds an ML Program."""
        return checked_program(self.specification, self.what)

    @cached_property
    def stages(self) -> tuple[Package, ...]:
        """The models of a pipeline in order, each a package with the same weights; else none."""
        pipeline = pipeline_of(self.specification)
        if pipeline is None:
            return ()
        return tuple(
            Package(
                {**self.files, self.spec_path: memoryview(model.SerializeToString())},
                f"{self.what}, model {number} of its pipeline",
            )
            for number, model in enumerate(pipeline.models, 1)
        )

    @property
    def functions(self) -> Mapping[str, Function]:
        """The ML Program's functions by name."""
        return self.model.mlProgram.functions

    @property
    def is_multifunction(self) -> bool:
        """Whether each function has its own description, and must be loaded by name."""
        return len(self.model.description.functions) > 0

    @property
    def default_function(self) -> str:
        """The function that Core ML runs when the caller names none."""
        return self.model.description.defaultFunctionName or "main"

    def description(self, function: str) -> Description:
        """Return the description of a function's inputs, outputs and states.

        Raises ArtifactError unless the function is described once. The top level of a package that
        is not multifunction describes its only function, or of several the default one.
        """
        if self.is_multifunction:
            count = len(self._descriptions.get(function, ()))
        else:
            count = int(function == self.default_function or len(self.functions) == 1)
        if count != 1:
            raise ArtifactError(
                f"{self.what}: its function '{function}' is described {count} times, not once; "
                "convert the model again"
            )
        return self._descriptions[function][0] if self.is_multifunction else self.model.description

    def described(self, function: str) -> Description:
        """Return a function's entry in the description, or the top level when it has none.

        A multifunction model has an entry for each function. Any other model describes the inputs,
        outputs and states of its function at the top level.
        """
        entries = self._descriptions.get(function)
        return entries[0] if entries else self.model.description

    @cached_property
    def _descriptions(self) -> Mapping[str, Sequence[FunctionDescription]]:
        """The descriptions of each function by name; there should be one."""
        found: defaultdict[str, list[FunctionDescription]] = defaultdict(list)
        for entry in self.model.description.functions:
            found[entry.name].append(entry)
        return found

    def operations(self, function: str) -> Block:
        """Return the block that a function has for its opset.

        Raises ArtifactError when the function or the block does not exist.
        """
        if function not in self.functions:
            names = ", ".join(sorted(self.functions)) or "none"
            raise ArtifactError(f"{self.what}: no function '{function}'; its functions: {names}")
        message = self.functions[function]
        if message.opset not in message.block_specializations:
            raise ArtifactError(
                f"{self.what}, function '{function}': no block for its opset '{message.opset}'"
            )
        return message.block_specializations[message.opset]

    def states(self, function: str) -> tuple[str, ...]:
        """Return the names of a function's states, which live from call to call."""
        inputs = self.functions[function].inputs
        return tuple(i.name for i in inputs if i.type.WhichOneof("type") == "stateType")

    def blob(self, file_name: str, offset: int) -> Blob:
        """Return the weight that a `blobFileValue` refers to."""
        key = (file_name, offset)
        if key not in self._blobs:
            folder = self.spec_path.rpartition("/")[0]
            path = f"{folder}/{file_name.removeprefix(MODEL_PATH)}"
            if not file_name.startswith(MODEL_PATH) or path not in self.files:
                raise ArtifactError(f"{self.what}: weight file '{file_name}' is not in the package")
            self._blobs[key] = read_blob(self.files[path], offset, self.what)
        return self._blobs[key]

    def digest(self, file_name: str, offset: int) -> bytes:
        """Return a digest of the dtype and the content of a weight, which is read once."""
        key = (file_name, offset)
        if key not in self._digests:
            blob = self.blob(*key)
            head = blob.dtype.encode() + bytes([blob.padding_bits & 7])
            self._digests[key] = head + sha256(blob.data)
        return self._digests[key]

    def weights(self, function: str) -> frozenset[tuple[str, int]]:
        """Return the references (file name, offset) to all weights that a function uses."""
        if function not in self._weights:
            references = _in_block(self.operations(function))
            self._weights[function] = frozenset((r.fileName, r.offset) for r in references)
        return self._weights[function]

    @property
    def size(self) -> int:
        """The size of all files together, in bytes."""
        return sum(len(self.files[name]) for name in self.files)


def pipeline_of(model: Model) -> Pipeline | None:
    """Return the pipeline that a `Model` message holds, None for another kind of model."""
    match model.WhichOneof("Type"):
        case "pipeline":
            return model.pipeline
        case "pipelineClassifier":
            return model.pipelineClassifier.pipeline
        case "pipelineRegressor":
            return model.pipelineRegressor.pipeline
    return None


def core_ml_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in which Core ML takes and gives a tensor: (1,) for one of rank 0."""
    return tuple(shape) or (1,)


def blob_references(function: Function) -> Iterator[Value.BlobFileValue]:
    """Yield every `BlobFileValue` message of a `Function`; callers may change it."""
    yield from _in_values(function.attributes.values())
    for block in function.block_specializations.values():
        yield from _in_block(block)


def _in_block(block: Block) -> Iterator[Value.BlobFileValue]:
    yield from _in_values(block.attributes.values())
    for operation in block.operations:
        yield from _in_values(operation.attributes.values())
        for argument in operation.inputs.values():
            yield from _in_values(binding.value for binding in argument.arguments)
        for inner in operation.blocks:
            yield from _in_block(inner)


def _in_values(values: Iterable[Value]) -> Iterator[Value.BlobFileValue]:
    for value in values:
        match value.WhichOneof("value"):
            case "blobFileValue":
                yield value.blobFileValue
            case "immediateValue":
                yield from _in_values(_entries(value.immediateValue))


def _entries(immediate: Value.ImmediateValue) -> Iterator[Value]:
    """Yield the values in a tuple, a list or a dictionary; a tensor holds none."""
    match immediate.WhichOneof("value"):
        case "tuple":
            yield from immediate.tuple.values
        case "list":
            yield from immediate.list.values
        case "dictionary":
            for pair in immediate.dictionary.values:
                yield pair.key
                yield pair.value


def write_files(files: Mapping[str, memoryview], folder: Path, what: str) -> None:
    """Write files, a manifest last: a killed process leaves a folder that is not a package.

    Their names were checked when they were read. Raises ArtifactError, naming `what`, for two names
    that are one here, and for a name that no file can have.
    """
    for name, content in sorted(files.items(), key=lambda item: item[0].endswith(MANIFEST)):
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
        except (FileExistsError, NotADirectoryError):
            raise ArtifactError(
                f"{what}: its file {name!r} differs from another in case only; "
                "write it on a case-sensitive file system"
            ) from None
        except ValueError:  # a lone surrogate
            raise ArtifactError(f"{what}: {name!r} cannot name a file") from None


def write_manifest(package: Path, digest: bytes) -> None:
    """Write `Manifest.json`, which makes a folder a package: call this last.

    coremltools chooses random identifiers. Ours come from `digest`, a digest of the package's
    content of at least 16 bytes, so that the same content gives the same file.
    """
    items = {
        "specification": ("model.mlmodel", "CoreML Model Specification"),
        "weights": ("weights", "CoreML Model Weights"),
    }
    identifiers = {key: str(uuid.uuid5(uuid.UUID(bytes=digest[:16]), key)) for key in items}
    entries = {
        identifiers[key]: {
            "author": _AUTHOR,
            "description": description,
            "name": name,
            "path": f"{_AUTHOR}/{name}",
        }
        for key, (name, description) in items.items()
    }
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": dict(sorted(entries.items())),
        "rootModelIdentifier": identifiers["specification"],
    }
    (package / MANIFEST).write_text(json.dumps(content, indent=4) + "\n")
