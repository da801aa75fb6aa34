"""Weight blob files: reads single weights, and writes a file in which each content occurs once.

A blob file has a 64-byte header (count, version 2), then blobs. A blob has a 64-byte entry
(sentinel, dtype, size in bytes, offset of the data, unused bits at the end) and its data, both at
multiples of 64 bytes. A program refers to the entry.
Source: coremltools' `mlmodel/src/MILBlob/Blob/StorageFormat.hpp`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from harness.artifact.files import cut
from harness.errors import ArtifactError

_HEADER = struct.Struct("<II")
_ENTRY = struct.Struct("<IIQQQ")
_SENTINEL = 0xDEADBEEF
HEADER_SIZE = ENTRY_SIZE = 64
_VERSION = 2
_ALIGNMENT = 64
BLOB_TYPES = {
    1: "FLOAT16",
    2: "FLOAT32",
    3: "UINT8",
    4: "INT8",
    5: "BFLOAT16",
    6: "INT16",
    7: "UINT16",
    8: "INT4",
    9: "UINT1",
    10: "UINT2",
    11: "UINT4",
    12: "UINT3",
    13: "UINT6",
    14: "INT32",
    15: "UINT32",
}
"""The number in a weight blob's entry -> the name of the MIL dtype."""
_NUMBERS = {name: number for number, name in BLOB_TYPES.items()}
_FEW_BITS = {"INT4": 4, "UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6}


@dataclass(frozen=True)
class Blob:
    """A weight: its MIL dtype ("FLOAT16", "INT4"), its bytes, and the unused bits at the end."""

    dtype: str
    data: memoryview
    padding_bits: int


def read_blob(file: memoryview, offset: int, what: str) -> Blob:
    """Return the blob whose entry is at `offset`.

    Raises ArtifactError, naming `what`, when the file is not a blob file or has no entry there.
    """
    if len(file) < HEADER_SIZE or _HEADER.unpack_from(file)[1] != _VERSION:
        raise ArtifactError(f"{what}: its weight file is not a version 2 blob file")
    entry = cut(file, offset, ENTRY_SIZE, f"{what}: the entry of a weight")
    sentinel, number, size, start, padding = _ENTRY.unpack_from(entry)
    if sentinel != _SENTINEL or number not in BLOB_TYPES:
        raise ArtifactError(
            f"{what}: its weight file has no weight at offset {offset}; "
            "the program refers to the wrong place, or the file is damaged"
        )
    data = cut(file, start, size, f"{what}: the weight at offset {offset}")
    return Blob(BLOB_TYPES[number], data, padding)


def file_problems(file: memoryview) -> Iterator[str]:
    """Yield what is wrong with the layout of a weight file, from its header to its end.

    A weight begins where the one before it ends, at the next multiple of 64 bytes, and its data
    begins right after its entry; the bytes between are zero. `read_blob` reads any one weight.
    """
    if len(file) < HEADER_SIZE or _HEADER.unpack_from(file)[1] != _VERSION:
        yield "it is not a version 2 blob file"
        return
    count, offset, found = _HEADER.unpack_from(file)[0], HEADER_SIZE, 0
    while offset < len(file):
        entry = bytes(file[offset : offset + ENTRY_SIZE]).ljust(ENTRY_SIZE, b"\0")
        sentinel, number, size, start, padding = _ENTRY.unpack_from(entry)
        if sentinel != _SENTINEL or len(file) - offset < ENTRY_SIZE:
            after = "the weight before it is longer or shorter than its entry says"
            yield f"no weight begins at offset {offset}: {after if found else 'it is damaged'}"
            return
        found += 1
        where = f"the weight at offset {offset}"
        if number not in BLOB_TYPES:
            yield f"{where} has the unknown dtype {number}"
        if start != offset + ENTRY_SIZE:
            yield f"{where} has its data at {start}, not right after its entry"
            return
        end = start + size
        if end > len(file):
            yield f"{where} claims bytes {start} to {end} of a file of {len(file)}"
            return
        bits = _FEW_BITS.get(BLOB_TYPES.get(number, ""), 0)
        if bits and (padding > 7 or (8 * size - padding) % bits):
            yield f"{where} has {padding} unused bits, which {size} bytes of {bits} bits cannot"
        offset = end + -end % _ALIGNMENT
        if any(file[end : min(offset, len(file))]):
            yield f"the padding after {where} is not zero"
    if found != count:
        yield f"its header counts {count} weights, but it holds {found}"


def header_bytes(count: int) -> bytes:
    """Return the header of a blob file of `count` blobs."""
    return _HEADER.pack(count, _VERSION).ljust(HEADER_SIZE, b"\0")


def entry_bytes(blob: Blob, offset: int) -> bytes:
    """Return the entry of a blob; it is written at `offset`, and the blob's data after it."""
    number, start = _NUMBERS[blob.dtype], offset + ENTRY_SIZE
    entry = _ENTRY.pack(_SENTINEL, number, len(blob.data), start, blob.padding_bits)
    return entry.ljust(ENTRY_SIZE, b"\0")


class WeightFile:
    """Writes a weight file to `file`, which must be empty and seekable.

    Bytes go from the source's memory map to the file without a copy in memory: `add` reads each
    weight for its digest, and a new one again, from the page cache, to write it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[tuple[str, int, bytes], int] = {}
        self._size = file.write(header_bytes(0))
        self.stored = 0
        """The bytes of weights written so far, without entries and padding."""

    @property
    def count(self) -> int:
        """The number of weights in the file."""
        return len(self._offsets)

    def add(self, blob: Blob) -> int:
        """Write a weight unless the file has an equal one; return the offset of its entry.

        Two weights are equal when their dtype, unused bits and bytes are.
        """
        key = (blob.dtype, blob.padding_bits, hashlib.sha256(blob.data).digest())
        if key not in self._offsets:
            self._offsets[key] = self._append(blob)
        return self._offsets[key]

    def _append(self, blob: Blob) -> int:
        offset = self._size + -self._size % _ALIGNMENT
        self._file.write(bytes(offset - self._size))
        entry = entry_bytes(blob, offset)
        self._file.write(entry)
        self._file.write(blob.data)
        self._size = offset + len(entry) + len(blob.data)
        self.stored += len(blob.data)
        return offset

    def finish(self) -> bytes:
        """Write the number of weights into the header; return a digest of all weights."""
        self._file.seek(0)
        self._file.write(header_bytes(self.count))
        return hashlib.sha256(repr(list(self._offsets.items())).encode()).digest()
