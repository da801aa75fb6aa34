"""A flattened folder: the way a Core ML delegate stores a package inside a .pte.

File contents come first, one after another; then a JSON tree of nodes, its bytes in reverse order,
so that a reader finds it from the end. Source: ExecuTorch's
`backends/apple/coreml/runtime/inmemoryfs`.
"""

from __future__ import annotations

import json
from typing import Any

from harness.artifact.errors import ArtifactError
from harness.artifact.mapped import cut

_FIRST_LOOK = 1 << 16
_LARGEST_TREE = 1 << 26  # bytes of JSON; a package has a few files, so this is far beyond any
_LARGEST_DEPTH = 64


def read_flattened(data: memoryview, what: str) -> dict[str, memoryview]:
    """Return the files of a flattened folder, by their path below its root ("a/b.json").

    Raises ArtifactError, naming ``what``, when the tree is missing, damaged, cyclic, or holds a
    name that could leave a folder it is extracted to.
    """
    nodes = _read_tree(data, what)
    files: dict[str, memoryview] = {}
    seen: set[int] = set()

    def walk(index: Any, path: tuple[str, ...]) -> None:
        if not isinstance(index, int) or not 0 <= index < len(nodes):
            raise ArtifactError(f"{what}: its file tree names node {index} of {len(nodes)}")
        if index in seen or len(path) > _LARGEST_DEPTH:
            raise ArtifactError(f"{what}: its file tree is no tree (node {index})")
        seen.add(index)
        try:
            node = nodes[index]
            if node["kind"] == 0:
                region = node["dataRegion"]
                name = "/".join(path)
                files[name] = cut(data, region["offset"], region["size"], f"{what}: file '{name}'")
                return
            children = dict(node["children"])
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(f"{what}: its file tree is damaged (node {index})") from None
        for name, child in children.items():
            walk(child, (*path, _checked_name(name, what)))

    walk(len(nodes) - 1, ())
    return files


def _checked_name(name: str, what: str) -> str:
    if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        raise ArtifactError(f"{what}: a file is named {name!r}, which could leave its folder")
    return name


def _read_tree(data: memoryview, what: str) -> list[dict[str, Any]]:
    """Return the nodes: the JSON value that the reversed end of the data starts with."""
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
        if look >= min(len(data), _LARGEST_TREE) or not tail.startswith(b"{"):
            raise ArtifactError(
                f"{what}: not a flattened package (no file tree at its end); "
                "the payload is truncated or damaged"
            )
        look *= 4
