"""Buffers that persist and shapes that may shrink, as in ExecuTorch's own runtime."""

import pytest
import torch
from conftest import Counter, delegated, is_ours, load, portable
from executorch.exir import ExecutorchBackendConfig
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass

ONE = torch.ones(4)


def sequence(method):
    return [method.execute((ONE * n,))[0].tolist() for n in (1, 2, 3)]


@pytest.mark.parametrize("take_over", [True, False])
def test_a_buffer_goes_on_from_call_to_call(take_over):
    """Core ML keeps the first as its state, the program keeps the second. Both begin with zeros,
    not with the module's initial buffer."""
    ours = load(delegated(Counter(2.0), (ONE,), take_over=take_over))
    theirs = load(portable(Counter(2.0), (ONE,)))
    assert is_ours(ours) and not is_ours(theirs)
    assert sequence(ours) == sequence(theirs) == [[2.0] * 4, [6.0] * 4, [12.0] * 4]


@pytest.mark.parametrize("take_over", [True, False])
def test_a_method_that_is_loaded_anew_begins_anew(take_over):
    data = delegated(Counter(), (ONE,), take_over=take_over)
    assert sequence(load(data)) == sequence(load(data))


def test_a_buffer_begins_with_what_the_program_holds_for_it():
    config = ExecutorchBackendConfig(passes=[InitializedMutableBufferPass(["total"])])
    ours = load(delegated(Counter(2.0), (ONE,), config, take_over=False))
    theirs = load(portable(Counter(2.0), (ONE,), config))
    assert is_ours(ours)
    assert sequence(ours) == sequence(theirs) == [[6.0] * 4, [10.0] * 4, [16.0] * 4]


def test_what_was_returned_is_not_changed_by_a_later_write():
    class Before(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(4))

        def forward(self, x):
            before = self.last * 1
            self.last.copy_(x + 1)
            return before

    method = load(delegated(Before(), (ONE,), take_over=False))
    first = method.execute((ONE,))[0]
    second = method.execute((ONE * 5,))[0]
    assert (first.tolist(), second.tolist()) == ([0.0] * 4, [2.0] * 4)


class Sum(torch.nn.Module):
    def forward(self, x):
        return x + 1, x.sum()


@pytest.fixture(scope="module")
def dynamic():
    shapes = {"x": {0: torch.export.Dim("n", min=2, max=6)}}
    return [
        load(make(Sum(), (torch.ones(3, 2),), dynamic_shapes=shapes))
        for make in (delegated, portable)
    ]


@pytest.mark.parametrize("rows", [2, 3, 6])
def test_a_shape_may_be_any_up_to_the_largest(dynamic, rows):
    x = torch.randn(rows, 2)
    (larger, total), expected = dynamic[0].execute((x,)), dynamic[1].execute((x,))
    torch.testing.assert_close([larger, total], expected)
    assert larger.shape == (rows, 2)


@pytest.mark.parametrize("shape", [(7, 2), (2,), (2, 2, 1)])
def test_a_shape_beyond_the_largest_is_refused_as_the_runtime_refuses_it(dynamic, shape):
    problems = []
    for method in dynamic:
        with pytest.raises(RuntimeError) as caught:
            method.execute((torch.ones(shape),))
        problems.append(str(caught.value))
    assert problems[0].startswith(f"{problems[1]}: input 0 has shape {list(shape)}")


def test_a_shape_that_fits_the_memory_but_not_the_model_is_refused_by_core_mls_part(dynamic):
    with pytest.raises(RuntimeError, match=r"execute\(\) failed with error 0x32: .*\[2, 6\]"):
        dynamic[0].execute((torch.ones(2, 6),))
