"""Files as read-only memory maps, and slices of them that never run past the end."""

from __future__ import annotations

import mmap
from pathlib import Path

from harness.artifact.errors import ArtifactError


def map_file(path: Path) -> memoryview:
    """Map a file read-only, as bytes; nothing is read until it is touched.

    Raises ArtifactError when there is no such file, or it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be opened ({error.strerror})") from None


def cut(data: memoryview, offset: int, size: int, what: str) -> memoryview:
    """Return ``size`` bytes from ``offset``; raises ArtifactError when they are not all there."""
    if offset < 0 or size < 0 or offset + size > len(data):
        raise ArtifactError(
            f"{what} claims bytes {offset} to {offset + size}, but only {len(data)} are there: "
            "the file is truncated or damaged; export or copy it again"
        )
    return data[offset : offset + size]
