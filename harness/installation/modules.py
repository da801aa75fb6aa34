"""Checks that the wheel has Python modules, and each module of ExecuTorch that they import in turn.

The checks read modules and do not import them. A wheel must have the modules that are imported at
the top of a file; it may leave out those that are imported inside a function, a condition or a
`try`. One check executes the native module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from harness.checks.run import check
from harness.child import Child
from harness.errors import CallTimeoutError, ChildError, CrashError
from harness.installation.tree import Installation
from harness.results import Finding

_LLAMA = "executorch.examples.apple.coreml.llama"
MODULES = {
    "install-exporter": (
        f"{_LLAMA}.export_static_llm_coreml",
        "executorch.backends.apple.coreml.partition",
        "executorch.backends.apple.coreml.compiler",
        "executorch.backends.apple.coreml.recipes",
    ),
    "install-runner": (
        f"{_LLAMA}.run_static_llm",
        f"{_LLAMA}.run_static_llm_multifunction",
        f"{_LLAMA}.run_lookahead",
        "executorch.runtime",
        "executorch.extension.pybindings.portable_lib",  # imports the native module by its name
    ),
    "install-extraction": (
        "executorch.examples.apple.coreml.scripts.extract_coreml_models",
        "executorch.backends.apple.coreml.executorchcoreml",
    ),
}
"""The modules that must be importable, by check."""

_NATIVE = (".so", ".pyd")
_FLATTENING = "backends/apple/coreml/executorchcoreml*"
_SECONDS = 60
_CHILD = "harness.installation._round_trip_child"


@check("install-exporter")
def check_exporter(installation: Installation) -> Iterator[Finding]:
    """Look for the modules that export a language model."""
    yield from _check_modules("install-exporter", installation)


@check("install-runner")
def check_runner(installation: Installation) -> Iterator[Finding]:
    """Look for the modules that run an exported model."""
    yield from _check_modules("install-runner", installation)


@check("install-extraction")
def check_extraction(installation: Installation) -> Iterator[Finding]:
    """Look for the modules that take Core ML packages out of a .pte."""
    yield from _check_modules("install-extraction", installation)


@check("install-flattening")
def check_flattening(installation: Installation) -> Iterator[Finding]:
    """Let the native module flatten a folder and unflatten it, in a process of its own."""
    found = [p for p in installation.root.glob(_FLATTENING) if p.suffix in (".so", ".pyd")]
    if not found:
        yield Finding(
            "install-flattening", "executorchcoreml", False, "the native module is not in the wheel"
        )
        return
    with Child(_CHILD, "the native module") as child:
        try:
            problem = child.ask(str(found[0]), "asked to bring a folder back", _SECONDS)
        except ChildError as error:
            problem = f"{error.kind}: {error.reason}"
        except (CrashError, CallTimeoutError) as error:
            problem = str(error)
    message = f"{found[0].name} does not bring a folder back: {problem}" if problem else ""
    yield Finding("install-flattening", found[0].name, not message, message, comparisons=2)


def _check_modules(name_of_check: str, installation: Installation) -> Iterator[Finding]:
    """Look for each module of a group, and for what it imports."""
    for name in MODULES[name_of_check]:
        seen: dict[str, Path | None] = {}
        _follow(installation, name, seen)
        lost = sorted(module for module, path in seen.items() if path is None)
        if name in lost:
            message = f"the module {name} is not in the wheel"
        elif lost:
            message = f"{name} needs {', '.join(lost)}, which the wheel lacks"
        else:
            message = ""
        yield Finding(name_of_check, name, not message, message, comparisons=len(seen))


def _follow(installation: Installation, name: str, seen: dict[str, Path | None]) -> None:
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen[module] = path = _find(installation, module)
            if path is not None and path.suffix == ".py":
                waiting += _imports(installation, module, path)


def _find(installation: Installation, module: str) -> Path | None:
    """Return a module's file, the folder of a package without code, or None if both are absent."""
    base = installation.site.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if path.is_file():
            return path
    for path in base.parent.glob(f"{base.name}.*"):
        if path.suffix in _NATIVE:
            return path
    return base if base.is_dir() else None


def _imports(installation: Installation, module: str, path: Path) -> Iterator[str]:
    """Yield the modules of ExecuTorch that a file imports at its top."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        match statement:
            case ast.Import(names):
                yield from (n.name for n in names if _ours(n.name))
            case ast.ImportFrom(source, names, level):
                base = ".".join(package.split(".")[: len(package.split(".")) - level + 1])
                whole = ".".join(filter(None, (base if level else "", source)))
                if _ours(whole):
                    yield whole
                    yield from _submodules(installation, whole, [n.name for n in names])


def _submodules(installation: Installation, package: str, names: list[str]) -> Iterator[str]:
    """Yield the names that are modules: each name in a package without code must be one."""
    path = _find(installation, package)
    for name in names:
        module = f"{package}.{name}"
        if path is not None and (path.is_dir() or _find(installation, module) is not None):
            yield module


def _ours(module: str) -> bool:
    return module == "executorch" or module.startswith("executorch.")
