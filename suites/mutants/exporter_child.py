"""Runs ExecuTorch's exporter with one line of its code changed, in the place of the real child.

`HARNESS_FAULT` holds the line, a `Fault` of `suites/runners/faults.py` as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

from harness.child import serve
from harness.export import _executorch_child
from harness.suites.runners.faults import Fault, broken


def export(request: dict[str, Any]) -> None:
    """Export what a request describes, with the line changed."""
    importlib.import_module(_executorch_child.EXPORTER)  # before its functions are replaced
    with broken(Fault(**json.loads(os.environ["HARNESS_FAULT"]))):
        _executorch_child.export(request)


if __name__ == "__main__":
    serve(export)
