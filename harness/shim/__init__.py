"""A stand-in for Core ML on other systems: scripts that predict run unchanged, on our executor.

coremltools calls Core ML through a native module, `coremltools.libcoremlpython`, which exists on
macOS only. `install` provides a module of that name; coremltools' own Python works unchanged:

    import harness.shim
    harness.shim.install()
    import coremltools as ct            # predicts, makes states, compiles, loads from memory

`harness shim -- COMMAND ...` does the same for a command, before its first line runs.

A finder at the front of `sys.meta_path` provides the module. It also changes two modules of
coremltools right after they have been executed: those that detect macOS and its version.
ExecuTorch's native runtime gets a Core ML backend in the same way. `sys.platform` does not change,
because other packages read it too. This module imports neither torch nor coremltools.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import HarnessError

NATIVE_MODULE = "coremltools.libcoremlpython"
PYBINDINGS = "executorch.extension.pybindings"
EXECUTORCH_RUNTIMES = (f"{PYBINDINGS}._portable_lib", f"{PYBINDINGS}._C")
"""ExecuTorch's native module: its name up to version 1.4, and from 1.5 on."""
SITE = Path(__file__).parent / "site"
"""The folder whose `sitecustomize` installs the stand-in in a child, by its PYTHONPATH."""
MACOS_VERSION = (26, 0)
"""The macOS version that the stand-in reports, the first to support all of coremltools 9.0."""


def _patch_utils(module: Any) -> None:
    module._is_macos = lambda: True
    module._macos_version = lambda: MACOS_VERSION


def _patch_deps(module: Any) -> None:
    module._IS_MACOS = True


def _patch_runtime(module: Any) -> None:
    from harness.shim.executorch import patch

    patch(module)


def _warn_without_runtime(module: Any) -> None:
    """Warn when ExecuTorch's Python has loaded a native module with another name."""
    if not sys.modules.keys() & set(EXECUTORCH_RUNTIMES):
        names = " nor ".join(name.rpartition(".")[2] for name in EXECUTORCH_RUNTIMES)
        warnings.warn(
            f"ExecuTorch has no Core ML backend here: the stand-in finds neither {names} in "
            f"{PYBINDINGS}; it works with ExecuTorch 1.4 and 1.5",
            RuntimeWarning,
            stacklevel=2,
        )


NATIVE_PATCHES: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(EXECUTORCH_RUNTIMES, _patch_runtime),
    f"{PYBINDINGS}.portable_lib": _warn_without_runtime,
}
"""Module -> the function that changes it once it has been executed: ExecuTorch's runtime.

Other modules copy the changed names from it.
"""
_PLATFORM_PATCHES = {
    "coremltools.models.utils": _patch_utils,
    "coremltools._deps": _patch_deps,
}


def install() -> bool:
    """Install the stand-ins; return False on a Mac, which uses Core ML itself.

    A second call changes nothing. Raises HarnessError when coremltools or ExecuTorch's runtime has
    been imported already, because it has then failed to find Core ML.
    """
    if sys.platform == "darwin":
        return False
    if is_installed():
        return True
    if early := sys.modules.keys() & {"coremltools", *EXECUTORCH_RUNTIMES}:
        raise HarnessError(
            f"{min(early)} was imported before the stand-in for Core ML was installed: call "
            "harness.shim.install() first, or run the command with `harness shim -- COMMAND`"
        )
    sys.meta_path.insert(0, _StandIn({**NATIVE_PATCHES, **_PLATFORM_PATCHES}))
    return True


def is_installed() -> bool:
    """Return whether coremltools uses the stand-in in this process."""
    return any(isinstance(finder, _StandIn) for finder in sys.meta_path)


class Finder(MetaPathFinder):
    """Finds coremltools' native module in this project, and modules that are patched."""

    def __init__(self, patches: Mapping[str, Callable[[Any], None]]) -> None:
        self._patches = patches

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the native module, or of one that is patched; None for any other."""
        if name == NATIVE_MODULE:
            return importlib.util.spec_from_loader(name, _NativeLoader())
        if name not in self._patches:
            return None
        spec = self._found_by_others(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, self._patches[name])
        return spec

    def _found_by_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                return spec
        return None


class _StandIn(Finder):
    """The finder of `install`, which `is_installed` looks for."""


class _NativeLoader(Loader):
    """Fills the native module with the stand-in's classes."""

    def exec_module(self, module: ModuleType) -> None:
        from harness.shim.model import NATIVE_NAMES

        vars(module).update(NATIVE_NAMES)


class _PatchingLoader(Loader):
    """Loads a module with its own loader, then changes it; the module keeps its own loader."""

    def __init__(self, loader: Loader, patch: Callable[[Any], None]) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._patch(module)
