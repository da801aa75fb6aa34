"""Files as read-only memory maps, and slices of them that never run past the end."""

from __future__ import annotations

import mmap
import stat
from pathlib import Path

from harness.artifact.errors import ArtifactError


def map_file(path: Path) -> memoryview:
    """Map a file read-only, as bytes; nothing is read until it is touched.

    Raises ArtifactError when there is no such file, or it cannot be opened, or it is a pipe or a
    device: opening one could wait for ever.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{path}: not a regular file; give a .pte or an .mlpackage folder")
        if not found.st_size:
            return memoryview(b"")
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or emptied since
        raise ArtifactError(f"{path}: cannot be opened ({_reason(error)})") from None


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a path that cannot be looked at is none, and not an error."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def cut(data: memoryview, offset: int, size: int, what: str) -> memoryview:
    """Return `size` bytes from `offset`; raises ArtifactError when they are not all there."""
    if offset < 0 or size < 0 or offset + size > len(data):
        raise ArtifactError(
            f"{what} claims bytes {offset} to {offset + size}, but only {len(data)} are there: "
            "the file is truncated or damaged; export or copy it again"
        )
    return data[offset : offset + size]
