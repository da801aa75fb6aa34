"""One thread for a function whose operations are all small.

Waking a second thread takes about ten microseconds, more than a small operation does, and torch
does it from some thousand elements on. Packed weights are multiplied by as many threads as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.mil.packed import PackedWeight
from harness.mil.packed.forms import FEW_ROWS
from harness.mil.packed.weight import multiplied_by
from harness.mil.plan import Plan
from harness.mil.types import TensorType

_SMALL_RESULT = 1 << 17  # elements: one step of a language model, with its caches
_SMALL_CONSTANT = 1 << 16


def is_small(plan: Plan) -> bool:
    """Whether no result, no constant and no product of a plan is worth a second thread."""
    for value in plan.slots:
        if isinstance(value, torch.Tensor) and value.numel() > _SMALL_CONSTANT:
            return False
    for step in plan.steps:
        results = [declared for declared in step.types if isinstance(declared, TensorType)]
        if any(not t.is_fixed or t.count > _SMALL_RESULT for t in results):
            return False
        packed = [plan.slots[slot] for slot in step.reads if slot >= 0]
        for weight in packed:
            if isinstance(weight, PackedWeight) and results[0].count > FEW_ROWS * weight.shape[0]:
                return False
    return True


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with multiplied_by(count):
            yield
    finally:
        torch.set_num_threads(count)
