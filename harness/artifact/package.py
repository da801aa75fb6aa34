"""A Core ML package (.mlpackage): its ML Program, the functions in it, and its weights.

A package is a set of files, from a folder or from a flattened payload. Its `Manifest.json` says
which is the model specification. Weights are referred to both from attributes and from inputs of
operations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifact.blob import Blob, read_blob
from harness.artifact.errors import ArtifactError
from harness.artifact.limits import MAX_MANIFEST_BYTES, MAX_PACKAGE_FILES
from harness.artifact.mapped import is_folder, map_file
from harness.artifact.proto import parse_model

if TYPE_CHECKING:
    from coremltools.proto.MIL_pb2 import Block, Function
    from coremltools.proto.Model_pb2 import Model

_MODEL_PATH = "@model_path/"  # how a program writes "the folder of model.mlmodel"


class Package:
    """One package, read lazily. `files` maps a path below the package's root to bytes."""

    def __init__(self, files: Mapping[str, memoryview], what: str) -> None:
        self.files = files
        self.what = what
        self._blobs: dict[tuple[str, int], Blob] = {}
        self._weights: dict[str, frozenset[tuple[str, int]]] = {}

    @classmethod
    def from_folder(cls, folder: Path) -> Package:
        """Open an .mlpackage folder; every file in it is mapped when it is first asked for.

        Raises ArtifactError when it is not one, without a look at what else a folder holds.
        """
        try:
            is_package = (folder / "Manifest.json").exists()
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be read ({error.strerror})") from None
        if is_folder(folder) and not is_package:
            raise ArtifactError(f"{folder}: not an .mlpackage (no Manifest.json)")
        return cls(FolderFiles(folder), str(folder))

    @cached_property
    def spec_path(self) -> str:
        """The path of the model specification, as the manifest gives it."""
        manifest = self.files.get("Manifest.json")
        if manifest is None:
            raise ArtifactError(f"{self.what}: not an .mlpackage (no Manifest.json)")
        try:
            content = json.loads(bytes(manifest[:MAX_MANIFEST_BYTES]))
            path = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ArtifactError(f"{self.what}: Manifest.json names no root model") from None
        if f"Data/{path}" not in self.files:
            raise ArtifactError(f"{self.what}: Manifest.json names '{path}', which is not there")
        return f"Data/{path}"

    @cached_property
    def model(self) -> Model:
        """The parsed `Model` message."""
        return parse_model(self.files[self.spec_path], self.what)

    @property
    def functions(self) -> Mapping[str, Function]:
        """The ML Program's functions by name."""
        return self.model.mlProgram.functions

    @property
    def is_multifunction(self) -> bool:
        """Whether the functions are described each for itself, and must be loaded by name."""
        return len(self.model.description.functions) > 0

    def operations(self, function: str) -> Block:
        """Return the operations of a function's block for its opset.

        Raises ArtifactError when the function, or that block, is not there.
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

    def blob(self, file_name: str, offset: int) -> Blob:
        """Return the weight that a `blobFileValue` refers to."""
        key = (file_name, offset)
        if key not in self._blobs:
            folder = self.spec_path.rpartition("/")[0]
            path = f"{folder}/{file_name.removeprefix(_MODEL_PATH)}"
            if not file_name.startswith(_MODEL_PATH) or path not in self.files:
                raise ArtifactError(f"{self.what}: weight file '{file_name}' is not in the package")
            self._blobs[key] = read_blob(self.files[path], offset, self.what)
        return self._blobs[key]

    def weights(self, function: str) -> frozenset[tuple[str, int]]:
        """Return the references (file name, offset) of all weights that a function uses."""
        if function not in self._weights:
            self._weights[function] = frozenset(_block_weights(self.operations(function)))
        return self._weights[function]

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(len(self.files[name]) for name in self.files)


def _block_weights(block: Block) -> Iterator[tuple[str, int]]:
    for operation in block.operations:
        values = list(operation.attributes.values())
        values += [a.value for v in operation.inputs.values() for a in v.arguments]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                yield value.blobFileValue.fileName, value.blobFileValue.offset
        for inner in operation.blocks:
            yield from _block_weights(inner)


class FolderFiles(Mapping[str, memoryview]):
    """The regular files below a folder, mapped on first use; links that leave it are refused."""

    def __init__(self, folder: Path) -> None:
        if not is_folder(folder):
            raise ArtifactError(f"{folder}: no such folder; check the path")
        self._mapped: dict[str, memoryview] = {}
        try:
            paths = sorted(_files_below(folder))
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be read ({error.strerror})") from None
        self._paths = {path.relative_to(folder).as_posix(): path for path in paths}

    def __getitem__(self, name: str) -> memoryview:
        if name not in self._mapped:
            self._mapped[name] = map_file(self._paths[name])
        return self._mapped[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _files_below(folder: Path) -> Iterator[Path]:
    root = folder.resolve()
    for number, path in enumerate(folder.rglob("*")):
        if number == MAX_PACKAGE_FILES:
            raise ArtifactError(f"{folder}: more than {MAX_PACKAGE_FILES} files; not a package")
        if path.is_file():
            if not path.resolve().is_relative_to(root):
                raise ArtifactError(f"{path}: a link that leaves the package; remove it")
            yield path


class SubFiles(Mapping[str, memoryview]):
    """The files of another mapping that lie below one of its folders."""

    def __init__(self, files: Mapping[str, memoryview], folder: str) -> None:
        self._files = files
        self._prefix = f"{folder}/"

    def __getitem__(self, name: str) -> memoryview:
        return self._files[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (n.removeprefix(self._prefix) for n in self._files if n.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
