"""Each family, at fixed and flexible lengths, in fp32 and fp16, predicts what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.results import Case
from harness.suites.families.judge import Judge
from harness.suites.families.models import FAMILIES


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("lengths", ["fixed", "flexible"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_predicts_what_pytorch_computes(
    record: Callable[[Case], None], judge: Judge, family: str, lengths: str, precision: str
) -> None:
    record(judge.case(family, lengths, precision))
