"""The checks against an eager module catch their mutants, and let the control pass.

A row names the fault, the mutation, the mode, and by check the sentence that it must say.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from harness.checks import value_checks
from harness.fixtures.cache import fixture
from harness.golden.language import register_parameter
from harness.models.checkpoint import load_checkpoint
from harness.models.config import load_params
from harness.models.model import Operations, evaluate_method
from harness.subject import Subject
from harness.suites.mutants import of_names as names
from harness.suites.mutants import of_programs as programs
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import Export
from harness.suites.mutants.judge import Mutation, Sources, judged

pytestmark = pytest.mark.mutant
OFF = {"outputs": r"output '.*' is off by \S+ of its largest value; \S+ is allowed"}
NORM = "'layers.0.attention_norm.weight'"
ROWS = [
    ("a norm off by 1 %", weights.perturb_a_norm, f"1 of 64 values of {NORM} differ"),
    ("a scale off by 1 %", weights.perturb_a_scale, "over half a step from those of 'layers.0"),
    ("a norm drawn again", weights.redraw_a_norm, f"resembles no tensor .* reference's {NORM}"),
    ("a norm with noise", weights.noise_on_a_norm, f"is not the reference's {NORM}, which it rese"),
]
NUMBERS = [
    ("a norm off by 1 %", weights.perturb_a_norm, "single"),
    ("two weights swapped", weights.swap_two_weights, "single"),
    ("a bias", weights.add_a_bias, "multifunction"),
    ("two outputs swapped", names.swap_outputs, "single"),
    ("two key caches swapped", names.swap_inputs("_0_l0_h0", "_0_l1_h0"), "single"),
    ("the epsilon", programs.change_epsilon, "single"),
    ("the attention scale", programs.change_attention_scale, "single"),
    ("silu is sigmoid", programs.retype("silu", "sigmoid", 0), "single"),
    ("the mask ignored", programs.ignore_the_mask, "single"),
    ("RoPE of halves", programs.rotate_halves, "multifunction"),
    ("the last position ignored", programs.ignore_the_last_position, "multifunction"),
]
CASES = [
    *(
        pytest.param(mutate, "single", {"reference-weights": sentence}, id=f"{what}, its values")
        for what, mutate, sentence in ROWS
    ),
    *(pytest.param(mutate, mode, OFF, id=f"{what}, {mode}") for what, mutate, mode in NUMBERS),
]


class Eager(torch.nn.Module):
    """The fixture `tiny` as a user's module would have it, with the inputs of a method."""

    def __init__(self) -> None:
        super().__init__()
        source = fixture("tiny")
        self._config = load_params(source.params)
        for name, weight in load_checkpoint(source.checkpoint, self._config).items():
            register_parameter(self, name, weight.float().clone())

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute a call of the exported method."""
        parameters = dict(self.named_parameters())
        dtype = next(iter(parameters.values())).dtype
        return evaluate_method(Operations(self._config, parameters, dtype), inputs)


def modules() -> dict[str, torch.nn.Module]:
    """Return the reference: one module for both methods."""
    module = Eager().eval()
    return {"forward": module, "prefill": module}


def broken(sources: Sources, mutate: Mutation, mode: str, folder: Path) -> Subject:
    export = Export(sources[mode].artifact.path)
    mutate(export)
    path = export.save(folder / "mutant.pte")
    return Subject(path, reference=f"{__name__}:modules")


@pytest.mark.parametrize("mode", ["single", "multifunction"])
def test_the_control_passes_both_checks(sources: Sources, mode: str, tmp_path: Path) -> None:
    subject = broken(sources, programs.touch_everything, mode, tmp_path)
    for name in value_checks():
        case = judged(subject, name)
        assert case.outcome == "pass" and case.comparisons > 1000, case.reason


def test_both_checks_have_a_mutant() -> None:
    assert {"reference-weights", *OFF} == set(value_checks())


@pytest.mark.parametrize(("mutate", "mode", "sentences"), CASES)
def test_a_mutant_is_caught(
    sources: Sources, mutate: Mutation, mode: str, sentences: dict[str, str], tmp_path: Path
) -> None:
    subject = broken(sources, mutate, mode, tmp_path)
    for name, sentence in sentences.items():
        case = judged(subject, name)
        assert case.outcome == "fail"
        assert re.search(sentence, case.reason), case.reason
