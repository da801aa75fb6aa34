"""Shows this process macOS: the platform, Core ML's native module, and no call of Linux only.

Only the packages in `APART` see it. torch, numba and psutil load their libraries by the platform's
name, and must find the real one. This module imports the standard library alone, because it runs
when Python starts.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, ModuleType, SimpleNamespace
from typing import Any

APART = ("harness", "tests", "suites", "fixtures", "coremltools", "executorch")
LINES = "HARNESS_REHEARSAL_LINES"
"""The environment variable that names the file in which `LineLoader` notes the lines that run."""
MEASURED = (
    "harness.runtimes.coreml",
    "harness.runtimes.iphone",
    "harness.runtimes.executorch",
    "harness.runtimes.isolated",
    "harness.runtimes._isolated_child",
    "harness.checks.core_ml",
)
"""The modules of the Mac's runtimes."""
VERSION = ("15.7.1", ("", "", ""), "arm64")
ABSENT = {
    "os": ("memfd_create", "sched_getaffinity", "sched_setaffinity", "posix_fadvise", "pidfd_open"),
    "resource": ("prlimit",),
}
"""Functions that Python does not have on macOS."""
ABSENT_PATHS = ("/proc/", "/dev/full", "/dev/shm/", "/sys/")
ABSENT_SYMBOLS = ("prctl", "memfd_create", "sched_getaffinity")


def install() -> None:
    """Make this process look like a Mac's to the packages in `APART`."""
    _Sys.real = sys.platform
    sys.__class__ = _Sys
    shown: dict[str, Callable[..., Any]] = {
        "system": lambda: "Darwin",
        "mac_ver": lambda *given, **named: VERSION,
        "machine": lambda: VERSION[2],
        "release": lambda: "24.6.0",
    }
    for name, function in shown.items():
        setattr(platform, name, _apart(getattr(platform, name), function))
    for module, names in ABSENT.items():
        found = importlib.import_module(module)
        for name in names:
            if hasattr(found, name):
                setattr(found, name, _apart(getattr(found, name), _missing(module, name)))
    resource.getrusage = _apart(resource.getrusage, _usage)
    sys.addaudithook(_refuse)
    sys.meta_path.insert(0, _Finder())


class _Sys(ModuleType):
    """The module `sys`, whose platform depends on who asks."""

    real, shown = "", "darwin"

    def __new__(cls, name: str, doc: str | None = None) -> ModuleType:  # type: ignore[misc]
        """Return a plain module: importlib makes every module by `type(sys)`."""
        return ModuleType(name, doc)

    @property
    def platform(self) -> str:
        """The platform: that of a Mac for the packages in `APART`.

        pytest's monkeypatch sees it too, because it sets what it has read when a test ends.
        """
        asking = sys._getframe(1)
        restores = asking.f_globals.get("__name__") == "_pytest.monkeypatch"
        return self.shown if restores or _is_apart(asking) else self.real

    @platform.setter
    def platform(self, value: str) -> None:  # a test may show another
        type(self).shown = value


def _is_apart(frame: FrameType | None) -> bool:
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    if name == "__main__" and frame is not None and frame.f_globals.get("__spec__"):
        name = str(frame.f_globals["__spec__"].name)
    return name.partition(".")[0] in APART


def _apart(real: Callable[..., Any], shown: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does what `shown` does for the packages in `APART`."""

    def chosen(*given: Any, **named: Any) -> Any:
        return (shown if _is_apart(sys._getframe(1)) else real)(*given, **named)

    return chosen


def _usage(who: int) -> SimpleNamespace:
    """Return the one field that the project reads: on macOS it counts bytes, of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return SimpleNamespace(ru_maxrss=int(line.split()[1]) * 1024)
    raise AssertionError("no VmHWM in /proc/self/status")


def _missing(module: str, name: str) -> Callable[..., Any]:
    def fail(*given: Any, **named: Any) -> Any:
        raise AttributeError(f"module '{module}' has no attribute '{name}' on macOS")

    return fail


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise what macOS would, for a file or a symbol that only Linux has (an audit hook)."""
    if event == "open" and str(arguments[0]).startswith(ABSENT_PATHS):
        if _asked_by():
            raise FileNotFoundError(2, "No such file or directory", arguments[0])
    elif event == "ctypes.dlsym" and arguments[1] in ABSENT_SYMBOLS and _asked_by():
        raise AttributeError(f"dlsym(RTLD_DEFAULT, {arguments[1]}): symbol not found")


def _asked_by() -> bool:
    """Return whether a package in `APART` made the call, itself or through Python's library."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__")).partition(".")[0]
        if frame.f_code is _usage.__code__:
            return False
        if _is_apart(frame):
            return True
        if name not in sys.stdlib_module_names and name != "_rehearsal":
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Finder(MetaPathFinder):
    """Finds Core ML's native module, and the measured modules by a loader that notes lines."""

    _has_native = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in MEASURED and os.environ.get(LINES):
            return self._with(LineLoader, name, path, target)
        if name in ("coremltools", "executorch") and not self._has_native:
            from harness.shim import NATIVE_PATCHES, Finder

            self._has_native = True
            sys.meta_path.insert(0, Finder(NATIVE_PATCHES))
        return None

    def _found(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        specs = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)
        return next((spec for spec in specs if spec is not None), None)

    def _with(
        self,
        loader: type[SourceFileLoader],
        name: str,
        path: Sequence[str] | None,
        target: ModuleType | None,
    ) -> ModuleSpec | None:
        spec = self._found(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = loader(name, spec.origin)
        return spec


class LineLoader(SourceFileLoader):
    """Loads a module whose statements note their lines in a file when they first run.

    A line is written at once, because children are ended by SIGKILL.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the module's code, with a call before each statement.

        The code itself finds the function that it calls: `python -m` runs it as another module.
        """
        tree = ast.parse(self.get_data(self.path), self.path)
        for block in blocks(tree):
            block[:] = [new for old in block for new in (_note(old), old) if new is not None]
        first = next(i for i, statement in enumerate(tree.body) if counts(statement))
        tree.body[first:first] = ast.parse(
            f"{_NOTE} = __import__('sys').modules[{__name__!r}].Notes({fullname!r})"
        ).body
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


_NOTE = "__note_line__"


class Notes:
    """Notes each line of a module once."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._seen: set[int] = set()
        self._file = os.open(os.environ[LINES], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, line: int) -> None:
        """Note a line, if it has not been noted."""
        if line not in self._seen:
            self._seen.add(line)
            os.write(self._file, f"{self._module}:{line}\n".encode())


def blocks(tree: ast.AST) -> list[list[ast.stmt]]:
    """Return the lists of statements of a module."""
    fields = ("body", "orelse", "finalbody")
    found = (getattr(node, field, None) for node in ast.walk(tree) for field in fields)
    return [block for block in found if isinstance(block, list)]


def counts(statement: ast.stmt) -> bool:
    """Return whether a statement is a line to run: neither a docstring nor an import of names."""
    if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
        return False
    return not (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and statement.value.value is not ...
    )


def lines_of(path: Path) -> set[int]:
    """Return the lines of a file at which a statement begins that can run on a Mac.

    A block under `if TYPE_CHECKING` and the body of a protocol's method never run.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    never = {
        inner.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in node.body
    }
    return {s.lineno for block in blocks(tree) for s in block if counts(s)} - never


def _note(statement: ast.stmt) -> ast.stmt | None:
    if not counts(statement):
        return None
    call = ast.parse(f"{_NOTE}({statement.lineno})").body[0]
    return ast.copy_location(call, statement)
