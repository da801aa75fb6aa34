"""When fp16 resolution is enough: a stated bound for programs that hold FLOAT16 values.

Some fp32 configurations hold FLOAT16 values all the same (a weight, a cast, an input). Their
expected values were computed in fp16 or in fp32, as the test's author chose, and the suite's bound,
1e-4, is finer than fp16 resolves. Where a comparison fails at the suite's own bound and the program
holds FLOAT16 values, it is made again with the bound below, and counted apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

HALF_BOUND = 2.0**-9
"""Of the largest expected value: two units in the last place of fp16."""


def within_half(actual: Any, desired: Any) -> bool:
    """Whether all values agree to fp16 resolution; what is not finite must be the same."""
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    if actual.shape != desired.shape:
        return False
    finite = np.isfinite(desired)
    if not np.array_equal(actual[~finite], desired[~finite], equal_nan=True):
        return False
    largest = np.max(np.abs(desired), initial=0.0, where=finite)
    differences = np.abs(actual[finite] - desired[finite])
    return bool(np.all(differences <= HALF_BOUND * largest))
