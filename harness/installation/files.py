"""Whether every file that the wheel brought is there, whole and unchanged."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

from harness.installation.tree import Installation, Recorded
from harness.results import Finding


def check_files(installation: Installation) -> Iterator[Finding]:
    """Compare each file with the size and digest in the wheel's RECORD."""
    rows = installation.recorded()
    for row in rows:
        if problem := _problem(installation, row):
            yield Finding("install-files", row.path, False, f"{row.path} {problem}")
    yield Finding("install-files", "all files", comparisons=len(rows), facts={"files": len(rows)})


def _problem(installation: Installation, row: Recorded) -> str | None:
    try:
        content = (installation.site / row.path).read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror}); install ExecuTorch again"
    if len(content) != row.size:
        return f"has {len(content)} bytes, the wheel brought {row.size}; install ExecuTorch again"
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return None if digest == row.sha256 else "was changed after it was installed"
