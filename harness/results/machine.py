"""Describes the environment of a result: the machine, the versions, the commit.

The description does not name the machine, its user or a path.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 1
PACKAGES = ("coreml-llm-harness", "torch", "executorch", "coremltools", "torchao", "numpy")


@dataclass(frozen=True)
class Header:
    """The environment of a run: its time, versions, machine and options.

    `exporters` are the versions of what each exporter consists of, by its name in the cases. A run
    about one artifact has its `artifact`: the `name` in the cases, `sha256` and `bytes`. A part of
    a run has its `shard`: `index`, from 1, and `count`. A run that `merge` made of several has
    their number, `merged`.
    """

    started: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    project: Mapping[str, Any]
    exporters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    artifact: Mapping[str, str | int] = field(default_factory=dict)
    shard: Mapping[str, int] = field(default_factory=dict)
    merged: int = 0

    @classmethod
    def here(
        cls,
        options: Mapping[str, Any],
        exporters: Mapping[str, Mapping[str, str]] | None = None,
        artifact: Mapping[str, str | int] | None = None,
        shard: Mapping[str, int] | None = None,
        executes: bool = True,
    ) -> Header:
        """Return the header of a run that starts now, on this machine, in this checkout.

        What PyTorch says of the machine is left out, and PyTorch is not imported, of a run that
        executes nothing.
        """
        return cls(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=installed_versions(),
            machine=this_machine() | (_torch_state() if executes else {}),
            options=options,
            project=project_state(),
            exporters=exporters or {},
            artifact=artifact or {},
            shard=shard or {},
        )

    @property
    def exporter_packages(self) -> dict[str, str]:
        """The versions of the exporters in one table: "executorch/torch" is "2.13.0"."""
        return {
            f"{name}/{package}": version
            for name, versions in self.exporters.items()
            for package, version in versions.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the header as a JSON object."""
        record = {"type": "header", "schema": SCHEMA} | {
            "started": self.started,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "options": dict(self.options),
            "project": dict(self.project),
            "exporters": {name: dict(versions) for name, versions in self.exporters.items()},
        }
        rest = {
            "artifact": dict(self.artifact),
            "shard": dict(self.shard),
            "merged": self.merged,
        }
        return record | {name: value for name, value in rest.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Header:
        """Read the header that `to_json` wrote; `data` has been validated against the schema."""
        names = ("started", "versions", "machine", "options", "project")
        later = {name: data.get(name, {}) for name in ("exporters", "artifact", "shard")}
        return cls(**{name: data[name] for name in names}, **later, merged=data.get("merged", 0))


def this_machine() -> dict[str, Any]:
    """Return the operating system, its release, the architecture, processors, memory and Python."""
    import psutil

    return {
        "os": platform.system(),
        "release": platform.mac_ver()[0] or platform.release(),
        "arch": platform.machine(),
        "cpu": _processor(),
        "cpus": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
    }


def _torch_state() -> dict[str, Any]:
    """Return the instructions and the threads that PyTorch's kernels use.

    Both change the order of sums, and with it the last digits of every result.
    """
    import torch

    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def installed_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of the packages that a result depends on, without importing them."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def project_state(root: Path | None = None) -> Mapping[str, Any]:
    """Return the checkout's commit and whether it is modified; empty outside a checkout."""
    root = root or Path(__file__).resolve().parents[2]
    # Without this, an installed copy would report the repository that contains its environment.
    if not (root / ".git").exists():
        return {}
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": changes != ""}


def _processor() -> str:
    """Return the processor's name, which may be all that distinguishes two machines."""
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or "unknown"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown"


def _output(*command: str) -> str | None:
    """Return a command's output, stripped; None when the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
