"""Takes an exported .pte apart, lets a mutation change a part, and puts it together again.

The file is edited as bytes. Our own reader gets a copy that can be written to, so that a mutation
changes what the reader points at (a constant, a name) in place. Segments may grow, and are laid out
again.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.artifact.delegate import BACKEND, METADATA, PACKAGE, REFERENCE_MAGIC
from harness.artifact.exported import CONSTANTS, PROGRAM
from harness.artifact.files import SubFiles, flatten, read_flattened, root_name
from harness.artifact.flatbuffer import (
    BackendDelegateDataReferenceField,
    BackendDelegateField,
    DataSegmentField,
    ExecutionPlanField,
    NamedDataField,
    ProgramField,
    Table,
)
from harness.artifact.package import WEIGHTS, Package
from harness.artifact.pte_reader import ProgramTables

_PROGRAM_SIZE, _SEGMENT_BASE, _SEGMENT_SIZE = 16, 24, 32  # where the extended header has them
_ALIGNMENT = 128  # of a segment, ExecuTorch's default
_WEIGHTS = f"{PACKAGE}/{WEIGHTS}"


class Payload:
    """A package with its metadata; the parts that nobody touches keep their bytes."""

    def __init__(self, files: dict[str, bytes], root: str = "") -> None:
        self.files = files
        self._root = root

    @classmethod
    def unflattened(cls, data: bytes) -> Payload:
        """Return the payload of a delegate."""
        view = memoryview(data)
        files = {name: bytes(f) for name, f in read_flattened(view, "payload").items()}
        return cls(files, root_name(view, "payload"))

    @cached_property
    def _package(self) -> Package:
        views = {name: memoryview(content) for name, content in self.files.items()}
        return Package(SubFiles(views, PACKAGE), "payload")

    @cached_property
    def model(self) -> Any:
        """The model, a `Model` message."""
        return self._package.model

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """`metadata.json`."""
        content: dict[str, Any] = json.loads(self.files[METADATA])
        return content

    @cached_property
    def weights(self) -> bytearray:
        """The weight file."""
        return bytearray(self.files[_WEIGHTS])

    @property
    def functions(self) -> list[str]:
        """The names of the ML Program functions."""
        return sorted(self.model.mlProgram.functions)

    def block(self, function: str) -> Any:
        """Return the block of a function."""
        message = self.model.mlProgram.functions[function]
        return message.block_specializations[message.opset]

    def operations(self, function: str, kind: str) -> list[Any]:
        """Return the operations of one type, in program order."""
        return [op for op in self.block(function).operations if op.type == kind]

    def to_bytes(self) -> bytes:
        """Return the payload, flattened."""
        return flatten(self.edited(), self._root)

    def edited(self) -> dict[str, bytes]:
        """Return the files with all changes."""
        touched = vars(self)  # holds a cached property once it has been asked for
        files = dict(self.files)
        if "model" in touched:
            files[f"{PACKAGE}/{self._package.spec_path}"] = self.model.SerializeToString()
        if "weights" in touched:
            files[_WEIGHTS] = bytes(self.weights)
        if "metadata" in touched:
            files[METADATA] = json.dumps(self.metadata).encode()
        return files


class Export:
    """A .pte in parts: its tables, its segments, and the payloads in the order of their delegates.

    A mutation changes a constant in place; a payload replaces the segment that it came from.
    """

    def __init__(self, path: Path) -> None:
        self._file = bytearray(path.read_bytes())
        view = memoryview(self._file)
        self._pte = ProgramTables(view).program()
        self._tables, self._base = view[: self._header(_PROGRAM_SIZE)], self._header(_SEGMENT_BASE)
        delegates = [
            delegate.child(BackendDelegateField.PROCESSED) for delegate in self._delegates()
        ]
        self._delegate_segments = [
            data.scalar(BackendDelegateDataReferenceField.INDEX, "uint32")
            for data in delegates
            if data
        ]
        named = [
            data.scalar(NamedDataField.SEGMENT_INDEX, "uint32")
            for data in self._program.children(ProgramField.NAMED_DATA)
        ]
        self._payload_segments = named or self._delegate_segments
        segments = self._segments()
        self.payloads = [Payload.unflattened(segments[i]) for i in self._payload_segments]
        self._references: list[bytes] | None = None

    @property
    def functions(self) -> list[str]:
        """The names of the ML Program functions, the same in every payload."""
        return self.payloads[0].functions

    @property
    def references(self) -> list[dict[str, Any]]:
        """The references that delegates hold, parsed; set them to replace them."""
        found = self._references or [self._segments()[i] for i in self._delegate_segments]
        return [json.loads(data[len(REFERENCE_MAGIC) :]) for data in found]

    @references.setter
    def references(self, references: list[dict[str, Any]]) -> None:
        self._references = [REFERENCE_MAGIC + json.dumps(r).encode() for r in references]

    def write_drafts(self) -> None:
        """Write the references in the draft dialect: JSON alone, with `method`."""
        self._references = [
            json.dumps({"version": 1, "key": r["key"], "method": r["functionName"]}).encode()
            for r in self.references
        ]

    def constant(self, name: str) -> np.ndarray:
        """Return a constant method's tensor; writing to it writes to the file."""
        value = self._pte.constant(self._pte.methods[name])
        assert isinstance(value, np.ndarray), f"{name} is not a tensor"
        return value

    def rename_method(self, name: str, other: str) -> None:
        """Rename a method; the names must be equally long."""
        assert len(name) == len(other), "a name is changed in place"
        for table in self._program.children(ProgramField.EXECUTION_PLAN):
            text = table.vector(ExecutionPlanField.NAME, 1)
            if text is not None and bytes(text) == name.encode():
                text[:] = other.encode()
                return
        raise AssertionError(f"no method '{name}'")

    def save(self, path: Path) -> Path:
        """Write the .pte: the tables, then all segments, one after another."""
        segments = self._segments()
        for index, payload in zip(self._payload_segments, self.payloads, strict=True):
            segments[index] = payload.to_bytes()
        if self._references is not None:
            for index, reference in zip(self._delegate_segments, self._references, strict=True):
                segments[index] = reference
        out = self._file[: self._base]
        for table, content in zip(
            self._program.children(ProgramField.SEGMENTS), segments, strict=True
        ):
            out.extend(bytes(-(len(out) - self._base) % _ALIGNMENT))
            _put(out, table, DataSegmentField.OFFSET, len(out) - self._base)
            _put(out, table, DataSegmentField.SIZE, len(content))
            out.extend(content)
        struct.pack_into("<Q", out, _SEGMENT_SIZE, len(out) - self._base)
        path.write_bytes(out)
        return path

    @property
    def _program(self) -> Table:
        return Table.root(self._tables)

    def _header(self, position: int) -> int:
        (number,) = struct.unpack_from("<Q", self._file, position)
        return int(number)

    def _delegates(self) -> list[Table]:
        methods = self._program.children(ProgramField.EXECUTION_PLAN)
        found = [
            delegate
            for method in methods
            for delegate in method.children(ExecutionPlanField.DELEGATES)
        ]
        return [delegate for delegate in found if delegate.text(BackendDelegateField.ID) == BACKEND]

    def _segments(self) -> list[bytes]:
        extents = [
            (
                self._base + table.scalar(DataSegmentField.OFFSET, "uint64"),
                table.scalar(DataSegmentField.SIZE, "uint64"),
            )
            for table in self._program.children(ProgramField.SEGMENTS)
        ]
        return [bytes(self._file[start : start + size]) for start, size in extents]


