"""Starts the tests that need Core ML, in children under `harness shim`."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.linux
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = HERE / "scripts"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HARNESS_POLICY": "strict"}


def start(*words, cwd, shim=True):
    command = [sys.executable, "-m", "harness", "shim", "--"] if shim else []
    return subprocess.run(
        [*command, *words], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )


def test_what_is_inside_passes_under_the_shim(tmp_path):
    files = sorted(HERE.glob("inside/inside_*.py"))
    report = tmp_path / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}"]
    done = start("pytest", *options, *map(str, files), cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    cases = ET.parse(report).getroot().iter("testcase")
    passed = Counter(case.get("classname").rpartition(".")[2] for case in cases if not len(case))
    assert passed.keys() == {file.stem for file in files}
    assert passed["inside_scripts"] == 2 * len(list(SCRIPTS.glob("*.py"))) >= 20


def test_a_script_that_loads_a_function_by_name_runs_in_another_folder(tmp_path):
    done = start(sys.executable, str(SCRIPTS / "multifunction.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.iterdir())


def test_the_same_script_cannot_predict_without_the_stand_in(tmp_path):
    done = start(sys.executable, str(SCRIPTS / "asset_from_memory.py"), cwd=tmp_path, shim=False)
    assert done.returncode == 1
    assert "libcoremlpython" in done.stderr or "macOS" in done.stderr
