"""The .pte interpreter, on a real program and on made-up instructions."""

import pytest
import torch

from harness.artifact import open_artifact
from harness.artifact.pte import (
    FreeCall,
    JumpFalseCall,
    KernelCall,
    ListValue,
    MoveCall,
    Pte,
    PteMethod,
    TensorValue,
)
from harness.errors import HarnessError
from harness.runtimes import RUNTIMES, get_runtime
from harness.runtimes.program import ProgramMethod


class Instructions:
    """An artefact of one method without delegates."""

    path = "made-up.pte"
    methods = ("forward",)
    delegates = {"forward": ()}

    def __init__(self, values, inputs, outputs, instructions):
        method = PteMethod("forward", values, inputs, outputs, instructions, ())
        self.pte = Pte({"forward": method}, {}, 0)

    def value_names(self, method):
        return {}


def load(*parts):
    return ProgramMethod(Instructions(*parts), "forward", factory=None)


def tensor(*shape, dtype="float32"):
    return TensorValue(dtype, shape, None)


@pytest.mark.parametrize("policy", ["strict", "widen", "double"])
def test_delegates_and_kernels_give_what_eager_pytorch_gives(mixed_program, policy):
    path, module, inputs = mixed_program
    method = get_runtime(f"mil:{policy}").load(open_artifact(path), "forward")
    for have, want in zip(method(*inputs), module(*inputs), strict=True):
        torch.testing.assert_close(have.float(), want, rtol=1e-5, atol=1e-6)


def test_calls_are_independent(mixed_program):
    path, _, inputs = mixed_program
    method = get_runtime("mil:widen").load(open_artifact(path), "forward")
    first = [result.clone() for result in method(*inputs)]
    method(*(torch.full_like(x, 3.0) for x in inputs))
    assert all(torch.equal(a, b) for a, b in zip(first, method(*inputs), strict=True))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x, y: (x,), "called with 1 inputs, it has 2"),
        (lambda x, y: (x, y[0]), r"input '\w+' has shape \[8\], declared is \[2, 8\]"),
        (lambda x, y: (x, y.to(torch.int32)), r"is torch\.int32, not float32"),
    ],
)
def test_a_wrong_input_is_named(mixed_program, change, problem):
    path, _, inputs = mixed_program
    method = get_runtime("mil:widen").load(open_artifact(path), "forward")
    with pytest.raises(HarnessError, match=problem):
        method(*change(*inputs))


def test_an_unknown_method_is_named_with_those_there_are(mixed_program):
    with pytest.raises(HarnessError, match="no method 'prefill'; its methods: forward"):
        get_runtime("mil:widen").load(open_artifact(mixed_program[0]), "prefill")


def test_moves_and_kernels_and_scalars():
    # values: 0 x, 1 y, 2 alpha, 3 sum, 4 moved
    values = (tensor(2), tensor(2), 3, tensor(2), tensor(2))
    add = KernelCall("aten::add.out", (0, 1, 2, 3, 3))
    method = load(values, (0, 1), (4,), (add, MoveCall(3, 4), FreeCall(3)))
    (result,) = method(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]))
    assert result.tolist() == [31.0, 62.0]


def test_a_jump_is_taken_when_its_condition_is_false():
    values = (tensor(dtype="bool"), tensor(1), tensor(1), tensor(1))
    # if condition: output = first, else: output = second
    steps = (JumpFalseCall(0, 3), MoveCall(1, 3), JumpFalseCall(4, 4), MoveCall(2, 3))
    method = load((*values, False), (0, 1, 2), (3,), steps)
    first, second = torch.tensor([1.0]), torch.tensor([2.0])
    assert method(torch.tensor(True), first, second)[0].item() == 1.0
    assert method(torch.tensor(False), first, second)[0].item() == 2.0


def test_lists_of_tensors_go_into_a_kernel():
    values = (tensor(1), tensor(1), ListValue((0, 1)), 0, tensor(2))
    method = load(values, (0, 1), (4,), (KernelCall("aten::cat.out", (2, 3, 4, 4)),))
    assert method(torch.tensor([1.0]), torch.tensor([2.0]))[0].tolist() == [1.0, 2.0]


def test_a_kernel_computes_as_wide_as_its_inputs_are_carried():
    values = (tensor(1, dtype="float16"), tensor(1, dtype="float16"))
    method = load(values, (0,), (1,), (KernelCall("aten::relu.out", (0, 1, 1)),))
    assert method(torch.tensor([1.0 + 2**-20]))[0].item() == 1.0 + 2**-20


def test_a_kernel_that_is_not_pytorchs_is_named():
    method = load((tensor(1),), (0,), (0,), (KernelCall("mine::twist.out", (0, 0, 0)),))
    with pytest.raises(HarnessError, match="kernel mine::twist.out is not one of PyTorch's"):
        method(torch.zeros(1))


def test_a_kernel_that_fails_is_named():
    values = (tensor(2, 3), tensor(2, 3), tensor(2, 2))
    method = load(values, (0, 1), (2,), (KernelCall("aten::mm.out", (0, 1, 2, 2)),))
    with pytest.raises(HarnessError, match="method 'forward', kernel aten::mm.out: RuntimeError"):
        method(torch.zeros(2, 3), torch.zeros(2, 3))


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr("harness.runtimes.program._MOST_STEPS", 1000)
    method = load((False,), (), (), (JumpFalseCall(0, 0),))
    with pytest.raises(HarnessError, match="did not end after 1000 instructions"):
        method()


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_is_available_or_says_why_not(name):
    runtime = get_runtime(name)
    assert runtime.name == name
    reason = runtime.unavailable()
    assert reason is None or len(reason) > 10


def test_an_unknown_runtime_is_named_with_those_there_are():
    with pytest.raises(HarnessError, match="no runtime 'metal'; choose from mil:strict"):
        get_runtime("metal")
