"""The files of an artifact: memory maps, folders, and flattened folders; and the limits of sizes.

A flattened folder is the bytes in which a Core ML delegate stores a package inside a .pte. The
contents of all files come first, then a JSON tree of nodes. The bytes of the tree are in reverse
order, so that a reader can start from the end. The node of a folder follows those of its entries,
and the root comes last; offsets count from the start of the data.
Source: ExecuTorch's `backends/apple/coreml/runtime/inmemoryfs`.

An artifact is not trusted. One that asks for more than a limit, far beyond the needs of any real
model, is damaged or hostile; the harness refuses it before it reads or allocates anything for it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import ArtifactError
from harness.text import require_shallow

# Files
MAX_PACKAGE_FILES = 10_000
MAX_MANIFEST_BYTES = 1 << 20
MAX_SPEC_BYTES = 1 << 30  # of model.mlmodel; protobuf itself ends at 2 GB
MAX_METADATA_BYTES = 1 << 24  # of metadata.json; a model of 1,000 layers has under 1 MB
MAX_PROGRAM_BYTES = 1 << 26  # of program.json; a model of 1,000 layers has under 1 MB
MAX_REFERENCE_BYTES = 1 << 16  # of a payload that refers to named data

# The file tree of a flattened package
MAX_TREE_BYTES = 1 << 24  # of JSON; a package has a few files
MAX_TREE_DEPTH = 64
MAX_PATH_BYTES = 1024  # of a file below the root; no path on a Mac is longer

# Tensors
MAX_AXES = 16  # ExecuTorch's runtime has the same limit
MAX_AXIS_SIZE = (1 << 31) - 1
MAX_ELEMENTS = 1 << 26  # of a value in a package of any size; 256 MB in fp32
MAX_ELEMENTS_PER_BYTE = 4  # of a value, for each byte of a package's files; 4-bit weights have 2

_FILE, _FOLDER = 0, 1  # the kinds of node
_FIRST_LOOK = 1 << 16
_CHUNK_BYTES = 1 << 26


def max_elements(package_bytes: int) -> int:
    """Return how many elements a value may have in a program whose files have `package_bytes`.

    A larger package may ask for larger values, such as the fp32 caches of a 1B model.
    """
    return max(MAX_ELEMENTS, MAX_ELEMENTS_PER_BYTE * package_bytes)


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


def sha256(data: memoryview) -> bytes:
    """Return the SHA-256 of bytes; of a mapped file, they do not stay in this process's memory."""
    digest = hashlib.sha256()
    for start in range(0, len(data), _CHUNK_BYTES):
        digest.update(data[start : start + _CHUNK_BYTES])
        release(data)
    return digest.digest()


def release(data: memoryview) -> None:
    """Give back the memory of a mapped file; a later access maps its pages again."""
    if isinstance(data.obj, mmap.mmap):
        data.obj.madvise(mmap.MADV_DONTNEED)


def require_distinct(paths: Iterable[str], what: str) -> None:
    """Raise ArtifactError, naming `what`, for two paths that are one on a Mac.

    Its file systems ignore case and the composition of accents, unless somebody chose otherwise.
    """
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(unicodedata.normalize("NFD", path.casefold()), path)
        if other != path:
            raise ArtifactError(
                f"{what}: its files {other!r} and {path!r} differ in case or accents only: "
                "on a Mac, one replaces the other; rename one"
            )


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
        require_distinct(self._paths, str(folder))

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


def read_flattened(data: memoryview, what: str) -> dict[str, memoryview]:
    """Return the files of a flattened folder by path, relative to its root ("a/b.json").

    They are in the order of their contents, which `flatten` keeps. Raises ArtifactError, naming
    `what`, when the tree is missing, damaged or cyclic, and when a name in it could lead out of the
    folder to which it is extracted.
    """
    nodes = _read_tree(data, what)
    files: dict[str, memoryview] = {}
    offsets: dict[str, int] = {}
    seen: set[int] = set()

    def walk(index: Any, path: tuple[str, ...]) -> None:
        if not isinstance(index, int) or not 0 <= index < len(nodes):
            raise ArtifactError(f"{what}: its file tree names node {index} of {len(nodes)}")
        if index in seen or len(path) > MAX_TREE_DEPTH:
            raise ArtifactError(f"{what}: its file tree is not a tree (node {index})")
        seen.add(index)
        try:
            node = nodes[index]
            if node["kind"] == _FILE and path:  # the root is a folder
                region = node["dataRegion"]
                name = _checked_length(path, what)
                if len(files) == MAX_PACKAGE_FILES:
                    raise ArtifactError(f"{what}: more than {MAX_PACKAGE_FILES} files")
                files[name] = cut(data, region["offset"], region["size"], f"{what}: file '{name}'")
                offsets[name] = region["offset"]
                return
            children = node["children"].items() if node["kind"] == _FOLDER else None
        except (KeyError, TypeError, AttributeError):
            children = None
        if children is None:
            raise ArtifactError(f"{what}: its file tree is damaged (node {index})")
        _checked_length(path, what)  # of a folder, too: its path is repeated for each file
        for name, child in children:
            walk(child, (*path, _checked_name(name, what)))

    walk(len(nodes) - 1, ())
    if sum(map(len, files.values())) > len(data):
        raise ArtifactError(f"{what}: its files overlap; it is damaged")
    return dict(sorted(files.items(), key=lambda item: offsets[item[0]]))


