"""Mutations of a package's files: its manifest, its metadata's identifier and its weight files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from harness.artifact.delegate import PACKAGE
from harness.artifact.package import MANIFEST
from harness.suites.mutants.edit import Export, Mutation
from harness.suites.mutants.faults import KINDS, fault
from harness.suites.mutants.judge import judge_bytes
from harness.suites.mutants.of_programs import blocks

_MANIFEST = f"{PACKAGE}/{MANIFEST}"
PLACE = "package 1, Manifest.json: "
FILE = "package 1, Data/com.apple.CoreML/weights/weight.bin: "
row = partial(fault, room="package files", judge=judge_bytes, alone=True, tested=KINDS)


# Files of packages


def manifest(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Mutation:
    """Change a package's manifest: `change` takes it and the entry of its weights."""

    def mutate(export: Export) -> None:
        files = blocks(export).files
        content = json.loads(files[_MANIFEST])
        items = content["itemInfoEntries"]
        weights = next(key for key in items if key != content["rootModelIdentifier"])
        change(content, items[weights])
        files[_MANIFEST] = json.dumps(content).encode()

    return mutate


@row("a key twice", {"package-files": "'fileFormatVersion' occurs twi"})
def root_key_twice(export: Export) -> None:
    """Name the root model twice in a manifest."""
    files = blocks(export).files
    content = files[_MANIFEST].rstrip().removesuffix(b"}")
    files[_MANIFEST] = content + b',"fileFormatVersion":"1.0.0"}'


def add_item(content: dict[str, Any], item: dict[str, Any]) -> None:
    """List a second item with the path of the weights."""
    content["itemInfoEntries"]["00000000-0000-0000-0000-000000000000"] = item | {"name": "more"}


@row("a stray file", {"package-files": "no item holds .*notes.txt"})
def stray_file(export: Export) -> None:
    """Put a file into a package that its manifest does not list."""
    blocks(export).files[f"{PACKAGE}/Data/com.apple.CoreML/notes.txt"] = b"notes"


@row("an empty identifier", {"package-files": "package 1, metadata.json: its identifier is empty"})
def empty_identifier(export: Export) -> None:
    """Leave the identifier of a package empty."""
    blocks(export).metadata["identifier"] = ""


@row(
    "one identifier twice",
    {"package-files": "package 1, metadata.json: has the identifier of package 0"},
)
def one_identifier(export: Export) -> None:
    """Give two packages one identifier."""
    first, second, *_ = export.payloads
    second.metadata["identifier"] = first.metadata["identifier"]


# Weight files


@row("a wrong count", {"package-files": rf"{FILE}its header counts \d+"})
def count_one_more(export: Export) -> None:
    """Let the header of a weight file count one weight too many."""
    weights = blocks(export).weights
    struct.pack_into("<I", weights, 0, struct.unpack_from("<I", weights)[0] + 1)


@row("garbage at the end", {"package-files": f"{FILE}no weight begins"})
def end_in_garbage(export: Export) -> None:
    """Append a few bytes to a weight file."""
    weights = blocks(export).weights
    weights.extend(bytes(-len(weights) % 64) + b"garbage")


@row("unused bits", {"package-files": f"{FILE}.* has 3 unused bits"})
def unused_bits(export: Export) -> None:
    """Let the entry of 4-bit weights tell 3 unused bits."""
    weights = blocks(export).weights
    for offset in offsets(weights):
        if struct.unpack_from("<I", weights, offset + 4)[0] == 8:  # INT4
            struct.pack_into("<Q", weights, offset + 24, 3)
            return
    raise AssertionError("no weight has 4 bits")


@row("shared data", {"package-files": f"{FILE}.* has its data at 128"})
def shift_data(export: Export) -> None:
    """Let the entry of a weight point at the data of the one before it."""
    weights = blocks(export).weights
    first, second, *_ = offsets(weights)
    struct.pack_into("<Q", weights, second + 16, first + 64)


def offsets(weights: bytearray) -> Iterator[int]:
    """Yield the offsets of the entries in a weight file."""
    offset = 64
    while offset < len(weights):
        yield offset
        size, start = struct.unpack_from("<QQ", weights, offset + 8)
        offset = start + size + -(start + size) % 64


row("a manifest of version 2", {"package-files": rf"{PLACE}fileFormatVersion is '2.0.0'"})(
    manifest(lambda content, item: content.update(fileFormatVersion="2.0.0"))
)


row("an item without a description", {"package-files": rf"{PLACE}item '.*' has no description"})(
    manifest(lambda content, item: item.pop("description"))
)


row(
    "an item that does not exist",
    {"package-files": rf"{PLACE}item '.*' is 'Data/com.apple.CoreML/w.bin', which does not exist"},
)(manifest(lambda content, item: item.update(path="com.apple.CoreML/w.bin")))


row("two items of one path", {"package-files": rf"{PLACE}items '.*' and '0000.*' have one path"})(
    manifest(add_item)
)
