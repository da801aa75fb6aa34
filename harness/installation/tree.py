"""The files of an installed ExecuTorch, and the check that compares them with the wheel's."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.checks.run import check
from harness.errors import HarnessError, NotInstalledError
from harness.results import Finding


@dataclass(frozen=True)
class Recorded:
    """A row of a wheel's RECORD: path below site-packages, SHA-256 in base64, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Installation:
    """An ExecuTorch below `site`, a `site-packages` folder; this room does not import it."""

    site: Path

    @classmethod
    def here(cls) -> Installation:
        """Return the one that this Python imports; raises NotInstalledError when it has none."""
        spec = importlib.util.find_spec("executorch")
        if spec is None or not spec.submodule_search_locations:
            raise NotInstalledError("executorch is not installed: pip install 'executorch==1.4.*'")
        return cls(Path(next(iter(spec.submodule_search_locations))).parent)

    @property
    def root(self) -> Path:
        """The package's folder."""
        return self.site / "executorch"

    @property
    def include(self) -> Path:
        """The folder in which a compiler searches for headers."""
        return self.root / "include"

    @property
    def metadata(self) -> Path:
        """The `.dist-info` folder; raises HarnessError when there is not exactly one."""
        found = sorted(self.site.glob("executorch-*.dist-info"))
        if len(found) != 1:
            raise HarnessError(
                f"{self.site}: {len(found)} folders executorch-*.dist-info instead of one; "
                "install ExecuTorch again"
            )
        return found[0]

    @property
    def version(self) -> str:
        """The installed version."""
        return self.metadata.name.removeprefix("executorch-").removesuffix(".dist-info")

    def recorded(self) -> list[Recorded]:
        """Return the rows of RECORD for the package's own files, as the wheel brought them."""
        try:
            text = (self.metadata / "RECORD").read_text(encoding="utf-8")
            rows = [Recorded(path, digest, int(size)) for path, digest, size in _rows(text)]
        except (OSError, ValueError) as error:
            raise HarnessError(f"{self.metadata}: RECORD cannot be read ({error})") from None
        return rows


def _rows(text: str) -> list[tuple[str, str, str]]:
    rows = (row for row in csv.reader(text.splitlines()) if row)
    return [
        (path, digest.removeprefix("sha256="), size)
        for path, digest, size in rows
        if path.startswith("executorch/") and digest.startswith("sha256=")
    ]


@check("install-files")
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
