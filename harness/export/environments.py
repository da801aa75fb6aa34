"""The ExecuTorch under test: the installed one, a version, a Python of its own, or a checkout.

- `executorch`: the ExecuTorch that this Python imports;
- `executorch@1.5.1`: that version, installed once into the cache, beside this Python's torch;
- `executorch@PYTHON`, `executorch@VENV`: another Python's ExecuTorch, torch and coremltools;
- `executorch@CHECKOUT`: a checkout's Python sources, laid over the wheel of the nearest version.

This module imports none of them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError, NotInstalledError
from harness.export import Progress, overlays
from harness.export._executorch_child import PATCHED

EXECUTORCH = "executorch"
INSTALLED = "installed"
PACKAGES = (EXECUTORCH, "torch", "torchao", "coremltools")
"""The distributions that decide what ExecuTorch's exporter writes."""
PYTHON = "python"  # in versions: torch.export traces the bytecode of a minor version

# ExecuTorch's developers edit the exporter in place, under an unchanged version number.
SOURCES = (
    "examples/apple/coreml/llama",
    "examples/models/llama",
    "backends/apple/coreml",
    "exir",
)
RUNTIME = ("runtime", "extension/pybindings")
EXPORTER_FILE = "examples/apple/coreml/llama/export_static_llm_coreml.py"
WORKING = "1.2 to 1.5"
DEFAULT = "1.4.1"  # where none is installed
_PROBE_SECONDS = 60
_PROBE = """
import importlib.metadata, importlib.util, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
spec = importlib.util.find_spec("executorch")
print(json.dumps({
    "python": sys.version_info[:2],
    "versions": {name: version(name) for name in sys.argv[1:]},
    "roots": list(spec.submodule_search_locations or ()) if spec else [],
}))
"""


@dataclass(frozen=True)
class Environment:
    """A Python with an ExecuTorch that can export.

    `label` names it by its content, without a path. `python` is the interpreter, None for this
    one; `overlay` a folder that comes first on its PYTHONPATH. `root` is the folder of the package
    `executorch`, `versions` those of `PYTHON` and of `PACKAGES`, None for one that is missing.
    """

    label: str
    root: Path
    versions: Mapping[str, str | None]
    python: Path | None = None
    overlay: Path | None = None

    @property
    def version(self) -> str:
        """The version of ExecuTorch."""
        return self.versions[EXECUTORCH] or "unknown"

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the exporter's Python sources."""
        return sources_digest(self.root, SOURCES)

    @functools.cached_property
    def runtime_digest(self) -> str:
        """The SHA-256 of ExecuTorch's own runtime, which `executorch.runtime` loads."""
        return sources_digest(self.root, RUNTIME, ("*.py", "*.so", "*.dylib"))

    def problem(self) -> str | None:
        """Return why our driver cannot export with it, or None when it can."""
        if missing := [name for name in PACKAGES if self.versions.get(name) is None]:
            return f"it lacks {', '.join(missing)}"
        try:
            text = (self.root / EXPORTER_FILE).read_text(encoding="utf-8")
        except OSError:
            return f"it has no exporter of static language models; versions {WORKING} have one"
        if absent := [name for name in PATCHED if not re.search(rf"\b{name}\b", text)]:
            return f"its exporter lacks {', '.join(absent)}; versions {WORKING} work"
        return None

    def check(self) -> None:
        """Raise HarnessError with the reason when our driver cannot export with it."""
        if problem := self.problem():
            raise HarnessError(f"{self.label} (ExecuTorch {self.version}) cannot export: {problem}")


def installed() -> Environment:
    """Return the ExecuTorch of this Python; raises NotInstalledError without one."""
    spec = importlib.util.find_spec(EXECUTORCH)
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalledError("ExecuTorch is not installed; pip install 'executorch==1.4.*'")
    root = Path(next(iter(spec.submodule_search_locations)))
    return Environment(EXECUTORCH, root, installed_versions())


