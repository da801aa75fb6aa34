"""Checkouts of ExecuTorch, made of the sources of the installed wheel, with one changed line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.export.environments import installed
from harness.export.overlays import LAYOUT, VERSION_FILE

_STATIC_LLAMA = "examples/apple/coreml/llama/export_static_llm_coreml.py"


@dataclass(frozen=True)
class Change:
    """One changed line: `old` occurs once in the file at `path` in the package."""

    path: str
    old: str
    new: str


SCALE = Change(
    "examples/models/llama/static_attention.py",
    "self.inv_scale = 1.0 / (",
    "self.inv_scale = 1.01 / (",
)
SHARING = Change(
    "backends/apple/coreml/compiler/coreml_preprocess.py",
    "if weight_sharing_strategy == MULTIMETHOD_WEIGHT_SHARING_STRATEGY.DISABLED:",
    "if True:",
)
ORDER = Change(
    _STATIC_LLAMA,
    "sorted_k_cache_ids = sorted(k_cache_in_indices.keys())",
    "sorted_k_cache_ids = sorted(k_cache_in_indices.keys(), reverse=True)",
)
SLEEP = Change(  # in ExecuTorch's own runtime, which executes artifacts
    "runtime/__init__.py",
    "        return self._method(inputs)",
    "        __import__('time').sleep(0.001)\n        return self._method(inputs)",
)
BROKEN = Change(
    _STATIC_LLAMA,
    "sorted_k_cache_ids = sorted(k_cache_in_indices.keys())",
    "raise ValueError('this branch cannot export')",
)


def write_checkout(folder: Path, change: Change | None = None) -> Path:
    """Write a checkout of the installed version, laid out as the repository is; return its folder.

    Raises HarnessError when the change does not apply.
    """
    environment = installed()
    folder.mkdir()
    (folder / VERSION_FILE).write_text(f"{environment.version}\n", encoding="utf-8")
    layout = folder / LAYOUT
    layout.mkdir(parents=True)
    for source in sorted(environment.root.iterdir()):
        if source.is_dir() and source.name not in ("include", "share", "lib", "__pycache__"):
            shutil.copytree(source, folder / source.name, ignore=_without_sources)
            (layout / source.name).symlink_to(folder / source.name)
    if change is not None:
        path = folder / change.path
        text = path.read_text(encoding="utf-8")
        if text.count(change.old) != 1:
            raise HarnessError(f"{path}: {change.old!r} occurs {text.count(change.old)} times")
        path.write_text(text.replace(change.old, change.new), encoding="utf-8")
    return folder


def _without_sources(folder: str, names: list[str]) -> list[str]:
    """Return what a checkout does not have: the compiled parts, and submodules."""
    kept = (".py", ".fbs", ".yaml")
    return [
        name
        for name in names
        if name in ("third-party", "__pycache__")
        or (Path(folder, name).is_file() and not name.endswith(kept))
    ]
