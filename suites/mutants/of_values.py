"""The fixture `tiny` as a module of a user's, against which the same artifacts are judged."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch

from harness.fixtures.cache import fixture
from harness.golden.language import register_parameter
from harness.models.checkpoint import load_checkpoint
from harness.models.config import load_params
from harness.models.model import Operations, evaluate_method
from harness.subject import Subject
from harness.suites.mutants import of_weights as weights
from harness.suites.mutants.edit import touch_everything
from harness.suites.mutants.faults import Complaints, Mutant, fault
from harness.suites.mutants.judge import broken, complaints

NORM = "'layers.0.attention_norm.weight'"


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


def judge_values(mutant: Mutant, checks: Collection[str]) -> Complaints:
    """Judge an export whose parts a mutation changes, by the module."""
    mutate = mutant.mutate or touch_everything
    path = broken(mutate, mutant.mode, mutant.folder, mutant.kind).artifact.path
    return complaints(Subject(path, reference=f"{__name__}:modules"), checks)


row = partial(fault, room="weights", judge=judge_values)
row(
    "a norm drawn again",
    {"reference-weights": f"resembles no tensor .* reference's {NORM}"},
)(weights.redraw_a_norm)
row(
    "a norm with noise",
    {"reference-weights": f"is not the reference's {NORM}, which it rese"},
)(weights.noise_on_a_norm)
