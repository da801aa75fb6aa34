"""Flattens a folder and unflattens it with ExecuTorch's native module; a request is its path.

The native code may crash, so it has a process of its own. That process loads the module alone:
importing the package that the module belongs to takes eleven seconds.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from harness.child import serve

FILES = {"metadata.json": b"{}", "model.mlpackage/Data/weight.bin": bytes(range(256)) * 99}


def round_trip(path: str) -> str | None:
    """Return what is wrong, or None when the folder comes back unchanged."""
    module = _load(path)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        for name, content in FILES.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
        target.mkdir()
        data = module.flatten_directory_contents(str(source))
        if not module.unflatten_directory_contents(data, str(target)):
            return "unflatten_directory_contents says that it failed"
        back = target / source.name  # the folder's own name is part of what is flattened
        paths = [found for found in target.rglob("*") if found.is_file()]
        found = {found.relative_to(back).as_posix(): found.read_bytes() for found in paths}
    return None if found == FILES else f"the folder came back as {sorted(found)}"


def _load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("executorchcoreml", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(round_trip)
