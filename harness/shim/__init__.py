"""Stands in for Core ML where there is none: scripts that predict run unchanged, on our executor.

coremltools reaches Core ML through a native module, `coremltools.libcoremlpython`, which exists on
macOS only. `install` provides a module of that name, and coremltools' own Python works as it is:

    import harness.shim
    harness.shim.install()
    import coremltools as ct            # predicts, makes states, compiles, loads from memory

`harness shim -- COMMAND ...` does the same for a command, before its first line runs.

A finder at the front of `sys.meta_path` provides the module. It also changes two modules of
coremltools right after each has been executed: those that tell whether this is macOS, and which.
ExecuTorch's native runtime gets a Core ML backend in the same way. `sys.platform` keeps its value,
because other packages read it too. No torch, no coremltools.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from harness.errors import HarnessError

NATIVE_MODULE = "coremltools.libcoremlpython"
PYBINDINGS = "executorch.extension.pybindings"
EXECUTORCH_RUNTIMES = (f"{PYBINDINGS}._portable_lib", f"{PYBINDINGS}._C")
"""ExecuTorch's native module: its name up to version 1.4, and from 1.5 on."""
MACOS_VERSION = (26, 0)
"""The macOS that the stand-in passes for: the first with all that coremltools 9.0 can write."""


def _patch_utils(module: Any) -> None:
    module._is_macos = lambda: True
    module._macos_version = lambda: MACOS_VERSION


def _patch_deps(module: Any) -> None:
    module._IS_MACOS = True


def _patch_runtime(module: Any) -> None:
    from harness.shim.executorch import patch

    patch(module)


def _warn_without_runtime(module: Any) -> None:
    """Warn when ExecuTorch's Python has loaded a native module that has another name."""
    if not sys.modules.keys() & set(EXECUTORCH_RUNTIMES):
        names = " nor ".join(name.rpartition(".")[2] for name in EXECUTORCH_RUNTIMES)
        warnings.warn(
            f"ExecuTorch has no Core ML backend here: the stand-in finds neither {names} in "
            f"{PYBINDINGS}; it works with ExecuTorch 1.4 and 1.5",
            RuntimeWarning,
            stacklevel=2,
        )


_PATCHES: dict[str, Callable[[Any], None]] = {
    "coremltools.models.utils": _patch_utils,
    "coremltools._deps": _patch_deps,
    **dict.fromkeys(EXECUTORCH_RUNTIMES, _patch_runtime),
    f"{PYBINDINGS}.portable_lib": _warn_without_runtime,
}
"""Module -> what to do when it has been executed; other modules copy these names from there."""


def install() -> bool:
    """Put the stand-ins in place; False on a Mac, where Core ML itself is used.

    A second call changes nothing. Raises HarnessError when coremltools or ExecuTorch's runtime has
    been imported already, for then it has looked for Core ML, and has not found it.
    """
    if sys.platform == "darwin":
        return False
    if is_installed():
        return True
    if early := sys.modules.keys() & {"coremltools", *EXECUTORCH_RUNTIMES}:
        raise HarnessError(
            f"{min(early)} has been imported before the stand-in for Core ML was installed: call "
            "harness.shim.install() first, or run the command with `harness shim -- COMMAND`"
        )
    sys.meta_path.insert(0, _Finder())
    return True


def is_installed() -> bool:
    """Whether predictions of coremltools go to the stand-in in this process."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == NATIVE_MODULE:
            return importlib.util.spec_from_loader(name, _NativeLoader())
        if name not in _PATCHES:
            return None
        spec = self._found_by_others(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader, _PATCHES[name])
        return spec

    def _found_by_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                return spec
        return None


class _NativeLoader(Loader):
    """Fills the module with the stand-in's classes."""

    def exec_module(self, module: ModuleType) -> None:
        from harness.shim.model import NATIVE_NAMES

        vars(module).update(NATIVE_NAMES)


class _PatchingLoader(Loader):
    """Loads a module with its own loader, changes it, and leaves its own loader in place."""

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
