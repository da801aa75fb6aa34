"""The judge of families: it passes what predicts, and fails a wrong number, shape or refusal."""

import pytest
import torch
from torch import nn

from harness.child import POLICY_VARIABLE
from harness.suites.families import child
from harness.suites.families.models import FAMILIES, Family


class Tilted(nn.Module):
    """A small network; `grown` appends what no prediction has."""

    def __init__(self, scale=1.0, grown=False):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.scale, self.grown = nn.Linear(6, 4), scale, grown

    def forward(self, x):
        y = torch.tanh(self.layer(x)) * self.scale
        return torch.cat([y, y], 1) if self.grown else y


def drawn(length):
    return torch.randn(1, length, 6, generator=torch.Generator().manual_seed(length))


FREE = Family(Tilted, drawn, (5, 3, 9), (1,))


@pytest.fixture(scope="module")
def converted():
    return child.loaded(child._traced(Tilted().eval(), FREE, True, "fp32")[1])


def compared(model, module, precision="fp32"):
    return child._compared(model, module, module, FREE, FREE.lengths, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_model_that_predicts_passes_at_each_of_its_lengths(monkeypatch, precision):
    monkeypatch.setitem(FAMILIES, "tilted", FREE)
    asked = {"family": "tilted", "lengths": "flexible", "precision": precision}
    found = child.judged(asked)
    assert found["outcome"] == "pass", found
    assert found["comparisons"] == sum(FREE.lengths) * 4
    assert 0 <= found["error"] <= found["bound"]


def test_a_wrong_number_fails(converted):
    found = compared(converted, Tilted(scale=1.0001))
    assert found["outcome"] == "fail" and "off by" in found["reason"]


def test_a_wrong_number_fails_in_fp16():
    model = child.loaded(child._traced(Tilted().eval(), FREE, True, "fp16")[1])
    assert compared(model, Tilted(), "fp16")["outcome"] == "pass"
    assert compared(model, Tilted(scale=1.5), "fp16")["outcome"] == "fail"


def test_no_loss_of_eager_pytorch_allows_an_eighth(monkeypatch):
    monkeypatch.setattr(child, "_relative", lambda found, wanted: 0.9)
    assert child._half_bound(Tilted(), drawn(5), drawn(5)) == 0.125


def test_a_wrong_shape_fails(converted):
    found = compared(converted, Tilted(grown=True))
    assert found["outcome"] == "fail" and "shape [1, 5, 4], not [1, 10, 4]" in found["reason"]


def test_a_length_that_is_refused_fails():
    fixed = child.loaded(child._traced(Tilted().eval(), FREE, False, "fp32")[1])
    found = compared(fixed, Tilted())
    assert found["outcome"] == "fail" and "refused at length 3" in found["reason"]


def test_a_defect_of_the_executor_at_load_is_not_the_converters(monkeypatch):
    def broken(*_):
        raise IndexError("a defect")

    monkeypatch.setenv(POLICY_VARIABLE, "strict")  # `judged` sets it, and it is put back
    monkeypatch.setitem(FAMILIES, "tilted", FREE)
    monkeypatch.setattr("harness.shim.model.load_predictor", broken)
    with pytest.raises(IndexError, match="a defect"):
        child.judged({"family": "tilted", "lengths": "fixed", "precision": "fp32"})


def test_a_trace_that_fixes_its_length_is_no_fault_of_the_executor(monkeypatch, converted):
    traced = torch.jit.trace(Tilted().eval(), drawn(5))
    wrong = lambda x: traced(x) * 1.01  # noqa: E731
    found = child._compared(converted, wrong, Tilted(), FREE, FREE.lengths, "fp32")
    assert found["outcome"] == "skip" and "what coremltools was given is off" in found["reason"]
