"""Which of coremltools' operator tests run: fp32 configurations, and of those a sample or all."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "coremltools.converters.mil.mil.ops.tests"
NO_OPSET = "-"


@dataclass(frozen=True)
class Target:
    """What a test is about: its file ("iOS17/test_conv.py"), function ("TestConv::test_x"), its
    parameters as pytest writes them, and the opset, "-" where it has none."""

    file: str
    function: str
    parameters: str
    opset: str

    @property
    def name(self) -> str:
        """File and function: "iOS17/test_conv.py::TestConv::test_x"."""
        return f"{self.file}::{self.function}"

    def __str__(self) -> str:
        return f"{self.name}[{self.parameters}]" if self.parameters else self.name


def target_of(item: pytest.Item) -> Target:
    """Return what a collected test is about."""
    path = Path(item.path)
    parts = item.nodeid.partition("[")[0].split("::")[1:]
    call = getattr(item, "callspec", None)
    backend = None if call is None else call.params.get("backend")
    opset = getattr(backend, "opset_version", None)
    return Target(
        file=f"{path.parent.name}/{path.name}",
        function="::".join(parts),
        parameters="" if call is None else call.id,
        opset=NO_OPSET if opset is None else opset.name,
    )


def is_fp32(item: pytest.Item) -> bool:
    """Whether a test runs in fp32, or has no precision: coremltools compares fp16 to 0.5 only."""
    call = getattr(item, "callspec", None)
    backend = None if call is None else call.params.get("backend")
    if isinstance(backend, tuple):  # ("mlprogram", "fp32"), where the opset does not matter
        return backend[1] == "fp32"
    return getattr(backend, "precision", "fp32") == "fp32"


def sample(items: Iterable[pytest.Item], count: int) -> set[pytest.Item]:
    """Choose `count` configurations of each test function and opset, the same ones every time."""
    groups: dict[tuple[str, str], list[tuple[bytes, str, pytest.Item]]] = defaultdict(list)
    for item in items:
        target = target_of(item)
        digest = hashlib.sha256(str(target).encode()).digest()
        groups[target.name, target.opset].append((digest, item.nodeid, item))
    return {
        item
        for group in groups.values()
        for _, _, item in sorted(group, key=lambda entry: entry[:2])[:count]
    }
