"""`mil:strict`, `mil:widen` and `mil:double` on real programs and packages."""

from types import SimpleNamespace

import pytest
import torch

from harness.artifact import MethodMetadata, open_artifact
from harness.errors import ArtifactError, HarnessError
from harness.runtimes import get_runtime

POLICIES = ("strict", "widen", "double")


def export(module, inputs, path):
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner
    from executorch.exir import to_edge_transform_and_lower

    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18)
    lowered = to_edge_transform_and_lower(
        torch.export.export(module.eval(), inputs),
        partitioner=[CoreMLPartitioner(compile_specs=specs)],
    )
    path.write_bytes(lowered.to_executorch().buffer)
    return path


class Scalars(torch.nn.Module):
    """Scalars are inputs and outputs of the delegate, and so is an int64 index."""

    def forward(self, x, scale, index):
        rows = x.index_select(0, index)
        return x * scale + 1, rows.sum(), rows


@pytest.fixture(scope="module")
def scalars(tmp_path_factory):
    """Return (artifact, module, inputs) of a program whose arguments once crashed ExecuTorch."""
    module = Scalars()
    inputs = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).half(),
        torch.tensor(1.5, dtype=torch.float16),
        torch.tensor([2]),
    )
    path = export(module, inputs, tmp_path_factory.mktemp("mil") / "scalars.pte")
    return open_artifact(path), module, inputs


@pytest.mark.parametrize("policy", POLICIES)
def test_rank_0_and_integer_arguments_give_what_eager_pytorch_gives(scalars, policy):
    artifact, module, inputs = scalars
    method = get_runtime(f"mil:{policy}").load(artifact, "forward")
    assert [(spec.shape, spec.dtype) for spec in method.inputs] == [
        ((4, 3), "float16"),
        ((), "float16"),
        ((1,), "int64"),
    ]
    results, expected = method(*inputs), module(*(i.float() for i in inputs[:2]), inputs[2])
    assert [result.shape for result in results] == [want.shape for want in expected]
    for have, want in zip(results, expected, strict=True):
        torch.testing.assert_close(have.float(), want, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("strict", torch.float16), ("widen", torch.float32), ("double", torch.float64)],
)
def test_results_come_as_wide_as_the_policy_carries_them(scalars, policy, dtype):
    artifact, _, inputs = scalars
    method = get_runtime(f"mil:{policy}").load(artifact, "forward")
    assert {result.dtype for result in method(*inputs)} == {dtype}


def test_any_float_may_stand_for_another(scalars):
    artifact, _, inputs = scalars
    method = get_runtime("mil:strict").load(artifact, "forward")
    wide = method(*(i.double() if i.is_floating_point() else i.int() for i in inputs))
    assert all(torch.equal(a, b) for a, b in zip(wide, method(*inputs), strict=True))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x, s, i: (x, s, i.float()), r"input '.*' is torch\.float32, not int64"),
        (lambda x, s, i: (x, s[None], i), r"has shape \[1\], not the declared \[\]"),
        (lambda x, s, i: (x, s, i[0]), r"has shape \[\], not the declared \[1\]"),
        (lambda x, s, i: (x, s, i, i), "called with 4 inputs, it has 3"),
        (lambda x, s, i: (x, s, i + 7), "gather|out of"),
    ],
)
def test_a_wrong_argument_is_one_sentence(scalars, change, problem):
    artifact, _, inputs = scalars
    method = get_runtime("mil:widen").load(artifact, "forward")
    with pytest.raises(HarnessError, match=problem) as failure:
        method(*change(*inputs))
    assert "\n" not in str(failure.value)


def test_states_go_on_from_call_to_call_and_start_anew_with_a_load(tmp_path):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(2))

        def forward(self, x):
            return self.count.add_(x) * 2

    path = export(Counter(), (torch.ones(2),), tmp_path / "state.pte")
    artifact = open_artifact(path)
    for _ in range(2):
        method = get_runtime("mil").load(artifact, "forward")
        assert [method(torch.ones(2))[0].tolist() for _ in range(2)] == [[2.0, 2.0], [4.0, 4.0]]


@pytest.fixture
def package(mixed_program, tmp_path):
    """Return the first package of a program, as a folder."""
    for name, content in open_artifact(mixed_program[0]).bundles[0].files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return open_artifact(tmp_path / "model.mlpackage")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_package_gives_what_its_delegate_gives(mixed_program, package, policy):
    _, _, (x, _) = mixed_program
    assert package.methods == ("main",)
    method = get_runtime(f"mil:{policy}").load(package, "main")
    assert [spec.shape for spec in method.inputs] == [(2, 8)] * len(method.inputs)
    results = method(*(x for _ in method.inputs))
    assert len(results) == len(method.outputs) > 0
    assert all(result.isfinite().all() for result in results)


def test_a_package_refuses_a_wrong_call(package):
    method = get_runtime("mil").load(package, "main")
    with pytest.raises(HarnessError, match="function 'main': called with 0 inputs, it has"):
        method()
    with pytest.raises(HarnessError, match=r"has shape \[1\], not the declared \[2, 8\]"):
        method(*(torch.zeros(1) for _ in method.inputs))
    with pytest.raises(ArtifactError, match="no function 'prefill'; its functions: main"):
        get_runtime("mil").load(package, "prefill")


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_names_that_the_function_does_not_have_are_named_at_load(mixed_program, kind):
    delegate = open_artifact(mixed_program[0]).delegates["forward"][0]
    names = {"inputs": delegate.names.input_names, "outputs": delegate.names.output_names}
    names[kind] = ("twisted", *names[kind][1:])
    stand_in = SimpleNamespace(
        bundle=delegate.bundle,
        program_function="main",
        names=MethodMetadata(names["inputs"], names["outputs"]),
        where=delegate.where,
    )
    problem = f"method 'forward', delegate 0: the {kind} in metadata.json .* differ in .*twisted"
    with pytest.raises(ArtifactError, match=problem):
        get_runtime("mil")._delegate(stand_in)
