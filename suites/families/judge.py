"""Asks a child for the verdict of each family, and keeps it for a later run of the same code."""

from __future__ import annotations

import hashlib
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import harness
from harness.files import partial_file
from harness.results import Case, Figure
from harness.suites.expendable import Expendable

SECONDS = 600.0  # of the processor's time, for one family in one precision and mode
_PACKAGES = ("torch", "coremltools", "transformers", "numpy")
_CODE = ("artifact", "mil", "shim", "suites/families")
_ROOT = Path(harness.__file__).parent
_VERDICTS = ("pass", "fail", "skip")  # a crash, a timeout or an error may not come again


class Judge:
    """Answers with cases; one child converts family after family until it dies."""

    def __init__(self, folder: Path, again: bool) -> None:
        self._folder = folder
        self._again = again
        self._key = _key()
        self._child = Expendable(
            "harness.suites.families.child", "the converter", "judging", SECONDS
        )

    def case(self, family: str, lengths: str, precision: str) -> Case:
        """Return the case of one family; a verdict that was kept has no duration."""
        request = {"family": family, "lengths": lengths, "precision": precision}
        path = self._folder / f"{family}-{lengths}-{precision}.json"
        start = time.monotonic()
        found = None if self._again else self._kept(path)
        if found is None:
            doing = f"with {family} ({lengths}, {precision})"
            found = self._child.ask(request, doing)
            if found["outcome"] in _VERDICTS:
                self._folder.mkdir(parents=True, exist_ok=True)
                with partial_file(path) as partial:
                    partial.write_text(json.dumps({"key": self._key, "found": found}))
        return _case(request, found, round(time.monotonic() - start, 3))

    def end(self) -> None:
        """End the child."""
        self._child.end()

    def _kept(self, path: Path) -> dict[str, Any] | None:
        try:
            kept = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        found: dict[str, Any] | None = kept["found"] if kept.get("key") == self._key else None
        return found


def _case(request: dict[str, str], found: dict[str, Any], seconds: float) -> Case:
    figures = {}
    if "error" in found:
        figures["error"] = Figure(found["error"], bound=found["bound"], floor=found["bound"])
    return Case(
        "families",
        request["precision"],
        fixture=request["family"],
        mode=request["lengths"],
        runtime="mil:widen" if request["precision"] == "fp32" else "mil:strict",
        outcome=found["outcome"],
        reason=found["reason"],
        stage=found.get("stage", ""),
        signal=found.get("signal", ""),
        comparisons=found.get("comparisons", 0),
        figures=figures,
        facts={name: found[name] for name in ("route", "operations") if name in found},
        seconds=seconds,
    )


def _key() -> str:
    """Return a digest of the code that decides a verdict, and of the packages' versions."""
    digest = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(path.read_bytes())
    digest.update(" ".join(version(name) for name in _PACKAGES).encode())
    return digest.hexdigest()[:16]
