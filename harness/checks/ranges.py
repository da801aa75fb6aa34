"""Activations that fp16 cannot hold, seen by carrying them wider.

An RMSNorm that squares its input in fp16 overflows where |x| > 255: `rsqrt(inf)` is 0, the block is
zeroed, and every value that leaves it is finite (ExecuTorch 19523). Only the range shows it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from harness.checks.finding import Finding
from harness.checks.parity import prompt_length, sequence, trace
from harness.checks.subject import Subject
from harness.mil import observed
from harness.mil.plan import Step
from harness.report.figures import Figure

_LARGEST = torch.finfo(torch.float16).max


def check_fp16_range(subject: Subject) -> Iterator[Finding]:
    """Run the subject's sequence in `widen`: no FLOAT16 result may exceed fp16's largest value.

    Infinities are left out: a mask is made of them.
    """
    largest: dict[str, float] = {}

    def observe(step: Step, results: tuple[torch.Tensor, ...]) -> None:
        for result, declared in zip(results, step.types, strict=True):
            if declared.dtype.name == "FLOAT16":
                peak = float(result.abs().nan_to_num(posinf=0.0).max()) if result.numel() else 0.0
                largest[step.where] = max(largest.get(step.where, 0.0), peak)

    tokens = sequence(subject)
    with observed(observe):
        trace(subject.session("mil:widen"), tokens, prompt_length(subject))
    over = [where for where, peak in largest.items() if peak > _LARGEST]
    first = f"the first is {over[0]}, which reaches {largest[over[0]]:.4g}" if over else ""
    yield Finding(
        "fp16-range",
        "activations",
        ok=not over,
        message=f"{len(over)} of {len(largest)} operations exceed fp16's {_LARGEST:.0f}; {first}",
        comparisons=len(largest),
        figures={"largest activation": Figure(max(largest.values(), default=0.0))},
        facts={"operations over fp16": len(over)},
    )
