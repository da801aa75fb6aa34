"""Loading and executing, through `executorch.runtime` and the modules under it."""

import io

import pytest
import torch
from conftest import Affine, X, Y, delegated, is_ours, load, portable
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime

from harness.shim import executorch
from harness.shim.executorch import MethodProxy


def close(actual, desired):
    return torch.testing.assert_close(list(actual), list(desired), rtol=1e-5, atol=1e-6)


def test_the_backend_is_there_beside_those_of_the_runtime():
    registry = Runtime.get().backend_registry
    assert registry.registered_backend_names[-1] == "CoreMLBackend"
    assert "XnnpackBackend" in registry.registered_backend_names[:-1]
    assert registry.is_available("CoreMLBackend")
    assert not registry.is_available("NoSuchBackend")
    assert len(Runtime.get().operator_registry.operator_names) > 100


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "file", "path", "str"])
def test_a_program_is_loaded_from_whatever_the_runtime_takes(affine, tmp_path, kind):
    data, path = affine[0], tmp_path / "affine.pte"
    path.write_bytes(data)
    given = {
        "bytes": data,
        "bytearray": bytearray(data),
        "file": io.BytesIO(data),
        "path": path,
        "str": str(path),
    }
    method = load(given[kind])
    assert is_ours(method)
    close(method.execute((X, Y)), Affine()(X, Y))


def test_methods_without_a_delegate_are_the_runtimes_own(affine):
    program = Runtime.get().load_program(affine[0])
    assert program.method_names == {"forward", "answer", "name"}
    for name, value in {"answer": 42, "name": "affine"}.items():
        method = program.load_method(name)
        assert not is_ours(method) and method.execute(()) == [value]


def test_a_program_without_a_delegate_is_the_runtimes_own(affine):
    program = Runtime.get().load_program(affine[1])
    assert type(program._program) is portable_lib.ExecuTorchProgram
    close(program.load_method("forward").execute((X, Y)), Affine()(X, Y))


def test_metadata_is_what_the_runtime_tells(affine):
    ours, theirs = (Runtime.get().load_program(data) for data in affine)
    assert repr(ours.metadata("forward")) == repr(theirs.metadata("forward"))
    assert repr(ours.load_method("forward").metadata) == repr(theirs.metadata("forward"))
    assert ours.metadata("forward").input_tensor_meta(0).sizes() == (2, 3)


def test_delegates_and_kernels_take_turns():
    class Turns(torch.nn.Module):
        def forward(self, x, y):
            return torch.sinh(x + y) * y, 7, None, x

    data = delegated(Turns(), (X, Y), skip=["aten.sinh.default"])
    product, seven, none, x = load(data).execute((X, Y))
    close([product, x], [torch.sinh(X + Y) * Y, X])
    assert (seven, none) == (7, None)


def test_results_have_the_declared_dtypes():
    class Dtypes(torch.nn.Module):
        def forward(self, x, n):
            return x.half() * 2, n + 1, x > 1, n.to(torch.int32)

    n = torch.tensor([5, 6])
    ours, theirs = (load(make(Dtypes(), (X, n))) for make in (delegated, portable))
    assert is_ours(ours) and not is_ours(theirs)
    results, expected = ours.execute((X, n)), theirs.execute((X, n))
    assert [r.dtype for r in results] == [torch.float16, torch.int64, torch.bool, torch.int32]
    assert all(map(torch.equal, results, expected))


def test_results_are_the_callers_to_change(affine):
    method = load(affine[0])
    x, y = X.clone(), Y.clone()
    first = method.execute((x, y))
    kept = [result.clone() for result in first]
    for result in first:
        result.fill_(9)
    close(method.execute((x, y)), kept)
    assert torch.equal(x, X) and torch.equal(y, Y)


def test_inputs_that_need_a_gradient_and_channels_last_are_taken():
    class Double(torch.nn.Module):
        def forward(self, x):
            return x * 2

    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    method = load(delegated(Double(), (x,)))
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    (result,) = method.execute(last)
    assert torch.equal(result, x * 2) and not result.requires_grad


@pytest.mark.parametrize("policy", ["strict", "widen"])
def test_the_environment_says_how_half_precision_is_carried(monkeypatch, policy):
    class Third(torch.nn.Module):
        def forward(self, x):
            return x * (1 / 3) - x

    monkeypatch.setenv("HARNESS_POLICY", policy)
    (result,) = load(delegated(Third(), (X,), precision="FLOAT16")).execute((X,))
    half = X.half() * torch.tensor(1 / 3).half() - X.half()
    assert torch.equal(result, half.float()) == (policy == "strict")
    torch.testing.assert_close(result, half.float(), rtol=2e-3, atol=2e-3)


def test_outputs_that_are_not_finite_are_reported_once_each(capfd):
    class Root(torch.nn.Module):
        def forward(self, x):
            return x.sqrt(), (-100 * x).exp(), x * 2

    method = load(delegated(Root(), (X + 1,)))
    method.execute((X + 1,))
    assert "NaN" not in capfd.readouterr().err
    for given in (X - 1, X):  # [-1, 0, 1, ...], then [0, 1, 2, ...]
        method.execute((given,))
    first, second, *more = capfd.readouterr().err.splitlines()
    assert more == []
    sentence = "method 'forward': 1 of 6 numbers of output '{}' [2, 3] are NaN or infinite, the"
    assert sentence.format(0) in first and "first at [0, 0]" in first
    assert sentence.format(1) in second and "first at [0, 0]" in second


def test_a_module_of_the_pybindings_runs_by_name_alone_and_again(affine, tmp_path):
    path = tmp_path / "affine.pte"
    path.write_bytes(affine[0])
    modules = (
        portable_lib._load_for_executorch(str(path)),
        portable_lib._load_for_executorch(program_path=str(path)),
        portable_lib._load_for_executorch_from_buffer(affine[0]),
    )
    for module in modules:
        assert set(module.method_names()) == {"forward", "answer", "name"}
        assert module.method_meta("forward").num_inputs() == 2
        assert module.run_method("answer") == [42] == module.plan_execute("answer")
        close(module.run_method("forward", (X, Y)), Affine()(X, Y))
        close(module.forward((Y, X)), Affine()(Y, X))
        close(module((X, X)), Affine()(X, X))
        close(module.plan_execute("forward"), Affine()(X, X))


def test_a_module_without_a_delegate_is_the_runtimes_own(affine):
    module = portable_lib._load_for_executorch_from_buffer(affine[1])
    assert type(module) is portable_lib.ExecuTorchModule


def test_a_method_is_driven_step_by_step(affine):
    method = load(affine[0])._method
    assert isinstance(method, MethodProxy)
    method.set_inputs((X, Y))
    method.execute()
    close(method.get_outputs(), Affine()(X, Y))
    close(method.get_outputs(clone_outputs=False), Affine()(X, Y))


def test_a_program_that_only_the_runtime_can_read(affine, monkeypatch):
    def unreadable(data, what):
        raise executorch.ArtifactError(f"{what}: of a later version")

    monkeypatch.setattr(executorch, "parse_pte", unreadable)
    close(load(affine[1]).execute((X, Y)), Affine()(X, Y))
    with pytest.raises(RuntimeError, match="^Failed to load program: .* of a later version"):
        load(affine[0])
