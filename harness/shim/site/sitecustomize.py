"""Installs the stand-in when a Python of `harness shim` starts.

Python imports the first module of this name in its path. This one removes its folder from the path
and runs the next `sitecustomize` there, which it would otherwise hide. Children of the process find
this one again through PYTHONPATH.
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
    sys.path.insert(0, root)  # for this import only: the command's path does not change
    try:
        from harness.remedies import conversion_remedy
        from harness.shim import install
    finally:
        sys.path.remove(root)
    install()
    show = sys.excepthook

    def show_with_remedy(kind, error, trace):  # type: ignore[no-untyped-def]
        show(kind, error, trace)
        if remedy := conversion_remedy(kind.__name__, str(error)):
            print(f"harness shim: known: {remedy}", file=sys.stderr)

    sys.excepthook = show_with_remedy


def _run_the_one_behind() -> None:
    spec = PathFinder.find_spec("sitecustomize")
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_leave_the_path()
_put_in_place()
_run_the_one_behind()
