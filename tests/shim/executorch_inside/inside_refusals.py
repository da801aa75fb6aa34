"""The stand-in refuses what the runtime refuses, with its error number and our sentence."""

import re

import pytest
import torch
from conftest import X, Y, delegated, load, portable
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.runtime import Runtime

BAD_INPUTS = {
    "another shape": ((torch.ones(2, 2), Y), r"input 0 .* not the declared \[2, 3\]$"),
    "another rank": ((X, torch.ones(6)), r"input 1 has shape \[6\], not the declared \[2, 3\]$"),
    "another dtype": ((X, Y.half()), "input 1 is float16, not the declared float32"),
    "too few": ((X,), "1 inputs were given, it has 2"),
    "too many": ((X, Y, Y), "3 inputs were given, it has 2"),
    "a number": ((1, Y), "input 0 is 1; the program was exported with a float32 tensor"),
    "nothing": ((None, Y), "input 0 is None; the program was exported with a float32 tensor"),
}


def refusal(method, inputs):
    with pytest.raises(RuntimeError) as caught:
        method.execute(inputs)
    return str(caught.value)


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_are_refused_as_the_runtime_refuses_them(affine, name):
    inputs, problem = BAD_INPUTS[name]
    ours, theirs = (refusal(load(data), inputs) for data in affine)
    assert ours.startswith(f"{theirs}: ") and re.search(problem, ours)


def test_a_tensor_that_is_not_contiguous_is_refused(affine):
    strided = torch.ones(3, 2).t()
    ours, theirs = (refusal(load(data), (strided, Y)) for data in affine)
    assert "should be contiguous or channels-last" in ours and "channels-last" in theirs


@pytest.mark.parametrize("given", [X.numpy(), torch.nn.Parameter(X), [X], "text"])
def test_what_is_no_tensor_is_refused_by_its_type(affine, given):
    ours, theirs = (refusal(load(data), (given, Y)) for data in affine)
    beginning = f"Unsupported python type {type(given)}"
    assert ours.startswith(beginning) and theirs.startswith(beginning)


def test_executing_before_there_are_inputs_is_refused(affine):
    problems = []
    for data in affine:
        with pytest.raises(RuntimeError) as caught:
            load(data)._method.execute()
        problems.append(str(caught.value))
    assert problems[0] == f"{problems[1]}: method 'forward' was given no inputs"


@pytest.mark.parametrize("given", [3, 4, 3.0, True, None])
def test_a_number_must_be_the_one_that_was_exported(given):
    class Plus(torch.nn.Module):
        def forward(self, x, n):
            return x + n

    ours, theirs = (load(make(Plus(), (X, 3))) for make in (delegated, portable))
    if given == 3 and type(given) is int:
        assert torch.equal(ours.execute((X, given))[0], theirs.execute((X, given))[0])
        return
    problem = refusal(ours, (X, given))
    assert problem.startswith(refusal(theirs, (X, given)))
    assert f"input 1 is {given!r}; the program was exported with 3" in problem


def test_a_method_that_is_not_there_is_refused_as_the_runtime_refuses_it(affine):
    problems = []
    for data in affine:
        with pytest.raises(RuntimeError) as caught:
            Runtime.get().load_program(data)._program.load_method("prefill")
        problems.append(str(caught.value))
    assert problems[0] == problems[1]


@pytest.mark.parametrize("given", [b"junk" * 99, "/no/such.pte"])
def test_what_is_no_program_is_refused_by_the_runtime(given):
    with pytest.raises(RuntimeError, match="^Failed to (load program|create MmapDataLoader)"):
        Runtime.get().load_program(given)


def broken(data, change):
    """Return a program with a changed payload of its first delegate."""
    file = deserialize_pte_binary(data)
    payload = file.program.backend_delegate_data[0]
    payload.data = change(bytes(payload.data))
    return bytes(serialize_pte_binary(file))


def test_a_package_that_cannot_be_read_fails_to_load_with_the_reason(affine):
    program = Runtime.get().load_program(broken(affine[0], lambda data: data[:64]))
    assert program.method_names == {"forward", "answer", "name"}
    with pytest.raises(RuntimeError, match=r"^Failed to load method forward, error: 0x:23: .{40}"):
        program.load_method("forward")


def test_an_unknown_policy_fails_to_load_with_the_reason(affine, monkeypatch):
    monkeypatch.setenv("HARNESS_POLICY", "fast")
    with pytest.raises(RuntimeError, match="forward, error: 0x:23: no number policy 'fast'"):
        load(affine[0])


def test_a_delegate_that_fails_names_the_operation(affine, monkeypatch):
    from harness.errors import HarnessError
    from harness.mil import Function

    def fail(self, inputs, state=None):
        raise HarnessError("function 'main', operation 7: no")

    method = load(affine[0])
    monkeypatch.setattr(Function, "__call__", fail)
    assert refusal(method, (X, Y)) == (
        "method->execute() failed with error 0x32: function 'main', operation 7: no"
    )
