"""The stand-in for ExecuTorch's runtime, in a child that runs the tests of `executorch_inside`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.linux
INSIDE = Path(__file__).parent / "executorch_inside"
SHIM = [sys.executable, "-m", "harness", "shim", "--policy", "widen", "--"]


def test_every_test_inside_passes(tmp_path: Path) -> None:
    report = tmp_path / "inside.xml"
    pytest = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    tests = ["-o", "python_files=inside_*.py", "--show-capture=no", str(INSIDE)]
    done = subprocess.run(
        [*SHIM, *pytest, *tests, f"--junitxml={report}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = ElementTree.parse(report).find("testsuite")
    assert found is not None and found.get("skipped") == "0"
    assert int(found.get("tests", "0")) > 40


def test_without_the_stand_in_the_runtime_has_no_core_ml() -> None:
    script = (
        "from executorch.runtime import Runtime\n"
        "print(Runtime.get().backend_registry.is_available('CoreMLBackend'))"
    )
    outside = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    inside = subprocess.run(
        [*SHIM, sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert outside.stdout.strip() == "False", outside.stderr
    assert inside.stdout.strip() == "True"


def test_installing_after_the_runtime_was_imported_is_an_error() -> None:
    script = (
        "import executorch.extension.pybindings.portable_lib\n"
        "import harness.shim\n"
        "harness.shim.install()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    sentence = r"pybindings\.(_portable_lib|_C) was imported before the stand-in for Core ML"
    assert re.search(sentence, done.stderr), done.stderr


FAKE_RUNTIME = """
def _get_registered_backend_names(): return ["XnnpackBackend"]
def _is_available(backend_name): return backend_name == "XnnpackBackend"
def _load_program(path): return path
_load_program_from_buffer = _load_for_executorch = _load_for_executorch_from_buffer = _load_program
"""


@pytest.mark.parametrize(
    ("native", "found", "warned"),
    [("_portable_lib", True, False), ("_C", True, False), ("_native", False, True)],
)
def test_the_native_module_is_found_by_either_name(
    tmp_path: Path, native: str, found: bool, warned: bool
) -> None:
    """ExecuTorch 1.5 calls it `_C`; any other name is reported."""
    folder = tmp_path / "executorch" / "extension" / "pybindings"
    folder.mkdir(parents=True)
    (folder / f"{native}.py").write_text(FAKE_RUNTIME)
    (folder / "portable_lib.py").write_text(
        f"from executorch.extension.pybindings.{native} import _is_available\n"
    )
    (tmp_path / "script.py").write_text(
        "from executorch.extension.pybindings import portable_lib\n"
        "print(portable_lib._is_available('CoreMLBackend'))\n"
    )
    done = subprocess.run(
        [*SHIM, sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(found), done.stderr
    sentence = "the stand-in finds neither _portable_lib nor _C in executorch.extension.pybindings"
    assert (sentence in done.stderr) is warned
