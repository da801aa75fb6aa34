"""Exporters by name: `executorch` and its other environments, and `coreml`, which is ours."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.errors import HarnessError, NotInstalledError
from harness.export import EXPORTERS, Progress, environments
from harness.export.environments import Environment
from harness.export.options import ExportOptions

_HARNESS = Path(__file__).resolve().parents[1]
_OUR_SOURCES = ("export", "packages", "models", "artifact")  # folders of `harness`


class Export(Protocol):
    """Writes the artifact of a checkpoint."""

    def __call__(
        self,
        checkpoint: str | Path,
        params: str | Path,
        options: ExportOptions,
        output: str | Path,
        progress: Progress | None = None,
    ) -> Path:
        """Write to `output`, whole or not at all, and return it.

        Raises HarnessError for options, params and weights that do not fit, and for a failed
        export; NotInstalledError where the exporter is missing.
        """
        ...


@dataclass(frozen=True)
class Exporter:
    """An exporter.

    `kind` is one of `EXPORTERS`, `label` its name without paths. `versions` and `sources`, the
    digests of its code, decide the bytes that it writes, together with checkpoint and options.
    `place` is PLACE of `executorch@PLACE`, "" for our exporter.
    """

    kind: str
    label: str
    versions: Mapping[str, str | None]
    sources: Mapping[str, str]
    export: Export
    place: str = ""

    @property
    def version(self) -> str | None:
        """The version of ExecuTorch that exports; None for our exporter."""
        return self.versions.get(environments.EXECUTORCH)


def get_exporter(name: str, progress: Progress | None = None) -> Exporter:
    """Return the exporter of a name; a version or a checkout of ExecuTorch is made ready now.

    `executorch` is the installed one; where there is none, version `environments.DEFAULT`. Raises
    HarnessError for a name of another form and for an ExecuTorch that cannot export.
    """
    kind, separator, place = name.partition("@")
    if name == "coreml":
        return our_exporter()
    if kind == environments.EXECUTORCH and (place or not separator):
        if not place and importlib.util.find_spec(environments.EXECUTORCH) is None:
            place = environments.DEFAULT
        found = environments.environment(place, progress) if place else environments.installed()
        found.check()
        return _of_executorch(found, place or environments.INSTALLED)
    raise HarnessError(
        f"there is no exporter {name!r}; choose from {', '.join(EXPORTERS)}, executorch@VERSION, "
        "and executorch@PATH (a Python, a virtual environment or a checkout)"
    )


def exporters_at_hand() -> Iterator[tuple[str, Environment]]:
    """Yield the name and environment of each ExecuTorch: the installed one, then the cache's."""
    with suppress(NotInstalledError):
        yield environments.EXECUTORCH, environments.installed()
    for found in environments.cached():
        yield found.label, found


def _of_executorch(environment: Environment, place: str) -> Exporter:
    def export(*arguments: Any, **named: Any) -> Path:
        from harness.export import executorch  # numpy, which a lookup in the cache does without

        return partial(executorch.export, environment=environment)(*arguments, **named)

    sources = {"driver": _driver_digest(), "exporter": environment.digest}
    return Exporter(
        environments.EXECUTORCH, environment.label, environment.versions, sources, export, place
    )


def our_exporter() -> Exporter:
    """Return the exporter `coreml`."""

    def export(*arguments: Any, **named: Any) -> Path:
        from harness.export import coreml

        return coreml.export(*arguments, **named)

    versions = environments.installed_versions()
    del versions[environments.EXECUTORCH]
    sources = {"exporter": environments.sources_digest(_HARNESS, _OUR_SOURCES)}
    return Exporter("coreml", "coreml", versions, sources, export)


def _driver_digest() -> str:
    path = Path(__file__).with_name("_executorch_child.py")
    return code_digest(path.read_text(encoding="utf-8"))


def code_digest(source: str) -> str:
    """Return the SHA-256 of Python code without its comments, its docstrings and its layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [part for part in node.body if not _is_docstring(part)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_docstring(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
