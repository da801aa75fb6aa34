"""Bytes to facts: .pte, flattened package, .mlpackage, metadata.json, weight blobs. No torch.

Everything is read lazily from memory maps, and nothing that is found in an artifact - a length, an
offset, a name, a path - is trusted.
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
from harness.artifact.mapped import is_folder
from harness.artifact.package import Package
from harness.artifact.pte import DelegateCall, Pte
from harness.artifact.pte_reader import read_pte
from harness.errors import ArtifactError

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

    An exported folder has a program like a .pte's; `bundles` are its packages by name.
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
        self._bundles: dict[str, Bundle] = bundles or {}

    @property
    def kind(self) -> str:
        """`pte`, `folder` (of an export) or `mlpackage`."""
        if self.package is not None:
            return "mlpackage"
        return "folder" if self.is_exported_folder else "pte"

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of what can be executed: a program's methods, or a package's functions."""
        if self.pte is not None:
            return tuple(m.name for m in self.pte.methods.values() if not m.is_constant)
        assert self.package is not None
        return tuple(self.package.functions)

    @cached_property
    def constants(self) -> Mapping[str, Any]:
        """What a program's constant methods return, by name: a bool, int, float or str, an array
        (a view of the file), or a tuple of those where a method returns several. Raises
        ArtifactError for one that returns anything else, or is not all there.
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

        Methods that refer to the same key share one Bundle. Raises ArtifactError when a reference
        does not resolve.
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
                bundle = Bundle(data.processed, what)
            elif reference.key in self.pte.named_data:
                bundle = self._bundles.setdefault(
                    reference.key,
                    Bundle(self.pte.named_data[reference.key], f"{self.path}, '{reference.key}'"),
                )
            else:
                raise ArtifactError(
                    f"{what}: refers to named data '{reference.key}', which the program does not "
                    f"hold (it holds {', '.join(sorted(self.pte.named_data)) or 'none'})"
                )
            delegates.append(Delegate(method, index, data.processed, reference, bundle))
        return tuple(delegates)

    def value_names(self, method: str) -> dict[int, str]:
        """Name a method's values as the first delegate that takes or gives them does."""
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
        """Every payload once, in the order of first use."""
        bundles = [d.bundle for delegates in self.delegates.values() for d in delegates]
        return tuple(dict.fromkeys(bundles))


def open_artifact(path: str | Path) -> Artifact:
    """Open a .pte, an exported folder or an .mlpackage.

    Raises ArtifactError, one sentence, when there is no such file, when it is truncated or none of
    the three, or when a .pte has no Core ML delegate.
    """
    path = Path(path)
    if is_exported(path):
        program, bundles = read_exported(path)
        return Artifact(path, program, None, bundles)
    if is_folder(path):
        package = Package.from_folder(path)
        _ = package.spec_path
        return Artifact(path, None, package)
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
