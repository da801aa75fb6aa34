"""Bisecting what is no language model: one call, with given tensors or with seeded ones."""

import json

import numpy as np
import pytest
import torch
from programs import save
from safetensors.torch import save_file

from harness.artifact import open_artifact
from harness.cli import main
from harness.runtimes import get_runtime
from suites.conformance.subjects import Subjects


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
    assert "strict against double: 5 operations in 1 calls" in capsys.readouterr().out


def test_given_tensors_show_the_square_that_leaves_fp16(package, tmp_path, capsys):
    large = tensors(tmp_path, a=rows(300))
    assert main(["bisect", package, "--inputs", large, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["model"] is None
    first = found["precision"]["found"][0]
    assert first["operation"] == "mul" and "infinity" in first["reason"]
    assert first["place"] == {"method": "main", "delegate": None, "function": "main"}
    assert main(["bisect", package, "--inputs", large]) == 1
    assert "function 'main': mul" in capsys.readouterr().out
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
    assert "3 operations in 1 calls" in capsys.readouterr().out


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
        torch.jit.trace(Adds().eval(), torch.ones(4)),
        inputs=[ct.TensorType("x", (4,), dtype=np.float16)],
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
        ({"a": rows(1)[:1]}, "input 'a' has shape [1, 16], declared is [2, 16]"),
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
    assert "leave out --checkpoint, or --inputs" in refused(package, *pair)
    assert "no function 'x'; there are main" in refused(package, "--function", "x")
    assert "in.st" in refused(package, "--inputs", tmp_path / "in.st")
    (tmp_path / "in.st").write_bytes(b"nothing")
    assert "loads without executing code" in refused(package, "--inputs", tmp_path / "in.st")


def test_a_flexible_shape_needs_tensors(tmp_path, capsys):
    import coremltools as ct

    class Square(torch.nn.Module):
        def forward(self, x):
            return x * x

    model = ct.convert(
        torch.jit.trace(Square(), torch.ones(2, 4)),
        inputs=[ct.TensorType("x", (ct.RangeDim(1, 8, default=2), 4), dtype=np.float16)],
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "flexible.mlpackage"))
    package = str(tmp_path / "flexible.mlpackage")
    assert main(["bisect", package]) == 2
    assert "'x' has a flexible shape: give tensors with --inputs" in capsys.readouterr().err
    assert main(["bisect", package, "--inputs", tensors(tmp_path, x=rows(3)[:, :4])]) == 0
    assert open_artifact(package).methods == ("main",)
