"""Flattens a folder and unflattens it with ExecuTorch's native module, whose path is the argument.

A process of its own, because native code may crash; and the module alone, because importing the
package that it belongs to takes eleven seconds.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

FILES = {"metadata.json": b"{}", "model.mlpackage/Data/weight.bin": bytes(range(256)) * 99}


def main(path: str) -> str | None:
    """Return what is wrong, None when the folder comes back as it was."""
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
    sys.exit(main(sys.argv[1]))
