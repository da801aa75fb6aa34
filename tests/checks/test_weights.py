"""How a tensor is said to differ from the checkpoint's, and what it costs to find out."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.checks.weights import _both, _difference, _of_another, _on_one_side


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
        assert _difference(torch.ones(64, 64), want).startswith("4,096 of 4,096 values")
    assert 0 < seen.nbytes <= want.nbytes


def test_a_weight_has_the_name_of_the_checkpoint_beside_its_own():
    assert _both("wq", {"wq": "q_proj"}) == "wq, q_proj in the checkpoint"
    assert _both("wq", {}) == "wq"


def test_many_weights_that_differ_are_one_sentence_with_three_names():
    said = _of_another([f"layers.{number}" for number in range(82)], 83)
    assert said.startswith("layers.0, layers.1, layers.2, and 79 more: 82 of 83 weights differ")
    assert "checkpoint is another" in said and len(said) < 200


def test_a_weight_of_one_side_is_said_with_its_side_and_its_architecture():
    assert list(_on_one_side({"a", "b"}, {"a", "c"})) == [
        "b is in the artifact only",
        "c is in the checkpoint only",
    ]
    norms = {f"layers.{n}.attention.{x}_norm_fn.weight" for n in range(3) for x in "qk"}
    (said,) = _on_one_side({"a"}, {"a", *norms})
    assert "and 3 more: only the checkpoint has norms of queries and keys, as Qwen3" in said
