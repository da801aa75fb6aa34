"""Makes this Python look like a Mac's; see `suites/rehearsal/stand_in.py`."""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def _load(path: Path, name: str) -> object:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load(_FOLDER.parent / "stand_in.py", "_rehearsal").install()  # type: ignore[attr-defined]
# The folder stays in the path: children get this process's path, and must look like a Mac's too.
_others = [entry for entry in sys.path if not entry or Path(entry).resolve() != _FOLDER]
_next = PathFinder.find_spec("sitecustomize", _others)
if _next is not None and _next.origin is not None:
    _load(Path(_next.origin), "sitecustomize")
