"""What an ended command has left behind, and whether a later command takes it for whole."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.cli import main as harness

Content = Mapping[str, bytes]


def content(path: Path) -> Content:
    """Return the bytes of a file, or of all files below a folder by relative path; else {}."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = (found for found in sorted(path.rglob("*")) if found.is_file())
    return {str(found.relative_to(path)): found.read_bytes() for found in files}


def taken_for_whole(
    folder: Path, whole: Content, older: Content, finished: Path | None = None
) -> Iterator[str]:
    """Yield a sentence for each part below `folder` that `harness inspect` takes for whole.

    `whole` is the content of the finished output, and `older` that of the output before it. If
    outputs have random identifiers, `finished` is one, and an output that differs only in these is
    whole, too. A package inside an unfinished folder may be whole; it is compared with the same one
    of the finished output.
    """
    for path in sorted(folder.iterdir()):
        if content(path) != older and not is_whole(path, whole, finished):
            yield from _accepted(path, path.name)
        for package in sorted(path.rglob("*.mlpackage")):
            name = str(package.relative_to(path))
            if content(package) not in (_below(whole, name), _below(older, name)):
                yield from _accepted(package, f"{path.name}/{name}")


def is_whole(path: Path, whole: Content, finished: Path | None = None) -> bool:
    """Return whether an output is that of a complete run; see `taken_for_whole`."""
    return content(path) == whole or (finished is not None and _equal(finished, path))


def _equal(finished: Path, path: Path) -> bool:
    """Return whether two artifacts differ in identifiers only, by `harness diff`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        status = harness(["diff", "--json", str(finished), str(path)])
    if status not in (0, 1):
        return False
    return all(
        found["what"] == "identifier" for found in json.loads(said.getvalue())["differences"]
    )


def _below(files: Content, folder: str) -> Content:
    start = f"{folder}/"
    return {name[len(start) :]: data for name, data in files.items() if name.startswith(start)}


def _accepted(path: Path, name: str) -> Iterator[str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        status = harness(["inspect", str(path)])
    if status != 2 or not said.getvalue().startswith("harness inspect: "):
        yield f"{name}: inspect ended with {status} and said {said.getvalue()!r}"
