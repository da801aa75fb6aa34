"""Checks of the parts that build a native runner: the headers that it includes, the libraries."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.checks.run import check
from harness.errors import NotInstalledError
from harness.installation.tree import Installation
from harness.results import Finding

HEADERS = {
    "install-runtime-headers": (
        "executorch/runtime/executor/program.h",
        "executorch/runtime/executor/method.h",
        "executorch/runtime/executor/method_meta.h",
        "executorch/runtime/executor/memory_manager.h",
        "executorch/runtime/backend/interface.h",
        "executorch/runtime/core/data_loader.h",
        "executorch/runtime/core/evalue.h",
        "executorch/runtime/core/exec_aten/exec_aten.h",
        "executorch/runtime/core/named_data_map.h",
        "executorch/runtime/platform/runtime.h",
        "executorch/extension/tensor/tensor.h",
    ),
    "install-module-headers": (
        "executorch/extension/module/module.h",
        "executorch/extension/data_loader/file_data_loader.h",
        "executorch/extension/data_loader/mmap_data_loader.h",
    ),
    "install-coreml-headers": (
        "coreml_backend/delegate.h",
        "coreml_backend/coreml_backend_options.h",
    ),
}
"""The headers that a runner includes, by check: to execute a program; to do so through the
documentation's `Module`; to set options of the Core ML backend. Source: ExecuTorch's
"Using ExecuTorch with C++", and the includes of `examples/apple/coreml/executor_runner/main.mm`."""

LIBRARIES = {"linux": ("executorch",), "darwin": ("executorch", "executorch_backend_coreml")}
"""The libraries that a runner links, by platform; Core ML can be linked on a Mac only."""

_SUFFIXES = ("so", "dylib", "a")
_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"](executorch/[^>"]+)[>"]', re.MULTILINE)
_C10 = "executorch/runtime/core/portable_type/c10"


@check("install-runtime-headers")
def check_runtime_headers(installation: Installation) -> Iterator[Finding]:
    """Look for the headers with which a runner loads and executes a program."""
    yield from _check_headers("install-runtime-headers", installation)


@check("install-module-headers")
def check_module_headers(installation: Installation) -> Iterator[Finding]:
    """Look for the headers of the documentation's `Module`."""
    yield from _check_headers("install-module-headers", installation)


@check("install-coreml-headers")
def check_coreml_headers(installation: Installation) -> Iterator[Finding]:
    """Look for the headers with which a runner sets the Core ML backend's options."""
    yield from _check_headers("install-coreml-headers", installation)


@check("install-compile")
def check_compile(installation: Installation) -> Iterator[Finding]:
    """Compile a file that includes the runtime's headers; nothing is linked.

    Raises NotInstalledError when there is no C++ compiler.
    """
    compiler = next(filter(None, map(shutil.which, ("c++", "clang++", "g++"))), None)
    if compiler is None:
        raise NotInstalledError("no C++ compiler (c++, clang++ or g++) is installed")
    names = HEADERS["install-runtime-headers"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "runner.cpp"
        source.write_text("".join(f"#include <{name}>\n" for name in names))
        include, c10 = installation.include, installation.include / _C10
        options = ["-std=c++17", "-fsyntax-only", "-DC10_USING_CUSTOM_GENERATED_MACROS"]
        done = subprocess.run(
            [compiler, *options, f"-I{include}", f"-I{c10}", str(source)],
            capture_output=True,
            text=True,
            timeout=300,
        )
    first = next((line for line in done.stderr.splitlines() if " error: " in line), "")
    message = "" if done.returncode == 0 else f"a runner's includes do not compile: {first}"
    yield Finding("install-compile", compiler, not message, message, comparisons=len(names))


@check("install-libraries")
def check_libraries(installation: Installation) -> Iterator[Finding]:
    """Look for each library that a runner on this platform links, in the wheel's `lib`."""
    for name in LIBRARIES.get(sys.platform, ()):
        found = [
            path
            for suffix in _SUFFIXES
            for path in (installation.root / "lib").glob(f"lib{name}.{suffix}*")
        ]
        message = "" if found else f"the wheel has no library lib{name} to link a runner with"
        yield Finding("install-libraries", name, bool(found), message, comparisons=1)


def _check_headers(name_of_check: str, installation: Installation) -> Iterator[Finding]:
    """Look for each header of a group, and for each of ExecuTorch's that it includes in turn."""
    for name in HEADERS[name_of_check]:
        path = _find(installation, name)
        if path is None:
            what = f"the header {name} is not in the wheel's include folder"
            yield Finding(name_of_check, name, False, what, comparisons=1)
            continue
        seen: dict[str, Path | None] = {}
        _follow(installation, path, seen)
        lost = sorted(included for included, found in seen.items() if found is None)
        message = f"{name} includes {', '.join(lost)}, which the wheel lacks" if lost else ""
        yield Finding(name_of_check, name, not lost, message, comparisons=1 + len(seen))


def _find(installation: Installation, name: str) -> Path | None:
    """Return a header's path; a backend's header may be below the folder of the backend."""
    path = installation.include / name
    if path.is_file():
        return path
    if name.startswith("executorch/"):
        return None
    return next((found for found in installation.include.rglob(name) if found.is_file()), None)


def _follow(installation: Installation, path: Path, seen: dict[str, Path | None]) -> None:
    for name in _INCLUDE.findall(path.read_text(encoding="utf-8", errors="replace")):
        if name not in seen:
            found = installation.include / name
            seen[name] = found if found.is_file() else None
            if found.is_file():
                _follow(installation, found, seen)
