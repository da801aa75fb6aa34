"""Run pytest on coremltools' operator tests, with the settings that they need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness.shim import is_installed
from harness.suites.operators.selection import PACKAGE

# coremltools' module testing_reqs reads these, here and in xdist's workers: ML Programs only, in
# fp32 as well as in fp16, and every test on every opset from its own on. Each process has one
# thread, because the tests are small and run side by side.
_SETTINGS = {
    "PYMIL_TEST_TARGETS": "mlprogram",
    "INCLUDE_MIL_FP32_UNIT_TESTS": "1",
    "RUN_BACKWARD_COMPATIBILITY": "1",
    "OMP_NUM_THREADS": "1",
}


def main() -> int:
    """Run pytest and return its exit status, or 2 when nothing here can predict."""
    if "--native" in sys.argv and sys.platform != "darwin":
        print(
            "suites.operators: --native judges Core ML itself, and this is not a Mac; omit it",
            file=sys.stderr,
        )
        return 2
    if not is_installed() and sys.platform != "darwin":
        print(
            "suites.operators: no Core ML here and no stand-in for it; run it with "
            "`harness shim --policy widen -- python -m harness.suites.operators`",
            file=sys.stderr,
        )
        return 2
    os.environ.update(_SETTINGS)
    os.environ.setdefault("HARNESS_POLICY", "widen")  # of our executor beside Core ML
    settings = Path(__file__).with_name("pytest.ini")
    return pytest.main(
        [
            "-c",
            str(settings),
            "-p",
            "harness.suites.operators.plugin",
            "--pyargs",
            PACKAGE,
            *sys.argv[1:],
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
