"""How a tensor is said to differ from the checkpoint's, and what it costs to find out."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.checks.weights import _difference


class Largest(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that an operation gives."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.nbytes = max(self.nbytes, result.nbytes)
        return result


@pytest.mark.parametrize(
    ("have", "problem"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], ""),
        ([[1.0, 2.0], [3.5, 6.0]], "2 of 4 values, by up to 2; the first at [1, 0] is 3.5, not 3"),
        ([[1.0, math.nan], [3.0, 4.0]], "1 of 4 values, by up to nan; the first at [0, 1] is nan"),
        ([1.0], "shape [1], not [2, 2]"),
        (7.0, "shape [], not [2, 2]"),
    ],
)
def test_a_difference_has_its_size_and_its_first_place(have, problem):
    said = _difference(torch.tensor(have), torch.tensor([[1, 2], [3, 4]], dtype=torch.float16))
    assert said.startswith(problem) and bool(said) == bool(problem)


def test_a_scalar_has_no_indices():
    assert "the first at [] is 2, not 1" in _difference(torch.tensor(2.0), torch.tensor(1.0))


def test_a_tensor_of_which_all_is_wrong_takes_no_more_than_its_own_size_at_once():
    want = torch.zeros(64, 64)
    with Largest() as seen:
        assert _difference(torch.ones(64, 64), want).startswith("4096 of 4096 values")
    assert 0 < seen.nbytes <= want.nbytes
