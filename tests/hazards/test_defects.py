"""Known defects: the program that shows each, and the same without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb

from harness.artifact import Package
from harness.artifact.hazards import LINTS, Function
from harness.artifact.hazards.lint import parse_version
from tests.hazards.programs import built, exported, given, hazards

X = torch.tensor([[1.0, 2.0, 3.0]])


def remainder(by: int) -> Callable[[Any], Any]:
    return lambda x: mb.mod(x=np.int32(by), y=mb.reduce_sum(x=x, axes=[0]))


BUILT: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "2 to the power": (lambda x: mb.pow(x=np.float32(2), y=x), "fp32", "pow"),
    "3 to the power": (lambda x: mb.pow(x=np.float32(3), y=x), "fp32", ""),
    "a square": (lambda x: mb.pow(x=x, y=np.float32(2)), "fp32", ""),
    "a negative remainder": (remainder(-3), "int32", "mod"),
    "a remainder": (remainder(3), "int32", ""),
    "a random integer": (
        lambda x: mb.add(
            x=x,
            y=mb.cast(x=mb.random_uniform(shape=[4], low=0.0, high=3.0), dtype="int32"),
        ),
        "int32",
        "cast",
    ),
}


@pytest.mark.parametrize("what", BUILT)
def test_a_known_defect_is_named(what: str, tmp_path: Path) -> None:
    function, dtype, operation = BUILT[what]
    found = [one for one in hazards(built(function, [(dtype, (4,))], tmp_path)) if one[0] == "H14"]
    assert [place.split()[0] for _, place in found] == ([operation] if operation else [])


def test_atan2_of_zero_and_a_negative_number(tmp_path: Path) -> None:
    y, x = torch.tensor([0.0, 1.0]), torch.tensor([-1.0, -1.0])
    path = exported(torch.atan2, {"y": y, "x": x}, tmp_path)
    assert [code for code, _ in hazards(path)] == ["H14"]
    (have,) = given(path, y, x)
    assert have.tolist() == pytest.approx([0.0, 3 * np.pi / 4], abs=1e-5)
    assert torch.atan2(y, x).tolist() == pytest.approx([np.pi, 3 * np.pi / 4])
    assert hazards_with_version(path, "9.1") == [] == hazards_with_version(path, "")


def test_an_arctangent_is_sound(tmp_path: Path) -> None:
    assert hazards(exported(lambda x: torch.atan(x / (x.abs() + 1.0)), {"x": X}, tmp_path)) == []


def test_a_folded_scatter_is_named(tmp_path: Path) -> None:
    def scattered(x: Any) -> Any:
        data, new = np.array([1, 2, 3], np.float32), np.array([20, 30], np.float32)
        where = np.array([0, 1], np.int32)
        return mb.add(x=x, y=mb.scatter_along_axis(data=data, indices=where, updates=new, axis=0))

    path = built(scattered, [("fp32", (3,))], tmp_path, precision="fp16")
    assert [code for code, _ in hazards(path)] == ["H15"]


@pytest.mark.parametrize(
    ("text", "numbers"), [("9.0", (9, 0)), ("9.1.dev1", (9, 1)), ("9.0b1", (9, 0)), ("", None)]
)
def test_versions(text: str, numbers: tuple[int, ...] | None) -> None:
    assert parse_version(text) == numbers


def hazards_with_version(path: Path, version: str) -> list[str]:
    package = Package.from_folder(path)
    data = package.model.description.metadata.userDefined
    data["com.github.apple.coremltools.version"] = version
    return [found.place for found in LINTS["H14"](Function(package, "main"))]
