"""Reads artifacts: .pte, flattened package, .mlpackage, metadata.json, weight blobs. No torch.

This room reads everything lazily from memory maps, and trusts no length, offset, name or path that
it finds in an artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.artifact.delegate import (
    BACKEND,
    Bundle,
    Delegate,
    MethodMetadata,
    ModelMetadata,
    parse_metadata,
    parse_reference,
)
from harness.artifact.exported import is_exported, read_exported
from harness.artifact.files import is_folder
from harness.artifact.package import Package
from harness.artifact.pte import DelegateCall, Pte
from harness.artifact.pte_reader import read_pte
from harness.errors import ArtifactError
from harness.text import no_artifact

__all__ = [
    "Artifact",
    "Bundle",
    "Delegate",
    "MethodMetadata",
    "ModelMetadata",
    "Package",
    "open_artifact",
    "parse_metadata",
]


class Artifact:
    """An opened artifact. Exactly one of `pte` and `package` is set.

    An exported folder has a program, too; `bundles` maps the names of its packages to them.
    """

    def __init__(
        self,
        path: Path,
        pte: Pte | None,
        package: Package | None,
        bundles: dict[str, Bundle] | None = None,
    ) -> None:
        self.path = path
        self.pte = pte
        self.package = package
        self.is_exported_folder = bundles is not None
        self._named_bundles: dict[str, Bundle] = bundles or {}
        self._bundles: dict[int, Bundle] = {}  # by the identity of the payload's view

    @property
    def kind(self) -> str:
        """The kind of artifact: `pte`, `folder` (an exported folder) or `mlpackage`."""
        if self.package is not None:
            return "mlpackage"
        return "folder" if self.is_exported_folder else "pte"

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of a program's methods that are not constant, or of a package's functions."""
        if self.pte is not None:
            return tuple(m.name for m in self.pte.methods.values() if not m.is_constant)
        assert self.package is not None
        return tuple(self.package.functions)

    @cached_property
    def constants(self) -> Mapping[str, Any]:
        """The results of a program's constant methods, by name.

        A result is a bool, int, float or str, an array (a view of the file), or a tuple of these
        when a method returns several values. Raises ArtifactError for a method that returns
        anything else, or whose data is truncated.
        """
        if self.pte is None:
            return {}
        methods = [m for m in self.pte.methods.values() if m.is_constant]
        try:
            return {m.name: self.pte.constant(m) for m in methods}
        except ArtifactError as error:
            raise ArtifactError(f"{self.path}: {error}") from None

    @cached_property
    def delegates(self) -> Mapping[str, tuple[Delegate, ...]]:
        """The Core ML delegates of each method of a program, in order.

        Delegates with one payload, by a key or as the same segment, share one Bundle. Raises
        ArtifactError when a reference names a key that the program does not have.
        """
        if self.pte is None:
            return {}
        return {name: self._method_delegates(name) for name in self.methods}

    def _method_delegates(self, method: str) -> tuple[Delegate, ...]:
        assert self.pte is not None
        delegates = []
        for index, data in enumerate(self.pte.methods[method].delegates):
            if data.backend != BACKEND:
                continue
            what = f"{self.path}, method '{method}', delegate {index}"
            reference = parse_reference(data.processed, what)
            if reference is None:
                bundle = self._bundle(data.processed, what)
            elif reference.key in self._named_bundles:
                bundle = self._named_bundles[reference.key]
            elif reference.key in self.pte.named_data:
                payload = self.pte.named_data[reference.key]
                bundle = self._bundle(payload, f"{self.path}, '{reference.key}'")
            else:
                raise ArtifactError(
                    f"{what}: refers to named data '{reference.key}', which the program does not "
                    f"hold (it holds {', '.join(sorted(self.pte.named_data)) or 'none'})"
                )
            delegates.append(Delegate(method, index, data.processed, reference, bundle))
        return tuple(delegates)

    def _bundle(self, payload: memoryview, what: str) -> Bundle:
        return self._bundles.setdefault(id(payload), Bundle(payload, what))

    def value_names(self, method: str) -> dict[int, str]:
        """Return names for a method's values, from the first delegate that is called with each.

        Keys are indices of values; a value that no Core ML delegate takes or gives has no name.
        """
        assert self.pte is not None
        delegates = {delegate.index: delegate.names for delegate in self.delegates[method]}
        names: dict[int, str] = {}
        for call in self.pte.methods[method].instructions:
            if isinstance(call, DelegateCall) and call.delegate in delegates:
                both = delegates[call.delegate]
                for index, name in zip(
                    call.args, both.input_names + both.output_names, strict=False
                ):
                    names.setdefault(index, name)
        return names

    @cached_property
    def bundles(self) -> tuple[Bundle, ...]:
        """Each payload once, in the order of first use."""
        bundles = [d.bundle for delegates in self.delegates.values() for d in delegates]
        return tuple(dict.fromkeys(bundles))

    @cached_property
    def bundle_numbers(self) -> Mapping[Bundle, int]:
        """The number of each payload in `bundles`."""
        return {bundle: number for number, bundle in enumerate(self.bundles)}

    @property
    def packages(self) -> tuple[Package, ...]:
        """Each Core ML package once: those of the payloads, or the artifact itself."""
        if self.package is not None:
            return (self.package,)
        return tuple(bundle.package for bundle in self.bundles)


def open_artifact(path: str | Path) -> Artifact:
    """Open a .pte, an exported folder or an .mlpackage.

    Raises ArtifactError when the file does not exist, is truncated or is none of the three, and
    when a .pte has no Core ML delegate.
    """
    path = Path(path)
    if is_exported(path):
        program, bundles = read_exported(path)
        return Artifact(path, program, None, bundles)
    if is_folder(path):
        package = Package.from_folder(path)
        _ = package.spec_path
        return Artifact(path, None, package)
    if (problem := no_artifact(path)) is not None:
        raise ArtifactError(f"{path}: {problem}")
    artifact = Artifact(path, read_pte(path), None)
    if not artifact.methods:
        raise ArtifactError(f"{path}: the program has no method that executes anything")
    if not artifact.bundles:
        backends = {d.backend for m in artifact.pte.methods.values() for d in m.delegates}  # type: ignore[union-attr]
        found = f"only {', '.join(sorted(backends))}" if backends else "no delegate at all"
        raise ArtifactError(
            f"{path}: no Core ML delegate in any method ({found}); "
            "export it with ExecuTorch's CoreMLPartitioner"
        )
    return artifact
