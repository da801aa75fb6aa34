"""Files and folders of files as read-only memory maps, and slices that never run past the end."""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.artifact.limits import MAX_PACKAGE_FILES
from harness.errors import ArtifactError


def map_file(path: Path) -> memoryview:
    """Map a file read-only, as bytes; the system reads a page when it is first accessed.

    Raises ArtifactError when the file does not exist or cannot be opened, and for a pipe or a
    device, which could block forever.
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
    """Return whether a path is a folder; False when it cannot be accessed."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)


def cut(data: memoryview, offset: int, size: int, what: str) -> memoryview:
    """Return `size` bytes from `offset`; raises ArtifactError when the data ends before that."""
    if offset < 0 or size < 0 or offset + size > len(data):
        raise ArtifactError(
            f"{what} claims bytes {offset} to {offset + size}, but only {len(data)} are there: "
            "the file is truncated or damaged; export or copy it again"
        )
    return data[offset : offset + size]


class FolderFiles(Mapping[str, memoryview]):
    """The regular files below a folder by path, each mapped when it is first read.

    Raises ArtifactError for a link that leads out of the folder, and for too many files.
    """

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
    """The files of another mapping that are below one of its folders, by path in that folder."""

    def __init__(self, files: Mapping[str, memoryview], folder: str) -> None:
        self._files = files
        self._prefix = f"{folder}/"

    def __getitem__(self, name: str) -> memoryview:
        return self._files[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (n.removeprefix(self._prefix) for n in self._files if n.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
