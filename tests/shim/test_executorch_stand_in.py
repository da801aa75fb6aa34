"""The stand-in for ExecuTorch's runtime, in a child: `executorch_inside` has what it must do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

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
    expected = "True" if sys.platform == "darwin" else "False"
    assert outside.stdout.strip() == expected, outside.stderr
    assert inside.stdout.strip() == "True"


def test_installing_after_the_runtime_was_imported_is_an_error() -> None:
    if sys.platform == "darwin":
        return
    script = (
        "import executorch.extension.pybindings.portable_lib\n"
        "import harness.shim\n"
        "harness.shim.install()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "_portable_lib has been imported before the stand-in for Core ML" in done.stderr