def installed_versions() -> dict[str, str | None]:
    """Return the minor version of this Python, and the versions of its `PACKAGES`."""
    python = "{}.{}".format(*sys.version_info)
    return {PYTHON: python, **{name: _version(name) for name in PACKAGES}}


def environment(place: str, progress: Progress | None = None) -> Environment:
    """Return the environment of `executorch@PLACE`; a version or a checkout is made ready now.

    Raises HarnessError when `place` is neither a version nor a path of one of the three kinds, and
    for a version that cannot be installed.
    """
    if re.fullmatch(r"\d+\.\d[\w.+]*", place):
        return _of_version(place, progress)
    path = Path(place).expanduser().absolute()
    if (path / overlays.LAYOUT).is_dir() and (path / overlays.VERSION_FILE).is_file():
        return _of_checkout(path, progress)
    for python in (path, path / "bin" / "python", path / "Scripts" / "python.exe"):
        if python.is_file() and os.access(python, os.X_OK):
            return _of_python(python, path)
    raise HarnessError(
        f"executorch@{place}: give a version (executorch@1.5.1), or the path of a Python, of a "
        f"virtual environment, or of a checkout of ExecuTorch (with {overlays.VERSION_FILE} and "
        f"{overlays.LAYOUT})"
    )


@functools.lru_cache(maxsize=8)
def placed(place: str) -> Environment:
    """Return the environment of `executorch@PLACE`, of `installed` this Python's, once a process.

    Raises as `environment` and `installed` do.
    """
    return installed() if place == INSTALLED else environment(place)


def cached() -> Iterator[Environment]:
    """Yield the versions that lie in the cache, the oldest first."""
    for folder in overlays.cached_versions():
        yield _over_this_python(folder)


def _of_version(version: str, progress: Progress | None) -> Environment:
    return _over_this_python(overlays.installed_version(version, progress))


def _over_this_python(folder: Path) -> Environment:
    """Return the environment of a folder with an `executorch` and its metadata."""
    version = overlays.version_of(folder)
    versions = installed_versions() | {EXECUTORCH: version}
    root, label = folder / EXECUTORCH, f"{EXECUTORCH}@{version}"
    return Environment(label, root, versions, overlay=folder)


def _of_checkout(path: Path, progress: Progress | None) -> Environment:
    try:
        wheel = installed().root
    except NotInstalledError:
        wheel = None
    folder = overlays.laid_over_wheel(path, wheel, _version(EXECUTORCH), progress)
    return _over_this_python(folder)


def _of_python(python: Path, origin: Path) -> Environment:
    """Ask another Python what it has; raises HarnessError when it cannot be used."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, *PACKAGES],
            capture_output=True,
            text=True,
            env=clean,
            cwd=python.parent,  # a folder `executorch` in ours would hide that Python's
            timeout=_PROBE_SECONDS,
            check=True,
        )
        found = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        words = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(f"executorch@{origin}: its Python fails: {words}") from None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise HarnessError(f"executorch@{origin}: {python} is not a Python ({error})") from None
    major, minor = found["python"]
    if (major, minor) < (3, 11):
        raise HarnessError(
            f"executorch@{origin}: it is Python {major}.{minor}; the export needs 3.11 or newer"
        )
    versions = {PYTHON: f"{major}.{minor}", **found["versions"]}
    if missing := [name for name in PACKAGES if versions[name] is None or not found["roots"]]:
        raise NotInstalledError(f"executorch@{origin}: that Python lacks {', '.join(missing)}")
    label = f"{EXECUTORCH}@{versions[EXECUTORCH]}"
    here = installed_versions()
    for name in (PYTHON, "torch"):
        if versions[name] != here[name]:
            label += f"-{name}-{versions[name]}"
    return Environment(label, Path(found["roots"][0]), versions, python=python)


def sources_digest(
    root: Path, folders: tuple[str, ...], patterns: tuple[str, ...] = ("*.py",)
) -> str:
    """Return the SHA-256 of the files below some folders of a package, and of their names."""
    digest = hashlib.sha256()
    for folder in folders:
        found = (path for pattern in patterns for path in (root / folder).rglob(pattern))
        for path in sorted(found):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
