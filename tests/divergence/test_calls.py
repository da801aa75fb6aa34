"""Bisects artifacts that are not language models: one call, with given or seeded tensors."""

import json
import shutil

import numpy as np
import pytest
import torch
from coremltools.proto.Model_pb2 import Model
from safetensors.torch import save_file

from harness.artifact import open_artifact
from harness.cli import main
from harness.runtimes import get_runtime
from harness.suites.conformance.subjects import Subjects
from tests.mil.programs import save


def norm(mb, a):
    mean = mb.reduce_mean(x=mb.mul(x=a, y=a), axes=[-1], keep_dims=True)
    return mb.mul(x=a, y=mb.rsqrt(x=mb.add(x=mean, y=np.float16(1e-3))))


def path_of(build, shapes, **kinds):
    return save(build, shapes, **kinds).what


@pytest.fixture(scope="module")
def package():
    return path_of(norm, [(2, 16)], dtype="fp16")


def tensors(folder, **given):
    save_file({name: torch.tensor(value) for name, value in given.items()}, folder / "in.st")
    return str(folder / "in.st")


def rows(largest):
    return np.linspace(-largest, largest, 32, dtype=np.float32).reshape(2, 16)


def test_seeded_inputs_leave_nothing_in_a_norm(package, capsys):
    assert main(["bisect", package]) == 0
    out = capsys.readouterr().out
    assert "strict against double: 5 operations in 1 call" in out
    assert out.splitlines()[-1] == "PASSED: no operation is at fault"


def test_given_tensors_show_the_square_that_leaves_fp16(package, tmp_path, capsys):
    large = tensors(tmp_path, a=rows(300))
    assert main(["bisect", package, "--inputs", large, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["model"] is None
    first = found["precision"]["found"][0]
    assert first["operation"] == "mul" and "infinity" in first["reason"]
    assert first["place"] == {"method": "main", "delegate": None, "function": "main"}
    assert main(["bisect", package, "--inputs", large]) == 1
    out = capsys.readouterr().out
    assert "function 'main': mul" in out
    assert out.splitlines()[-1].startswith("FAILED: under strict, ")
    assert main(["bisect", package, "--inputs", large, "--policy", "widen"]) == 0


def test_ranges_of_given_tensors(package, tmp_path, capsys):
    large, small = tensors(tmp_path, a=rows(300)), tmp_path / "small"
    assert main(["bisect", package, "--ranges", "--json", "--inputs", large]) == 1
    worst = json.loads(capsys.readouterr().out)[0]
    assert worst["operation"] == "mul" and worst["peak"] == 90000
    small.mkdir()
    assert main(["bisect", package, "--ranges", "--inputs", tensors(small, a=rows(20))]) == 0


def test_a_program_for_its_own_inputs(tmp_path):
    subject = Subjects(lambda stage: None).get("tiny", "single")
    method = get_runtime("mil:widen").load(subject.artifact, "forward")
    given = {
        spec.name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype))
        for spec in method.inputs
    }
    save_file(given, tmp_path / "in.st")
    assert main(["bisect", str(subject.artifact.path), "--inputs", str(tmp_path / "in.st")]) == 0


def test_integers_and_booleans_are_seeded_too(capsys):
    def build(mb, a, b, c):
        table = np.ones((2, 8), np.float16)
        return mb.select(cond=c, a=mb.gather(x=table, indices=b), b=a)

    package = path_of(build, [(3, 8), (3,), (3, 8)], dtypes=["fp16", "int32", "bool"])
    assert main(["bisect", package]) == 0
    assert "3 operations in 1 call" in capsys.readouterr().out


