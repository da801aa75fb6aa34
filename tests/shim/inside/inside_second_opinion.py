"""The second opinion finds each wrong executor, and leaves ours alone; it needs no Core AI."""

import pytest
import torch

from harness.mil.ops import elementwise_unary
from harness.suites.second_opinion import child, executors


def problems(subjects, precision="fp32", executor="mil"):
    asked = {"subjects": subjects, "precision": precision, "executors": [executor]}
    found = child.judged(asked)[executor]
    assert all(one["compared"] or one["problems"] for one in found.values())
    return {name: set(one["problems"]) for name, one in found.items() if one["problems"]}


@pytest.fixture(autouse=True)
def _policy(monkeypatch):
    monkeypatch.setenv(executors.POLICY_VARIABLE, "strict")  # a child sets it; it is put back


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_our_executor_agrees(precision):
    assert problems(["round", "abs", "exp", "gelu", "maximum", "slice"], precision) == {}


def away(x):
    return torch.sign(x) * torch.floor(x.abs() + 0.5)


@pytest.mark.parametrize(
    ("operation", "wrong", "kind"),
    [
        ("round", away, "ties"),
        ("abs", torch.neg, "ordinary"),
        ("floor", lambda x: torch.floor(x) + 0.0, "zeros"),  # -0 becomes 0
        ("tanh", lambda x: torch.where(x.isnan(), 0.0, torch.tanh(x)), "nan"),
        ("exp", lambda x: torch.exp(x).clamp_max(3e38), "infinities"),
    ],
)
def test_a_wrong_operation_of_our_executor_is_found(monkeypatch, operation, wrong, kind):
    monkeypatch.setitem(elementwise_unary._UNARY, operation, wrong)
    found = problems([operation, "add"])
    assert found.keys() == {operation} and kind in found[operation]


def broken(change):
    """Return an executor that changes what PyTorch gives."""
    prepare = executors.eager

    def prepared(module, inputs, precision):
        run = prepare(module, inputs, precision)
        return lambda values: [change(y) for y in run(values)]

    return prepared


def flushed(y):
    tiny = torch.finfo(y.dtype).smallest_normal
    return torch.where((y != 0) & (y.abs() < tiny), 0.0, y)


def truncated(y):
    """Round a result towards zero to 23 bits less one."""
    return (y.view(torch.int32) & ~1).view(torch.float32)


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        (flushed, "abs"),
        (truncated, "mul"),
        (lambda y: y + 0.0, "neg"),
        (lambda y: y.flip(-1), "slice"),
        (lambda y: y.nan_to_num(0.0, torch.inf, -torch.inf), "softmax"),
        (lambda y: y * 1.0001, "llama-block-with-cache"),
        (lambda y: y[..., :-1], "attention"),
    ],
)
def test_a_wrong_executor_is_found(monkeypatch, change, subject):
    assert problems([subject], executor="pytorch") == {}
    monkeypatch.setitem(child.EXECUTORS, "pytorch", broken(change))
    assert problems([subject], executor="pytorch").keys() == {subject}


def test_a_refusal_is_of_one_subject_alone(monkeypatch):
    def picky(module, inputs, precision):
        if any(x.shape == (2, 4, 6) for x in inputs):  # those of data movement
            raise executors.Refused("ValueError: a message")
        return executors.eager(module, inputs, precision)

    monkeypatch.setitem(child.EXECUTORS, "pytorch", picky)
    asked = {"subjects": ["abs", "slice", "add"], "precision": "fp32", "executors": ["pytorch"]}
    found = child.judged(asked)["pytorch"]
    assert found["slice"] == {"refused": "ValueError: a message"}
    assert found["abs"]["compared"] == 6 * 64 and not found["add"]["problems"]
