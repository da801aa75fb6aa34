"""The checks against an eager module find faults that the others find by the model.

A row names the fault, the mode, and the sentence of the check. `of_values` has the module.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.checks import value_checks
from harness.suites.mutants.faults import BOTH, Mutant, all_faults
from harness.suites.mutants.of_values import NORM, judge_values

pytestmark = pytest.mark.mutant
OFF = {"outputs": r"output '.*' is off by \S+ of its largest value; \S+ is allowed"}
ROWS = [
    ("a norm off by 1 %", "single", {"reference-weights": f"1 of 64 values of {NORM} differ"}),
    (
        "a scale off by 1 %",
        "single",
        {"reference-weights": "over half a step from those of 'layers.0"},
    ),
    ("a norm off by 1 %", "single", OFF),
    ("two weights swapped", "single", OFF),
    ("a bias", "multifunction", OFF),
    ("two outputs swapped", "single", OFF),
    ("two key caches swapped", "single", OFF),
    ("the epsilon", "single", OFF),
    ("the attention scale", "single", OFF),
    ("silu is sigmoid", "single", OFF),
    ("the mask ignored", "single", OFF),
    ("RoPE of halves", "multifunction", OFF),
    ("the last position ignored", "multifunction", OFF),
]


@pytest.mark.parametrize("mode", BOTH)
def test_a_control_passes_both_checks(mode: str, tmp_path: Path) -> None:
    assert judge_values(Mutant(None, mode, ".pte", tmp_path), tuple(value_checks())) == {}


@pytest.mark.parametrize(("name", "mode", "sentences"), ROWS)
def test_a_fault_of_the_table_is_found(
    name: str, mode: str, sentences: dict[str, str], tmp_path: Path
) -> None:
    mutate = all_faults()[name].mutate
    found = judge_values(Mutant(mutate, mode, ".pte", tmp_path), tuple(sentences))
    for check, sentence in sentences.items():
        assert any(re.search(sentence, text) for text in found[check]), found
