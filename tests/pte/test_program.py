"""The .pte interpreter on a real program and on invented instructions."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness.artifact import open_artifact
from harness.artifact.pte import (
    DelegateCall,
    DelegateData,
    FreeCall,
    JumpFalseCall,
    KernelCall,
    ListValue,
    MoveCall,
    Pte,
    PteMethod,
    TensorValue,
)
from harness.artifact.pte_reader import read_pte
from harness.errors import HarnessError
from harness.pte.program import ProgramMethod
from harness.runtimes import RUNTIMES, get_runtime


class Instructions:
    """An artifact of one method without delegates."""

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
        (lambda x, y: (x, y[0]), r"input '\w+' has shape \[8\], not the declared \[2, 8\]"),
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
    monkeypatch.setattr("harness.pte.interpreter._MAX_STEPS", 1000)
    method = load((False,), (), (), (JumpFalseCall(0, 0),))
    with pytest.raises(HarnessError, match="did not end after 1000 instructions"):
        method()


def test_a_conditional_of_torch_is_executed_both_ways(tmp_path):
    """`torch.cond` becomes jumps and moves; the exporter then delegates no other operation."""
    from executorch.exir import to_edge

    class Conditional(torch.nn.Module):
        def forward(self, which, x):
            branches = (lambda x: torch.sigmoid(x) * 2, lambda x: torch.tanh(x) - 1)
            return torch.cond(which, *branches, (torch.relu(x),)) + 1

    module, x = Conditional(), torch.randn(2, 4)
    path = tmp_path / "cond.pte"
    exported = torch.export.export(module, (torch.tensor(True), x))
    path.write_bytes(to_edge(exported).to_executorch().buffer)
    plan = read_pte(path).methods["forward"]
    kinds = {type(instruction) for instruction in plan.instructions}
    assert {KernelCall, JumpFalseCall, MoveCall} <= kinds
    method = load(plan.values, plan.inputs, plan.outputs, plan.instructions)
    for which in (torch.tensor(True), torch.tensor(False)):
        torch.testing.assert_close(method(which, x)[0], module(which, x))


@pytest.mark.parametrize("condition", [torch.zeros(2, dtype=torch.bool), torch.zeros(0)])
def test_a_condition_that_is_not_one_bool_is_named(condition):
    dtype = str(condition.dtype).removeprefix("torch.")
    values = (tensor(*condition.shape, dtype=dtype),)
    method = load(values, (0,), (0,), (JumpFalseCall(0, 1),))
    with pytest.raises(HarnessError, match=r"a jump's condition has shape \[\d\], not one bool"):
        method(condition)


@pytest.mark.parametrize(
    ("instructions", "problem"),
    [
        ((), "output 'value_1' is value 1, used before it is defined"),
        ((MoveCall(0, 1), FreeCall(1)), "output 'value_1' is value 1, used before it is defined"),
        ((JumpFalseCall(1, 1),), "a jump's condition is value 1, used before it is defined"),
    ],
)
def test_a_value_that_nothing_has_made_is_named(instructions, problem):
    method = load((tensor(1), tensor(1)), (0,), (1,), instructions)
    with pytest.raises(HarnessError, match=f"made-up.pte, method 'forward': {problem}"):
        method(torch.zeros(1))


class Delegating(Instructions):
    """One method that calls one delegate, whose metadata names inputs a, b and output c."""

    class Names:
        input_names, output_names = ("a", "b"), ("c",)

    def __init__(self, values, args, inputs=(0, 1), outputs=(2,)):
        super().__init__(values, inputs, outputs, (DelegateCall(0, args),))
        self.delegates = {"forward": (SimpleNamespace(index=0, names=self.Names),)}


def delegating(values, args=(0, 1, 2), results=lambda tensors: tensors[:1], **parts):
    return ProgramMethod(Delegating(values, args, **parts), "forward", lambda _: results)


ONE = torch.ones(1)


def test_arguments_go_in_and_out_in_the_order_of_the_names():
    subtract = lambda tensors: [tensors[0] - tensors[1]]  # noqa: E731
    values = (tensor(1), tensor(1), tensor(1))
    method = delegating(values, (1, 0, 2), subtract)
    assert method(ONE * 5, ONE * 7)[0].tolist() == [2.0]


def test_a_scalar_that_core_ml_gives_as_one_element_becomes_a_scalar():
    method = delegating((tensor(1), tensor(1), tensor()))
    assert method(ONE, ONE)[0].shape == ()


def test_a_delegates_result_of_another_shape_is_named():
    method = delegating((tensor(1), tensor(1), tensor(2, 1)))
    problem = r"delegate 0: output 'c' has shape \[1\], the program declares \[2, 1\]"
    with pytest.raises(HarnessError, match=problem):
        method(ONE, ONE)


def test_a_delegates_input_that_nothing_has_made_is_named():
    method = delegating((tensor(1), tensor(1), tensor(1)), inputs=(0,))
    with pytest.raises(HarnessError, match="delegate 0's input 'b' is value 1, used before"):
        method(ONE)


@pytest.mark.parametrize(
    ("values", "args", "problem"),
    [
        ((tensor(1), 3, tensor(1)), (0, 1, 2), "'b' is passed as int; .* tensors only"),
        ((tensor(1), None, tensor(1)), (0, 1, 2), "'b' is passed as NoneType"),
        ((tensor(1), tensor(1), ListValue((0,))), (0, 1, 2), "'c' is passed as ListValue"),
        ((tensor(1), tensor(1), tensor(1)), (0, 2), "called with 2 values, metadata.json names 3"),
        ((tensor(1), tensor(1), tensor(1)), (0, 1, 2, 2), "called with 4 values"),
    ],
)
def test_a_delegate_that_is_handed_something_else_is_named_at_load(values, args, problem):
    with pytest.raises(HarnessError, match=f"method 'forward', delegate 0: {problem}"):
        delegating(values, args, inputs=(0,), outputs=(0,))


def test_a_delegate_of_another_backend_is_named_at_load():
    other = DelegateData("XnnpackBackend", memoryview(b""), ())
    artifact = Instructions((tensor(1),), (0,), (0,), (DelegateCall(0, (0,)),))
    method = replace(artifact.pte.methods["forward"], delegates=(other,))
    artifact.pte = Pte({"forward": method}, {}, 0)
    with pytest.raises(HarnessError, match="calls delegate 0 of XnnpackBackend; only Core ML"):
        ProgramMethod(artifact, "forward", factory=None)


def test_something_else_than_a_tensor_that_goes_in_is_named():
    with pytest.raises(HarnessError, match="value 0 is an input or output, but not a tensor"):
        load((3,), (0,), (), (FreeCall(0),))


def test_a_dtype_argument_of_a_kernel_is_read():
    # aten::sum.IntList_out(self, dim, keepdim, dtype, out): the dtype is ExecuTorch's number
    values = (tensor(2, 3), ListValue((2,)), 1, False, 7, tensor(2, dtype="float64"))
    call = KernelCall("aten::sum.IntList_out", (0, 1, 3, 4, 5, 5))
    (result,) = load(values, (0,), (5,), (call,))(torch.ones(2, 3))
    assert result.dtype == torch.float64 and result.tolist() == [3, 3]


def test_a_kernel_of_several_outputs_fills_them_all():
    values = (tensor(4), 0, False, tensor(1), tensor(1, dtype="int64"), ListValue((3, 4)))
    call = KernelCall("aten::max.dim_max", (0, 1, 2, 3, 4, 5))
    largest, place = load(values, (0,), (3, 4), (call,))(torch.tensor([1.0, 9.0, 3.0, 4.0]))
    assert (largest.item(), place.item()) == (9, 1)


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_is_available_or_says_why_not(name):
    runtime = get_runtime(name)
    assert runtime.name == name
    reason = runtime.unavailable()
    assert reason is None or len(reason) > 10


def test_an_unknown_runtime_is_named_with_those_there_are():
    with pytest.raises(HarnessError, match="no runtime 'metal'; choose from mil:strict"):
        get_runtime("metal")