def test_a_state_starts_at_zero_in_each_call(tmp_path, capsys):
    import coremltools as ct

    class Adds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x):
            self.total.add_(x)
            return self.total * self.total

    model = ct.convert(
        torch.jit.trace(Adds().eval(), torch.ones(4), check_trace=False),  # a state adds up calls
        inputs=[ct.TensorType("x", (4,), dtype=np.float16)],
        outputs=[ct.TensorType("y")],
        states=[ct.StateType(ct.TensorType(shape=(4,), dtype=np.float16), name="total")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "state.mlpackage"))
    package = str(tmp_path / "state.mlpackage")
    assert main(["bisect", package, "--inputs", tensors(tmp_path, x=np.full(4, 200.0))]) == 0
    assert main(["bisect", package, "--inputs", tensors(tmp_path, x=np.full(4, 300.0))]) == 1
    assert "infinity" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, said",
    [
        ({"b": rows(1)}, "no tensor is given for 'a'; its inputs are a"),
        ({"a": rows(1), "b": rows(1)}, "has no input 'b'; its inputs are a"),
        ({"a": rows(1)[:1]}, "input 'a' has shape [1, 16], not the declared [2, 16]"),
    ],
)
def test_tensors_that_are_not_its_inputs_are_refused(package, tmp_path, capsys, given, said):
    assert main(["bisect", package, "--inputs", tensors(tmp_path, **given)]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_be_called_is_refused(package, tmp_path, capsys):
    def refused(*arguments):
        assert main(["bisect", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    tiny = Subjects(lambda stage: None).get("tiny", "single")
    pair = ("--checkpoint", tiny.checkpoint, "--params", tiny.params)
    assert "input 'a' (float16 [2, 16]) has no role in one" in refused(package, *pair)
    assert "no function 'x'; there are main" in refused(package, "--function", "x")
    assert "in.st" in refused(package, "--inputs", tmp_path / "in.st")
    (tmp_path / "in.st").write_bytes(b"nothing")
    assert "reads without executing code" in refused(package, "--inputs", tmp_path / "in.st")


def test_a_flexible_shape_is_called_at_its_largest(tmp_path, capsys):
    import coremltools as ct

    class Square(torch.nn.Module):
        def forward(self, x):
            return x * x

    model = ct.convert(
        torch.jit.trace(Square(), torch.ones(2, 4)),
        inputs=[ct.TensorType("x", (ct.RangeDim(1, 8, default=2), 4), dtype=np.float16)],
        outputs=[ct.TensorType("y")],
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "flexible.mlpackage"))
    package = str(tmp_path / "flexible.mlpackage")
    assert main(["bisect", package]) == 0
    assert "in 1 call" in capsys.readouterr().out
    assert main(["bisect", package, "--inputs", tensors(tmp_path, x=rows(3)[:, :4])]) == 0
    assert open_artifact(package).methods == ("main",)


def test_what_is_nan_in_both_policies_is_no_divergence(tmp_path, capsys):
    package = path_of(lambda mb, a: mb.log(x=a), [(4, 8)])
    assert main(["bisect", package]) == 0  # of negative numbers too
    assert "1 operation in 1 call" in capsys.readouterr().out
    nothing = tensors(tmp_path, a=np.full((4, 8), -1, np.float32))
    assert main(["bisect", package, "--inputs", nothing]) == 2
    assert "no operation of it was executed" in capsys.readouterr().err


def test_operations_on_lists_are_not_judged(capsys):
    def build(mb, a):
        held = mb.make_list(init_length=2, elem_shape=(8,), dtype="fp32")
        held = mb.list_write(ls=held, index=np.int32(0), value=mb.square(x=a))
        return mb.list_gather(ls=held, indices=np.int32([0]))

    assert main(["bisect", path_of(build, [(8,)], target="iOS15"), "--json"]) == 0
    precision = json.loads(capsys.readouterr().out)["precision"]
    assert (precision["judged"], precision["skipped"]) == (1, 1)


def test_where_rounding_decides_a_shape_each_operation_is_judged_on_one_input(tmp_path, capsys):
    def build(mb, a):
        return mb.non_zero(x=mb.greater(x=mb.mul(x=a, y=np.float16(1.001)), y=np.float16(1)))

    package = path_of(build, [(4096,)], dtype="fp16")
    near = tensors(tmp_path, a=np.linspace(0.99, 1.01, 4096, dtype=np.float32))
    assert main(["bisect", package, "--inputs", near]) == 0  # `mul` rounds as it may
    assert "3 operations in 1 call" in capsys.readouterr().out


def test_a_declared_size_that_no_package_of_its_size_has_is_refused(tmp_path, capsys):
    source = open_artifact(path_of(norm, [(2, 16)], dtype="fp16")).path
    folder = shutil.copytree(source, tmp_path / "huge.mlpackage")
    (spec,) = folder.rglob("*.mlmodel")
    model = Model()
    model.ParseFromString(spec.read_bytes())
    function = model.mlProgram.functions["main"]
    function.inputs[0].type.tensorType.dimensions[0].constant.size = 1 << 45
    spec.write_bytes(model.SerializeToString())
    assert main(["bisect", str(folder)]) == 2
    assert "input 'a' is declared with over 67108864 elements" in capsys.readouterr().err


OTHER_KINDS = {
    "sparse": lambda ones: ones.to_sparse(),
    "complex": lambda ones: ones.to(torch.complex64),
    "quantized": lambda ones: torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
    "meta": lambda ones: ones.to("meta"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_tensors_of_other_kinds_are_refused(package, tmp_path, capsys, kind):
    torch.save({"a": OTHER_KINDS[kind](torch.ones(2, 16))}, tmp_path / "in.pt")
    assert main(["bisect", package, "--inputs", str(tmp_path / "in.pt")]) == 2
    assert "must be a dense tensor of real numbers" in capsys.readouterr().err


def test_tensors_of_one_method_need_to_know_which(tmp_path, capsys):
    path = str(Subjects(lambda stage: None).get("tiny", "multifunction").artifact.path)
    assert main(["bisect", path, "--inputs", tensors(tmp_path, a=[1.0])]) == 2
    assert "choose it with --method: " in capsys.readouterr().err
