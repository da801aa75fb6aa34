"""Takes an exported .pte apart, lets a mutation change a part, and puts it together again.

The program's tables are read and written by ExecuTorch's own serialiser, models by protobuf. To add
a mutant: write a function that changes an `Export` in place, and a row in `test_mutants`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.artifact.delegate import REFERENCE_MAGIC
from harness.artifact.flattened import read_flattened
from harness.artifact.package import Package, SubFiles

Files = dict[str, bytes]
_SPEC = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


class Payload:
    """The files of one package, its model parsed."""

    def __init__(self, data: bytes) -> None:
        self.files: Files = {
            name: bytes(content)
            for name, content in read_flattened(memoryview(data), "payload").items()
        }
        views = {name: memoryview(content) for name, content in self.files.items()}
        self.model = Package(SubFiles(views, "model.mlpackage"), "payload").model
        self.metadata: dict[str, Any] = json.loads(self.files["metadata.json"])
        self.weights = bytearray(self.files[_WEIGHTS])

    def block(self, function: str) -> Any:
        """The operations' block of a function."""
        message = self.model.mlProgram.functions[function]
        return message.block_specializations[message.opset]

    def operations(self, function: str, kind: str) -> list[Any]:
        """The operations of one type, in program order."""
        return [op for op in self.block(function).operations if op.type == kind]

    def to_bytes(self) -> bytes:
        """The payload, flattened."""
        self.files[_SPEC] = self.model.SerializeToString()
        self.files[_WEIGHTS] = bytes(self.weights)
        self.files["metadata.json"] = json.dumps(self.metadata).encode()
        return flatten(self.files)


class Export:
    """A .pte in parts: ExecuTorch's program, and the payloads in the order of their delegates."""

    def __init__(self, path: Path) -> None:
        from executorch.exir._serialize._program import deserialize_pte_binary

        self.file = deserialize_pte_binary(path.read_bytes())
        self.program = self.file.program
        named = self.file.named_data
        self.keys = list(named.pte_data) if named else []
        self._buffers = [named.pte_data[key].buffer_index for key in self.keys] if named else []
        data = (
            [bytes(named.buffers[index]) for index in self._buffers]
            if named
            else [bytes(inline.data) for inline in self.program.backend_delegate_data]
        )
        self.payloads = [Payload(content) for content in data]

    @property
    def functions(self) -> list[str]:
        """The names of the ML Program functions, the same in every payload."""
        return sorted(self.payloads[0].model.mlProgram.functions)

    def references(self) -> list[dict[str, Any]]:
        """The references that delegates hold, parsed; write them back with `set_references`."""
        magic = len(REFERENCE_MAGIC)
        return [json.loads(bytes(d.data)[magic:]) for d in self.program.backend_delegate_data]

    def set_references(self, references: list[dict[str, Any]]) -> None:
        """Replace the references, in the same order."""
        for inline, reference in zip(self.program.backend_delegate_data, references, strict=True):
            inline.data = REFERENCE_MAGIC + json.dumps(reference).encode()

    def constant(self, name: str) -> bytearray:
        """A copy of a constant method's tensor data; write it back with `set_constant`."""
        return bytearray(self.program.constant_buffer[self._constant(name)].storage)

    def set_constant(self, name: str, data: bytes) -> None:
        """Replace a constant method's tensor data."""
        self.program.constant_buffer[self._constant(name)].storage = bytes(data)

    def _constant(self, name: str) -> int:
        plan = next(plan for plan in self.program.execution_plan if plan.name == name)
        index: int = plan.values[plan.outputs[0]].val.data_buffer_idx
        return index

    def save(self, path: Path) -> Path:
        """Write the .pte."""
        from executorch.exir._serialize._program import serialize_pte_binary

        contents = [payload.to_bytes() for payload in self.payloads]
        if self.file.named_data:
            for index, content in zip(self._buffers, contents, strict=True):
                self.file.named_data.buffers[index] = content
        else:
            for inline, content in zip(self.program.backend_delegate_data, contents, strict=True):
                inline.data = content
        path.write_bytes(bytes(serialize_pte_binary(self.file, extract_delegate_segments=True)))
        return path


Mutation = Callable[[Export], None]


def flatten(files: Files) -> bytes:
    """Flatten files as a delegate's payload holds them; see `harness.artifact.flattened`."""
    data = bytearray()
    nodes: list[dict[str, Any]] = []

    def add(name: str, paths: dict[str, bytes]) -> int:
        children: dict[str, int] = {}
        for child in sorted({path.partition("/")[0] for path in paths}):
            if child in paths:
                region = {"offset": len(data), "size": len(paths[child])}
                data.extend(paths[child])
                nodes.append({"children": {}, "dataRegion": region, "kind": 0, "name": child})
                children[child] = len(nodes) - 1
            else:
                prefix = f"{child}/"
                below = {
                    p.removeprefix(prefix): c for p, c in paths.items() if p.startswith(prefix)
                }
                children[child] = add(child, below)
        region = {"offset": 0, "size": 0}
        nodes.append({"children": children, "dataRegion": region, "kind": 1, "name": name})
        return len(nodes) - 1

    add("root", files)
    tree = json.dumps({"nodes": nodes}, separators=(",", ":")).encode()
    return bytes(data) + tree[::-1]


def scale_half(weights: bytearray, reference: Any, index: int, factor: float) -> None:
    """Multiply one fp16 value of the blob that ``reference`` (a `blobFileValue`) names."""
    start = struct.unpack_from("<IIQQ", weights, reference.offset)[3] + 2 * index
    (value,) = struct.unpack_from("<e", weights, start)
    struct.pack_into("<e", weights, start, value * factor)


def copy_blob(weights: bytearray, reference: Any) -> None:
    """Store a blob a second time, at the end, and let ``reference`` name the copy."""
    _, _, size, start = struct.unpack_from("<IIQQ", weights, reference.offset)
    entry = bytearray(weights[reference.offset : reference.offset + 64])
    content = bytes(weights[start : start + size])
    weights.extend(bytes(-len(weights) % 64))
    struct.pack_into("<Q", entry, 16, len(weights) + 64)
    reference.offset = len(weights)
    weights.extend(entry + content)
    struct.pack_into("<I", weights, 0, struct.unpack_from("<I", weights, 0)[0] + 1)
