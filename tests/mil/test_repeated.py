"""Calls that differ in few inputs give what whole calls give, and execute only what has changed."""

import numpy as np
import pytest
import torch

from harness.artifact import open_artifact
from harness.mil import get_policy, load_function, repeated
from harness.mil.function import Repeats


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return a program of many operations on x; y chooses a row of the result, z is added to it."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    weight = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)

    @mb.program(
        input_specs=[
            mb.TensorSpec((4, 6)),
            mb.TensorSpec((1,), dtype=ct.converters.mil.mil.types.int32),
            mb.TensorSpec((1, 6)),
        ],
        opset_version=ct.target.iOS18,
    )
    def program(x, y, z):
        for _ in range(8):
            x = mb.tanh(x=mb.matmul(x=x, y=weight))
        row = mb.gather(x=mb.transpose(x=x, perm=[0, 1]), indices=y, axis=0)
        return mb.add(x=row, y=z), mb.relu(x=x)

    made = ct.convert(program, minimum_deployment_target=ct.target.iOS18)
    path = tmp_path_factory.mktemp("repeated") / "m.mlpackage"
    made.save(str(path))
    (found,) = open_artifact(path).packages
    return found


def inputs(package, row, seed=0, add=0.0):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    names = [i.name for i in package.model.description.input]
    values = (x, torch.tensor([row], dtype=torch.int32), torch.full((1, 6), add))
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize("policy", ["widen", "strict", "double"])
def test_every_call_gives_what_a_whole_call_gives(package, policy):
    function = load_function(package, "main", get_policy(policy))
    calls = [(0,), (1,), (3,), (0,), (2, 1), (3, 1), (2, 1), (2, 1, 0.5), (1, 0, 0.25), (1,)]
    given = [inputs(package, *call) for call in calls]
    wanted = [function(one) for one in given]
    with repeated():
        buffers = {name: value.clone() for name, value in given[0].items()}
        for one, want in zip(given, wanted, strict=True):
            for name, value in one.items():
                buffers[name].copy_(value)  # a session writes its inputs in place
            torch.testing.assert_close(function(buffers), want)


def test_operations_that_do_not_depend_on_the_change_run_once(package, monkeypatch):
    function = load_function(package, "main", get_policy("strict"))
    parts = []
    original = Repeats._new_parts

    def cut(self, varying):
        parts.append(original(self, varying))
        return parts[-1]

    monkeypatch.setattr(Repeats, "_new_parts", cut)
    with repeated():
        for row in (0, 1, 2, 3):
            function(inputs(package, row))
        ((first, second),) = parts
        assert len(first.plan.steps) > 2 * len(second.plan.steps) > 0
        assert function._repeats._kept is not None
    assert function._repeats._kept is None and not function._repeats._before


def test_a_change_of_the_first_operand_runs_the_whole_plan(package):
    function = load_function(package, "main", get_policy("widen"))
    with repeated():
        for seed in range(3):
            one = inputs(package, 0, seed)
            torch.testing.assert_close(function(one), function(dict(one)))
        assert function._repeats._cut(frozenset(function._repeats._inputs)) is None
