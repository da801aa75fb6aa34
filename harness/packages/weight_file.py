"""Writes a weight file in which every content stands once.

The layout is that of `harness.artifact.blob`: header, then entries and data, each at a multiple of
64 bytes, as coremltools' own writer places them.
"""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from harness.artifact.blob import Blob, entry_bytes, header_bytes

_ALIGNMENT = 64


class WeightFile:
    """A weight file under construction, in `file`, which is empty and can seek.

    Bytes go from the source's memory map to the file: each weight is read for its digest, and
    again, from the page cache, when it is new. No copy is held in memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[tuple[str, int, bytes], int] = {}
        self._size = file.write(header_bytes(0))
        self.stored = 0
        """The bytes of weights in the file, without entries and padding."""

    @property
    def count(self) -> int:
        """The number of weights in the file."""
        return len(self._offsets)

    def add(self, blob: Blob) -> int:
        """Return the offset of the entry of a weight, which is written unless it stands there.

        Two weights are one when dtype, unused bits and every byte are equal.
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
        """Write the number of weights into the header; return a digest of all that was added."""
        self._file.seek(0)
        self._file.write(header_bytes(self.count))
        return hashlib.sha256(repr(list(self._offsets.items())).encode()).digest()
