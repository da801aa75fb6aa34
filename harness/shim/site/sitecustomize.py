"""Runs as a Python of `harness shim` starts: puts the stand-in in place, then steps aside.

Python looks for a module of this name in its path. The folder of this one leaves the path at once,
and a `sitecustomize` that stood behind it takes its place. Children of the process find it again
through PYTHONPATH.
"""

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def _leave_the_path() -> None:
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _FOLDER]


def _put_in_place() -> None:
    root = str(_FOLDER.parents[2])
    sys.path.insert(0, root)  # for this import only: what the command finds is not changed
    try:
        from harness.shim import install
    finally:
        sys.path.remove(root)
    install()


def _run_the_one_behind() -> None:
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_leave_the_path()
_put_in_place()
_run_the_one_behind()
