"""Weight blob files: which bytes of one an ML Program refers to.

A blob file is a 64-byte header (count, version 2), then blobs: each a 64-byte entry (sentinel,
dtype, size in bytes, offset, unused bits at the end) and its data. A program refers to the entry.
Source: coremltools' `mlmodel/src/MILBlob/Blob/StorageFormat.hpp`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.artifact.dtypes import BLOB_TYPES
from harness.artifact.errors import ArtifactError
from harness.artifact.mapped import cut

_HEADER = struct.Struct("<II")
_ENTRY = struct.Struct("<IIQQQ")
_SENTINEL = 0xDEADBEEF
HEADER_SIZE = ENTRY_SIZE = 64
_VERSION = 2
_NUMBERS = {name: number for number, name in BLOB_TYPES.items()}


@dataclass(frozen=True)
class Blob:
    """One weight: its MIL dtype ("FLOAT16", "INT4"), its bytes, and the unused bits at the end."""

    dtype: str
    data: memoryview
    padding_bits: int


def read_blob(file: memoryview, offset: int, what: str) -> Blob:
    """Return the blob whose entry stands at `offset`; raises ArtifactError, naming `what`."""
    if len(file) < HEADER_SIZE or _HEADER.unpack_from(file)[1] != _VERSION:
        raise ArtifactError(f"{what}: its weight file is not a version 2 blob file")
    entry = cut(file, offset, ENTRY_SIZE, f"{what}: the entry of a weight")
    sentinel, number, size, start, padding = _ENTRY.unpack_from(entry)
    if sentinel != _SENTINEL or number not in BLOB_TYPES:
        raise ArtifactError(
            f"{what}: no weight stands at offset {offset} of its weight file; "
            "the program refers to the wrong place, or the file is damaged"
        )
    data = cut(file, start, size, f"{what}: the weight at offset {offset}")
    return Blob(BLOB_TYPES[number], data, padding)


def header_bytes(count: int) -> bytes:
    """Return the header of a blob file of `count` blobs."""
    return _HEADER.pack(count, _VERSION).ljust(HEADER_SIZE, b"\0")


def entry_bytes(blob: Blob, offset: int) -> bytes:
    """Return the entry of a blob that stands at `offset`; the data follows it."""
    number, start = _NUMBERS[blob.dtype], offset + ENTRY_SIZE
    entry = _ENTRY.pack(_SENTINEL, number, len(blob.data), start, blob.padding_bits)
    return entry.ljust(ENTRY_SIZE, b"\0")
