"""A flattened folder: the bytes in which a Core ML delegate stores a package inside a .pte.

The contents of all files come first, then a JSON tree of nodes. The bytes of the tree are in
reverse order, so that a reader can start from the end. The node of a folder follows those of its
entries, and the root comes last; offsets count from the start of the data.
Source: ExecuTorch's `backends/apple/coreml/runtime/inmemoryfs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from harness.artifact.limits import MAX_TREE_BYTES, MAX_TREE_DEPTH
from harness.artifact.mapped import cut
from harness.errors import ArtifactError

_FILE, _FOLDER = 0, 1  # the kinds of node
_FIRST_LOOK = 1 << 16


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
                name = "/".join(path)
                files[name] = cut(data, region["offset"], region["size"], f"{what}: file '{name}'")
                offsets[name] = region["offset"]
                return
            children = node["children"].items() if node["kind"] == _FOLDER else None
        except (KeyError, TypeError, AttributeError):
            children = None
        if children is None:
            raise ArtifactError(f"{what}: its file tree is damaged (node {index})")
        for name, child in children:
            walk(child, (*path, _checked_name(name, what)))

    walk(len(nodes) - 1, ())
    if sum(map(len, files.values())) > len(data):
        raise ArtifactError(f"{what}: its files overlap; it is damaged")
    return dict(sorted(files.items(), key=lambda item: offsets[item[0]]))


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
