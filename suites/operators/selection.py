"""Chooses the operator tests of coremltools that run: fp32 configurations, a sample or all."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.suites.impossible import NO_OPSET, Target

PACKAGE = "coremltools.converters.mil.mil.ops.tests"


def target_of(item: pytest.Item) -> Target:
    """Return the identity of a collected test."""
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
    """Return whether a test runs in fp32, or has no precision.

    In fp16 coremltools tolerates differences of 0.5, which shows little.
    """
    call = getattr(item, "callspec", None)
    backend = None if call is None else call.params.get("backend")
    if isinstance(backend, tuple):  # ("mlprogram", "fp32"), where the opset does not matter
        return bool(backend[1] == "fp32")
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