class FolderExport:
    """An exported folder of our exporter in parts, with the parts of `Export` that it has.

    `program` is the content of `program.json`.
    """

    def __init__(self, path: Path) -> None:
        self.program: dict[str, Any] = json.loads((path / PROGRAM).read_text())
        self._constants = bytearray((path / CONSTANTS).read_bytes())
        self._names = list(dict.fromkeys(call["package"] for call in self._calls))
        self.payloads = [Payload(_files(path / name)) for name in self._names]

    @property
    def functions(self) -> list[str]:
        """The names of the ML Program functions, the same in every payload."""
        return self.payloads[0].functions

    def constant(self, name: str) -> np.ndarray:
        """Return a constant array; writing to it writes to the file."""
        entry = self.program["constants"][name]
        dtype, shape = np.dtype(entry["dtype"]), entry["shape"]
        count = math.prod(shape)
        return np.frombuffer(self._constants, dtype, count, entry["offset"]).reshape(shape)

    @property
    def references(self) -> list[dict[str, Any]]:
        """The packages and functions of all calls, as a .pte's references have them."""
        return [
            {"version": 1, "key": call["package"], "functionName": call["function"]}
            for call in self._calls
        ]

    @references.setter
    def references(self, references: list[dict[str, Any]]) -> None:
        for call, reference in zip(self._calls, references, strict=True):
            call |= {"package": reference["key"], "function": reference.get("functionName")}

    @property
    def _calls(self) -> list[dict[str, Any]]:
        return [call for method in self.program["methods"].values() for call in method["calls"]]

    def save(self, path: Path) -> Path:
        """Write the folder."""
        for folder, payload in zip(self._names, self.payloads, strict=True):
            for name, content in payload.edited().items():
                target = path / folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        (path / CONSTANTS).write_bytes(self._constants)
        (path / PROGRAM).write_text(json.dumps(self.program, indent=1))
        return path


