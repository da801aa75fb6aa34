"""Tensors pass through shared memory bit for bit."""

import os
import sys

import pytest
import torch

from harness.runtimes._isolated_child import SharedTensors, anonymous_file


@pytest.fixture(params=[pytest.param("memory", marks=pytest.mark.linux), "file"])
def sides(request, monkeypatch):
    """Return two ends of one file, like those of two processes."""
    if request.param == "file":
        monkeypatch.setattr(sys, "platform", "darwin")
    file = anonymous_file()
    copy = os.dup(file)
    yield SharedTensors(file), SharedTensors(copy)
    os.close(file)
    os.close(copy)


TENSORS = {
    "half": torch.tensor([1.5, float("nan"), -0.0, float("-inf")], dtype=torch.float16),
    "bfloat16": torch.arange(5).to(torch.bfloat16),
    "double": torch.full((2, 3), 1 / 3, dtype=torch.float64),
    "integers": torch.tensor([[2**40, -1]]),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(7, dtype=torch.int32),
    "no elements": torch.zeros(1, 2, 0, 16, dtype=torch.float16),
    "a transposed view": torch.arange(6.0).reshape(2, 3).T,
    "an expanded view": torch.tensor([1.0]).expand(4),
    "with a gradient": torch.ones(3, requires_grad=True),
}


def raw(tensor):
    """Return a tensor's bytes: NaN equals itself, 0.0 does not equal -0.0."""
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_as_it_was(sides, name):
    tensor = TENSORS[name]
    (arrived,) = sides[1].read(sides[0].write([tensor]))
    assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
    assert raw(arrived) == raw(tensor)


def test_all_tensors_arrive_in_order_and_larger_ones_after_smaller_ones(sides):
    for size in (1, 100, 70_000, 3):
        tensors = [torch.rand(size), torch.arange(size), torch.rand(size).half()]
        arrived = sides[1].read(sides[0].write(tensors))
        assert all(torch.equal(a, b) for a, b in zip(arrived, tensors, strict=True))


def test_nothing_is_nothing(sides):
    assert sides[1].read(sides[0].write([])) == []
