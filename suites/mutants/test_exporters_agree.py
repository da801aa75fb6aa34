"""The comparison of two exporters can fail: it catches a broken artifact of either one."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.artifact import open_artifact
from harness.checks.agreement import agreement_with
from harness.results import Case
from harness.runtimes import REFERENCE
from harness.subject import Subject
from harness.suites.mutants import of_constants as constants
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Mutation, scale_half, touch_everything
from harness.suites.mutants.judge import MakeMutant, judged, opened, sound

pytestmark = pytest.mark.mutant
MODES = ("single", "multifunction")
WRONG = r"(prefill|decode|caches) difference is \S+ \(<="
THEIRS: dict[str, tuple[Mutation, str]] = {
    "a scale off by 1 %": (weights.perturb_a_scale, WRONG),
    "a norm off by 1 %": (weights.perturb_a_norm, WRONG),
    "two weights swapped": (weights.swap_two_weights, WRONG),
    "the epsilon": (programs.change_epsilon, WRONG),
    "the attention scale": (programs.change_attention_scale, WRONG),
    "the mask's sign": (programs.subtract_the_mask, WRONG),
    "another layer's cache": (programs.cache_of_another_layer, WRONG),
    "one row of a table": (constants.one_table_row, "tables difference over allowed is"),
    "two rows of caches swapped": (
        constants.swap_in_rows(0),
        "called in different ways: prefill is",
    ),
}


def ours(mode: str) -> Subject:
    """Return our export of `tiny`."""
    return sound(mode, "folder")


def compared(subject: Subject, other: Subject) -> Case:
    return judged(subject, agreement_with(lambda: other))


@pytest.mark.parametrize("mode", MODES)
def test_the_control_agrees(mutant: MakeMutant, mode: str) -> None:
    case = compared(ours(mode), mutant(touch_everything, mode))
    assert case.outcome == "pass" and case.comparisons > 19_000, case.reason


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", THEIRS)
def test_a_broken_export_of_executorchs_is_caught(mutant: MakeMutant, what: str, mode: str) -> None:
    mutate, sentence = THEIRS[what]
    case = compared(ours(mode), mutant(mutate, mode))
    assert case.outcome == "fail" and re.search(sentence, case.reason), case.reason


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_export_of_ours_is_caught(tmp_path: Path, mode: str) -> None:
    """One scale of one quantized linear is 1 % too large."""
    source = ours(mode)
    folder = shutil.copytree(source.artifact.path, tmp_path / "mutant")
    package = open_artifact(folder / "blocks" / "model.mlpackage").package
    assert package is not None
    function = sorted(package.functions)[0]
    operations = package.operations(function).operations
    linear = next(op for op in operations if op.type == programs.QUANTIZED)
    (file,) = (folder / "blocks").rglob("weight.bin")
    content = bytearray(file.read_bytes())
    scale_half(content, linear.inputs["scale"].arguments[0].value.blobFileValue, 3, 1.01)
    file.write_bytes(content)
    case = compared(opened(folder, source), sound(mode))
    assert case.outcome == "fail" and re.search(WRONG, case.reason), case.reason


def test_a_table_of_another_length_is_said() -> None:
    """The check reads the other's own tables, not those with which it then calls both."""
    other = opened(sound("single").artifact.path, sound("single"))
    layout = other.session(REFERENCE).layout
    short = replace(layout, freqs_cos=layout.freqs_cos[:-1], freqs_sin=layout.freqs_sin[:-1])
    other._sessions[REFERENCE].layout = short
    case = compared(ours("single"), other)
    assert case.outcome == "fail" and "called in different ways: freqs_cos is" in case.reason


@pytest.mark.parametrize("which", [0, 1])
def test_a_table_that_holds_nan_is_caught(which: int) -> None:
    other = opened(sound("single").artifact.path, sound("single"))
    cos, sin = (table.clone() for table in other.tables)
    (cos, sin)[which][3, 0] = torch.nan
    other.tables = cos, sin
    case = compared(ours("single"), other)
    assert case.outcome == "fail" and "tables difference over allowed is nan" in case.reason


def test_exports_of_other_modes_are_not_compared() -> None:
    case = compared(ours("single"), sound("multifunction"))
    assert case.outcome == "fail" and "called in different ways: mode is single" in case.reason
