"""Whether there is something to link a native runner with, and whether the native module works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.installation.tree import Installation
from harness.results import Finding

LIBRARIES = {"linux": ("executorch",), "darwin": ("executorch", "executorch_backend_coreml")}
"""The libraries that a runner links, by platform; off a Mac there is no Core ML to link."""

_SUFFIXES = ("so", "dylib", "a")
_FLATTENING = "backends/apple/coreml/executorchcoreml*"
_SECONDS = 60
_CHILD = Path(__file__).parent / "_round_trip_child.py"


def check_libraries(installation: Installation) -> Iterator[Finding]:
    """Look for each library that a runner on this platform links, in the wheel's `lib`."""
    for name in LIBRARIES.get(sys.platform, ()):
        found = [
            path
            for suffix in _SUFFIXES
            for path in (installation.root / "lib").glob(f"lib{name}.{suffix}*")
        ]
        message = "" if found else f"the wheel has no library lib{name} to link a runner with"
        yield Finding("install-libraries", name, bool(found), message, comparisons=1)


def check_flattening(installation: Installation) -> Iterator[Finding]:
    """Let the native module flatten a folder and unflatten it, in a process of its own."""
    check = "install-flattening"
    found = [p for p in installation.root.glob(_FLATTENING) if p.suffix in (".so", ".pyd")]
    if not found:
        yield Finding(check, "executorchcoreml", False, "the native module is not in the wheel")
        return
    try:
        done = subprocess.run(
            [sys.executable, str(_CHILD), str(found[0])],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        problem = (done.stderr.strip().splitlines() or [""])[-1]
        message = f"status {done.returncode}: {problem}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        message = f"no answer in {_SECONDS} s"
    if message:
        message = f"{found[0].name} does not bring a folder back: {message}"
    yield Finding(check, found[0].name, not message, message, comparisons=2)
