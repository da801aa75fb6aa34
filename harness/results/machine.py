"""Describes the environment of a result: the machine, the versions, the commit.

The description does not name the machine, its user or a path.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.text import counted, one_line

SCHEMA = 2  # 1 has no histograms and no profiles, and is read, too
_LATER = ("exporters", "artifact", "shard", "mac", "conditions")  # fields that may be left out
_ABSENT = "absent: "
_MAX_REASON = 120
PACKAGES = ("coreml-llm-harness", "torch", "executorch", "coremltools", "torchao", "numpy")


@dataclass(frozen=True)
class Header:
    """The environment of a run: its time, versions, machine and options.

    `exporters` are the versions of what each exporter consists of, by its name in the cases. A run
    about one artifact has its `artifact`: the `name` in the cases, `sha256` and `bytes`. A part of
    a run has its `shard`: `index`, from 1, and `count`. A run that `merge` made of several has
    their number, `merged`. A run on a Mac has the facts of `mac_facts` and `conditions`. `typed`
    are the words of the command that name its artifact, its sources and the folder of its results,
    as the user typed them.
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
    mac: Mapping[str, str | int] = field(default_factory=dict)
    conditions: Mapping[str, str | int] = field(default_factory=dict)
    typed: Sequence[str] = ()

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
            mac=mac_facts(),
            conditions=conditions(),
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
            "mac": dict(self.mac),
            "conditions": dict(self.conditions),
            "merged": self.merged,
            "typed": list(self.typed),
        }
        return record | {name: value for name, value in rest.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Header:
        """Read the header that `to_json` wrote; `data` has been validated against the schema."""
        names = ("started", "versions", "machine", "options", "project")
        later = {name: data.get(name, {}) for name in _LATER}
        rest = {"merged": data.get("merged", 0), "typed": tuple(data.get("typed", ()))}
        return cls(**{name: data[name] for name in names}, **later, **rest)


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


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return the facts of a machine, of `Header.machine`, as a line."""
    parts = [
        f"{machine.get('os')} {machine.get('release')} {machine.get('arch')}",
        str(machine.get("cpu")),
        counted(int(machine.get("cpus", 1)), "CPU"),
        f"{machine.get('memory_bytes', 0) / 1e9:.1f} GB of memory",
    ]
    if threads := machine.get("threads"):
        parts.append(f"{counted(threads, 'thread')} of torch ({machine.get('capability')})")
    return ", ".join(map(one_line, parts))


def _torch_state() -> dict[str, Any]:
    """Return the instructions and the threads that PyTorch's kernels use.

    Both change the order of sums, and with it the last digits of every result.
    """
    import torch

    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def mac_facts() -> dict[str, str | int]:
    """Return a Mac's model, cores, memory and build of macOS; nothing elsewhere.

    What a Mac does not tell is "absent: " and the reason: a virtual Mac has no efficiency cores.
    """
    if platform.system() != "Darwin":
        return {}
    return {
        "model": _told("sysctl", "-n", "hw.model"),
        "performance_cores": _told("sysctl", "-n", "hw.perflevel0.physicalcpu"),
        "efficiency_cores": _told("sysctl", "-n", "hw.perflevel1.physicalcpu"),
        "gpu_cores": _found(
            r'"sppci_cores"\s*:\s*"(\d+)"', "system_profiler", "SPDisplaysDataType", "-json"
        ),
        "memory_bytes": _told("sysctl", "-n", "hw.memsize"),
        "os_build": _told("sw_vers", "-buildVersion"),
    }


def conditions() -> dict[str, str | int]:
    """Return what may slow a Mac down now: its thermal state and low-power mode.

    `thermal_pressure` is 0 for nominal, 1 moderate, 2 heavy and 3 trapping. Nothing elsewhere.
    """
    if platform.system() != "Darwin":
        return {}
    pressure = "com.apple.system.thermalpressurelevel"
    return {
        "thermal_pressure": _found(rf"{pressure} (\d+)", "notifyutil", "-g", pressure),
        "cpu_speed_limit": _found(r"CPU_Speed_Limit\s*=\s*(\d+)", "pmset", "-g", "therm"),
        "low_power_mode": _found(r"lowpowermode\s+(\d+)", "pmset", "-g"),
    }


def _found(pattern: str, *command: str) -> str | int:
    """Return the number that a pattern finds in a command's output."""
    text = str(_told(*command))
    if text.startswith(_ABSENT):
        return text
    match = re.search(pattern, text)
    return int(match[1]) if match else f"{_ABSENT}`{' '.join(command)}` does not tell it"


def _told(*command: str) -> str | int:
    """Return a command's output, as a number if it is one, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{_ABSENT}{command[0]} cannot be run ({type(error).__name__})"
    text = done.stdout.strip()
    if done.returncode or not text:
        reason = " ".join(done.stderr.split())[:_MAX_REASON] or f"status {done.returncode}"
        return f"{_ABSENT}`{' '.join(command)}` failed ({reason})"
    return int(text) if text.isdecimal() else text


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
