"""What a command that was ended has left behind, and whether a later one takes it for whole."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.cli import main as harness

Content = Mapping[str, bytes]


def content(path: Path) -> Content:
    """The bytes of a file, or of every file below a folder by its path there; empty for nothing."""
    if path.is_file():
        return {"": path.read_bytes()}
    files = (found for found in sorted(path.rglob("*")) if found.is_file())
    return {str(found.relative_to(path)): found.read_bytes() for found in files}


def taken_for_whole(folder: Path, whole: Content, older: Content) -> Iterator[str]:
    """Say what below ``folder`` `harness inspect` accepts although it is not whole.

    ``whole`` is the content of the finished output, and ``older`` that of what stood there before.
    A package inside an unfinished folder may be whole itself; it is compared with its own.
    """
    for path in sorted(folder.iterdir()):
        if content(path) not in (whole, older):
            yield from _accepted(path, path.name)
        for package in sorted(path.rglob("*.mlpackage")):
            name = str(package.relative_to(path))
            if content(package) not in (_below(whole, name), _below(older, name)):
                yield from _accepted(package, f"{path.name}/{name}")


def _below(files: Content, folder: str) -> Content:
    start = f"{folder}/"
    return {name[len(start) :]: data for name, data in files.items() if name.startswith(start)}


def _accepted(path: Path, name: str) -> Iterator[str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        status = harness(["inspect", str(path)])
    if status != 2 or not said.getvalue().startswith("harness inspect: "):
        yield f"{name}: inspect ended with {status} and said {said.getvalue()!r}"
