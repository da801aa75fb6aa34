"""The native module and the folder maker that tests of flattened payloads share."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def native():
    """Load ExecuTorch's extension module by path, because importing its package takes 11 s."""
    root = Path(importlib.util.find_spec("executorch").submodule_search_locations[0])
    path = next((root / "backends/apple/coreml").glob("executorchcoreml*.so"))
    spec = importlib.util.spec_from_file_location("executorchcoreml", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def write():
    """Write files below a folder, given their contents by name; return the folder."""

    def written(folder, files):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    return written