def _checked_length(path: tuple[str, ...], what: str) -> str:
    """Return a path as text; raises ArtifactError for one that no system can open."""
    if sum(map(len, path)) + len(path) > MAX_PATH_BYTES:
        raise ArtifactError(f"{what}: the path of a file in it is longer than {MAX_PATH_BYTES}")
    return "/".join(path)


def root_name(data: memoryview, what: str) -> str:
    """Return the name of the folder that was flattened; raises ArtifactError, naming `what`."""
    name = _read_tree(data, what)[-1].get("name")
    if not isinstance(name, str):
        raise ArtifactError(f"{what}: the root of its file tree has no name")
    return name


def flatten(files: Mapping[str, bytes | memoryview], root: str = "root") -> bytes:
    """Flatten files, given by their path relative to a folder named `root`, as ExecuTorch does.

    Contents keep the order of `files`, but those of one folder come together, at the place of the
    first. ExecuTorch's order is that of a hash map, so it differs between platforms. Raises
    ArtifactError for a path that could lead out of the folder, or is both a file and a folder.
    """
    writer = _Writer()
    writer.folder(root, [(checked_path(path), content) for path, content in files.items()])
    tree = json.dumps({"nodes": writer.nodes}, separators=(",", ":"), ensure_ascii=False)
    return b"".join([*writer.contents, tree.encode()[::-1]])


_Entry = tuple[tuple[str, ...], "bytes | memoryview"]  # path below a folder, content


class _Writer:
    """Collects contents and nodes; its methods return the number of the node that they add."""

    def __init__(self) -> None:
        self.contents: list[bytes | memoryview] = []
        self.nodes: list[dict[str, Any]] = []
        self._size = 0

    def folder(self, name: str, entries: Iterable[_Entry]) -> int:
        below: dict[str, list[_Entry]] = {}
        for (first, *rest), content in entries:
            below.setdefault(first, []).append((tuple(rest), content))
        children = {child: self._child(child, within) for child, within in below.items()}
        return self._add(_FOLDER, name, dict(sorted(children.items())), 0, 0)

    def _child(self, name: str, within: list[_Entry]) -> int:
        if all(path for path, _ in within):
            return self.folder(name, within)
        if len(within) > 1:
            raise ArtifactError(f"'{name}' cannot be a file and a folder at once")
        offset, content = self._size, within[0][1]
        self.contents.append(content)
        self._size += len(content)
        return self._add(_FILE, name, {}, offset, len(content))

    def _add(self, kind: int, name: str, children: dict[str, int], offset: int, size: int) -> int:
        region = {"offset": offset, "size": size}
        node = {"children": children, "dataRegion": region, "kind": kind, "name": name}
        self.nodes.append(node)
        return len(self.nodes) - 1


def checked_path(path: str) -> tuple[str, ...]:
    """Return the names in a file's path.

    Raises ArtifactError when the path could lead out of its folder.
    """
    return tuple(_checked_name(name, f"'{path}'") for name in path.split("/"))


def _checked_name(name: str, what: str) -> str:
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise ArtifactError(f"{what}: a file is named {name!r}, which could leave its folder")
    return name


def _read_tree(data: memoryview, what: str) -> list[dict[str, Any]]:
    """Return the nodes of the tree: the JSON value with which the reversed data starts."""
    look = _FIRST_LOOK
    while True:
        tail = bytes(data[max(0, len(data) - look) :])[::-1].lstrip(b"\0")
        try:
            tree, _ = json.JSONDecoder().raw_decode(tail.decode(errors="surrogateescape"))
            require_shallow(tree)
            nodes = tree["nodes"]
            if isinstance(nodes, list) and nodes:
                return nodes
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        if look >= min(len(data), MAX_TREE_BYTES) or not tail.startswith(b"{"):
            raise ArtifactError(
                f"{what}: not a flattened package (no file tree at its end); "
                "the payload is truncated or damaged"
            )
        look *= 4