def _files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


Mutation = Callable[..., object]  # changes an `Export` in place


def touch_everything(export: Export) -> None:
    """Parse and write every part and change none: the control."""
    for payload in export.payloads:
        assert payload.model and payload.metadata and payload.weights
    for name in ("freqs_cos", "freqs_sin"):
        table = export.constant(name)
        table[:] = table.copy()


def _put(out: bytearray, table: Table, field: int, number: int) -> None:
    """Overwrite a u64 of a table; a flatbuffer leaves out a field that is 0."""
    position = table._field(field)
    assert position or not number, "a segment that was empty, or the first, must stay so"
    if position:
        struct.pack_into("<Q", out, position, number)


def scale_half(weights: bytearray, reference: Any, index: int, factor: float) -> None:
    """Multiply one fp16 value of the blob that `reference` (a `blobFileValue`) names."""
    start = struct.unpack_from("<IIQQ", weights, reference.offset)[3] + 2 * index
    (value,) = struct.unpack_from("<e", weights, start)
    struct.pack_into("<e", weights, start, value * factor)


def put_half(weights: bytearray, reference: Any, index: int, value: float) -> None:
    """Set one fp16 value of the blob that `reference` (a `blobFileValue`) names."""
    start = struct.unpack_from("<IIQQ", weights, reference.offset)[3] + 2 * index
    struct.pack_into("<e", weights, start, value)


def halves(weights: bytearray, reference: Any) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return the fp16 values of the blob that `reference` names; writing to them writes to it."""
    _, _, size, start = struct.unpack_from("<IIQQ", weights, reference.offset)
    return np.frombuffer(weights, np.float16, size // 2, start)


def copy_blob(weights: bytearray, reference: Any) -> int:
    """Store the blob that `reference` names again, at the file's end; return its offset."""
    _, _, size, start = struct.unpack_from("<IIQQ", weights, reference.offset)
    entry = bytearray(weights[reference.offset : reference.offset + 64])
    content = bytes(weights[start : start + size])
    weights.extend(bytes(-len(weights) % 64))
    copy = len(weights)
    struct.pack_into("<Q", entry, 16, copy + 64)
    weights.extend(entry + content)
    struct.pack_into("<I", weights, 0, struct.unpack_from("<I", weights, 0)[0] + 1)
    return copy
