"""The judge of leftovers can fail: it names parts that a command would take for whole."""

import json
import shutil
from pathlib import Path

import pytest

from harness.artifact.exported import PROGRAM
from harness.fixtures.cache import exported
from harness.suites.interrupts.leftovers import Content, content, taken_for_whole


@pytest.fixture
def left(tmp_path: Path) -> tuple[Path, Content]:
    """Return an export under a temporary name, and the content of the whole."""
    whole = exported("tiny", exporter="coreml")
    shutil.copytree(whole, tmp_path / ".out.1.partial")
    return tmp_path / ".out.1.partial", content(whole)


def judged(partial: Path, whole: Content) -> list[str]:
    return list(taken_for_whole(partial.parent, whole, {}))


def test_what_is_whole_is_no_part(left: tuple[Path, Content]) -> None:
    assert judged(*left) == []


def test_a_part_that_every_command_refuses_is_no_fault(left: tuple[Path, Content]) -> None:
    partial, whole = left
    (partial / PROGRAM).unlink()
    assert judged(partial, whole) == []


def test_an_export_that_opens_with_other_content_is_named(left: tuple[Path, Content]) -> None:
    partial, whole = left
    program = json.loads((partial / PROGRAM).read_text())
    (partial / PROGRAM).write_text(json.dumps(program))
    (fault,) = judged(partial, whole)
    assert fault.startswith(".out.1.partial: inspect ended with 0")


def test_a_package_inside_that_opens_with_other_weights_is_named(
    left: tuple[Path, Content],
) -> None:
    partial, whole = left
    (partial / PROGRAM).unlink()
    (weights,) = (partial / "head").rglob("weight.bin")
    weights.write_bytes(weights.read_bytes() + b"more")
    (fault,) = judged(partial, whole)
    assert fault.startswith(".out.1.partial/head/model.mlpackage: inspect ended with 0")
