"""A reference is called with the values at which a program's hazards show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.checks import run_check, value_checks
from harness.subject import Subject
from tests.hazards.programs import exported

ROWS = torch.ones(2, 8)


class ByHand(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


NORM, BY_HAND = torch.nn.RMSNorm(8, eps=1e-6), ByHand()
SCORED = torch.nn.LogSoftmax(-1)


@pytest.mark.parametrize(
    ("module", "precision", "sequence"),
    [
        ("NORM", "fp32", "zeros"),
        ("SCORED", "fp16", "large"),
        ("BY_HAND", "fp32", ""),
    ],
)
def test_the_value_that_matters_is_fed(
    module: str, precision: str, sequence: str, tmp_path: Path
) -> None:
    path = exported(globals()[module], {"x": ROWS}, tmp_path, precision=precision)
    subject = Subject(path, reference=f"{__name__}:{module}")
    case = run_check(value_checks()["outputs"], subject, "mil:strict", suite="check")
    assert case.outcome == ("fail" if sequence else "pass"), case
    assert f"sequence '{sequence}'" in case.reason or not sequence
