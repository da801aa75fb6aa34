"""Writes the Core ML packages inside an artifact to a folder, with a list of their users.

The harness chooses the names of the folders (`package_0`), not the artifact. A folder holds the
unchanged files of a payload: flattened again, they are the payload.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.artifact import Artifact
from harness.artifact.delegate import METADATA, PACKAGE, Bundle, Delegate
from harness.artifact.package import Package, write_files
from harness.errors import ArtifactError
from harness.files import Kind, partial_folder
from harness.text import require_outside

LIST = "extracted.json"


@dataclass(frozen=True)
class Use:
    """A delegate that uses a package; `function` is the ML Program function that it runs."""

    method: str
    delegate: int
    function: str


@dataclass(frozen=True)
class Extracted:
    """A package: its path in the output folder, its content, and the delegates that use it.

    `key` is its name in the program's named data, None when a delegate holds it itself. `size` is
    the bytes of its files, `sha256` the digest of their names and contents.
    """

    package: str
    metadata: str | None
    key: str | None
    identifier: str | None
    size: int
    sha256: str
    functions: tuple[str, ...]
    used_by: tuple[Use, ...]


@dataclass(frozen=True)
class Extraction:
    """All packages of an artifact; `unused` is named data (key, size) that no delegate uses."""

    artifact: str
    packages: tuple[Extracted, ...]
    unused: dict[str, int]

    def to_bytes(self) -> bytes:
        """Return the text of `extracted.json`."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


@dataclass(frozen=True)
class _Source:
    """The files of a payload or package, by path in the folder that will hold them."""

    files: Mapping[str, memoryview]
    package: Package
    bundle: Bundle | None
    delegates: tuple[Delegate, ...]


def extract_packages(artifact: Artifact, output: str | Path, replace: bool = False) -> Extraction:
    """Write each package once to `output`, a new folder, with a list in `extracted.json`.

    `output` appears whole or not at all; an earlier extraction is replaced only when `replace` is
    set. Raises ArtifactError when a reference does not resolve (a key, a function, a method's
    names), when a payload is damaged or holds no package, and when the name of a file in it could
    lead out of the folder or cannot be written; HarnessError when the folder cannot be written, or
    lies inside the artifact.
    """
    sources = list(_sources(artifact))
    require_outside(Path(output), artifact.path, replaces=True)
    named = artifact.pte.named_data if artifact.pte is not None else {}
    used = {d.reference.key for s in sources for d in s.delegates if d.reference}
    packages = tuple(_describe(number, source) for number, source in enumerate(sources))
    unused = {key: len(data) for key, data in named.items() if key not in used}
    extraction = Extraction(artifact.path.name, packages, unused)
    with partial_folder(Path(output), Kind(LIST, ("package_*/*",)), replace) as folder:
        for number, source in enumerate(sources):
            write_files(source.files, folder / _folder(number), source.package.what)
        (folder / LIST).write_bytes(extraction.to_bytes())
    return extraction


def _folder(number: int) -> str:
    return f"package_{number}"


def _sources(artifact: Artifact) -> list[_Source]:
    if artifact.package is not None:
        package = artifact.package
        files = {f"{PACKAGE}/{name}": data for name, data in package.files.items()}
        return [_Source(files, package, None, ())]
    users: dict[Bundle, list[Delegate]] = {bundle: [] for bundle in artifact.bundles}
    for delegates in artifact.delegates.values():
        for delegate in delegates:
            users[delegate.bundle].append(delegate)
    return [_Source(b.files, b.package, b, tuple(found)) for b, found in users.items()]


def _describe(number: int, source: _Source) -> Extracted:
    folder, bundle = _folder(number), source.bundle
    return Extracted(
        package=f"{folder}/{PACKAGE}",
        metadata=f"{folder}/{METADATA}" if bundle else None,
        key=next((d.reference.key for d in source.delegates if d.reference), None),
        identifier=bundle.metadata.identifier if bundle else None,
        size=sum(map(len, source.files.values())),
        sha256=content_digest(source.files),
        functions=tuple(sorted(source.package.functions)),
        used_by=tuple(map(_use, source.delegates)),
    )


def _use(delegate: Delegate) -> Use:
    """Return the function that a delegate runs.

    Raises ArtifactError when the package lacks the function or `metadata.json` the method.
    """
    function, package = delegate.program_function, delegate.bundle.package
    if function not in package.functions:
        raise ArtifactError(
            f"{package.what}: {delegate.where} asks for the function '{function}'; "
            f"the package has {', '.join(sorted(package.functions)) or 'none'}"
        )
    _ = delegate.names  # raises when metadata.json lacks the method
    return Use(delegate.method, delegate.index, function)


def content_digest(files: Mapping[str, memoryview]) -> str:
    """Return the SHA-256 of the names and contents of files, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name!r} {len(files[name])}\n".encode())
        digest.update(files[name])
    return digest.hexdigest()
