"""Whether Python modules are there, with every module of ExecuTorch that they import in turn.

Modules are read, not imported. What is imported inside a function, a condition or a `try` may be
left out of a wheel; what stands at the top may not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

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
        "executorch.extension.pybindings._portable_lib",
    ),
    "install-extraction": (
        "executorch.examples.apple.coreml.scripts.extract_coreml_models",
        "executorch.backends.apple.coreml.executorchcoreml",
    ),
}
"""What must be importable, by check."""

_NATIVE = (".so", ".pyd")


def check_modules(check: str, installation: Installation) -> Iterator[Finding]:
    """Look for each module of a group, and for what it imports."""
    for name in MODULES[check]:
        seen: dict[str, Path | None] = {}
        _follow(installation, name, seen)
        lost = sorted(module for module, path in seen.items() if path is None)
        if name in lost:
            message = f"the module {name} is not in the wheel"
        elif lost:
            message = f"{name} needs {', '.join(lost)}, which the wheel has not"
        else:
            message = ""
        yield Finding(check, name, not message, message, comparisons=len(seen))


def _follow(installation: Installation, name: str, seen: dict[str, Path | None]) -> None:
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen[module] = path = _find(installation, module)
            if path is not None and path.suffix == ".py":
                waiting += _imports(installation, module, path)


def _find(installation: Installation, module: str) -> Path | None:
    """Return a module's file; of a package without one, its folder; None when there is neither."""
    place = installation.site.joinpath(*module.split("."))
    for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if path.is_file():
            return path
    for path in place.parent.glob(f"{place.name}.*"):
        if path.suffix in _NATIVE:
            return path
    return place if place.is_dir() else None


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
    """Yield those names that are modules: of a package without code, every one must be."""
    path = _find(installation, package)
    for name in names:
        module = f"{package}.{name}"
        if path is not None and (path.is_dir() or _find(installation, module) is not None):
            yield module


def _ours(module: str) -> bool:
    return module == "executorch" or module.startswith("executorch.")
