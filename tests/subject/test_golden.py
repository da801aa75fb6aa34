"""Golden files: what they hold, and what is said of bad ones; references that are no module."""

import json
import math
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from harness.artifact import open_artifact
from harness.checks import artifact_checks, run_check, value_checks
from harness.cli import main
from harness.errors import HarnessError
from harness.export.options import ExportOptions
from harness.golden import Call, Expected, golden_of_runtime
from harness.golden.eager import Reference
from harness.golden.files import read_golden, write_golden
from harness.golden.inputs import all_inputs
from harness.pte import same_shape
from harness.subject import Subject
from tests.subject import material


@pytest.fixture(scope="module")
def artifact(mixed_program):
    return open_artifact(mixed_program[0])


@pytest.fixture(scope="module")
def golden(artifact):
    return golden_of_runtime(artifact, "mil:double", all_inputs(artifact, 0))


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_file_gives_back_what_was_written(artifact, golden, tmp_path, ending):
    write_golden(tmp_path / f"golden.{ending}", golden)
    read = read_golden(tmp_path / f"golden.{ending}", artifact)
    assert read.keys() == golden.keys() and read["forward"].keys() == golden["forward"].keys()
    for name, calls in golden["forward"].items():
        for have, want in zip(read["forward"][name], calls, strict=True):
            assert all(map(torch.equal, have.inputs, want.inputs))
            assert have.expected.keys() == want.expected.keys() == {0, 1}
            assert all(
                torch.equal(have.expected[i].values[0], want.expected[i].values[0]) for i in (0, 1)
            )
            assert have.expected[0].rounding == want.expected[0].rounding


def test_a_users_file_needs_inputs_and_outputs_only(artifact, golden, tmp_path):
    (call,) = golden["forward"]["sequence0"]
    (x, y), output = call.inputs, call.expected[1].values[0]
    arrays = {"forward/0/in/x": x, "forward/0/in/y": y, "forward/0/out/1": output}
    np.savez(tmp_path / "mine.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    ((read,),) = read_golden(tmp_path / "mine.npz", artifact)["forward"].values()
    assert read.expected.keys() == {1} and read.expected[1].rounding is None


ONE = np.zeros((2, 8), np.float32)
INPUTS = {"forward/0.0/in/0": ONE, "forward/0.0/in/1": ONE}
BAD = {
    "no tensor": ({}, "holds no tensor"),
    "another name": ({"x": ONE}, "'x' is not named METHOD/SEQUENCE.STEP/in/INPUT"),
    "another step": ({"forward/0.one/in/0": ONE}, "is not named METHOD/SEQUENCE.STEP"),
    "another method": ({"encode/0.0/in/0": ONE}, "method 'encode' is not one of the artifact's"),
    "another input": ({"forward/0.0/in/z": ONE}, "input 'z' is not one of x, y"),
    "an input too few": (
        {"forward/0.0/in/0": ONE, "forward/0.0/out/0": ONE},
        "input 'y' is missing",
    ),
    "no output": (INPUTS, "holds no output to compare with"),
    "another output": (INPUTS | {"forward/0.0/out/2": ONE}, "output '2' is not one of"),
    "an object": (
        {"forward/0.0/in/0": np.array([ONE, None], object)},
        "holds a pickled object, which is never read",
    ),
    "text": ({"forward/0.0/in/0": np.array(["a"])}, "forward/0.0/in/0 is an array of text"),
    "an input of integers": (
        INPUTS | {"forward/0.0/in/1": ONE.astype(np.int64), "forward/0.0/out/1": ONE},
        "input 'y' is int64; the artifact takes float",
    ),
    "an input of another shape": (
        INPUTS | {"forward/0.0/in/1": ONE[:1], "forward/0.0/out/1": ONE},
        "input 'y' has shape [1, 8]; the artifact takes [2, 8]",
    ),
    "an input of NaN": (
        INPUTS | {"forward/0.0/in/1": ONE * np.nan, "forward/0.0/out/1": ONE},
        "input 'y' holds NaN",
    ),
    "a complex output": (
        INPUTS | {"forward/0.0/out/1": ONE.astype(np.complex64)},
        "is complex64; the artifact's is float",
    ),
    "an output of another shape": (
        INPUTS | {"forward/0.0/out/1": ONE[:1]},
        "has shape [1, 8]; the artifact's has [2, 8]",
    ),
    "an output of as many elements": (
        INPUTS | {"forward/0.0/out/1": ONE.reshape(1, 16)},
        "has shape [1, 16]; the artifact's has [2, 8]",
    ),
    "an output of NaN": (
        INPUTS | {"forward/0.0/out/1": ONE * np.nan},
        "forward/0.0/out/1: output '",
    ),
    "another value of infinity": (
        INPUTS | {"forward/0.0/out/1": ONE, "forward/0.0/or/1": ONE + np.inf},
        "holds NaN or infinity, and nothing can be compared",
    ),
    "another value far away": (
        INPUTS | {"forward/0.0/out/1": ONE + 1, "forward/0.0/or/1": ONE + 1.2},
        "forward/0.0/or/1 is off by 0.2 of the largest value of 'out'; 0.1 is allowed",
    ),
    "another value farther away than precision costs": (
        INPUTS
        | {"forward/0.0/out/1": ONE + 1, "forward/0.0/or/1": ONE + 1.005}
        | {"forward/0.0/rounding/1": np.array(0.001)},
        "is off by 0.005 of the largest value of 'out'; 0.002 is allowed",
    ),
    "several roundings": (
        INPUTS | {"forward/0.0/out/1": ONE, "forward/0.0/rounding/1": ONE},
        "forward/0.0/rounding/1 must be one real number",
    ),
} | {
    f"a rounding of {value}": (
        INPUTS | {"forward/0.0/out/1": ONE, "forward/0.0/rounding/1": np.array(value)},
        f"forward/0.0/rounding/1 is {value:g}; a number from 0 to 0.1 is needed",
    )
    for value in (1e9, -1.0, np.nan, np.inf)
}


MOVED = {
    "one element": lambda out: out.index_put((torch.tensor(0), torch.tensor(0)), out[0, 0] + 0.3),
    "all": lambda out: out + 50,
    "scaled": lambda out: out * 100,
    "by rounding": lambda out: out.half(),
}


@pytest.mark.parametrize("name", MOVED)
def test_only_rounding_may_move_the_other_value(artifact, golden, tmp_path, capsys, name):
    """A tolerance of twice the distance would let any output pass."""
    (call,) = golden["forward"]["sequence0"]
    moved = {
        index: Expected((one.values[0], MOVED[name](one.values[0]).float()), one.rounding)
        for index, one in call.expected.items()
    }
    changed = {"forward": {"sequence0": (Call(call.inputs, moved),)}}
    file = tmp_path / "golden.npz"
    if name == "by rounding":
        write_golden(file, changed)
        assert main(["check", str(artifact.path), "--golden", str(file)]) == 0
        return
    with pytest.raises(HarnessError, match="it must differ by the rounding of constants only"):
        write_golden(file, changed)
    write_golden(file, {"forward": {"sequence0": (call,)}})
    arrays = dict(np.load(file))
    arrays |= {f"forward/sequence0.0/or/{i}": one.values[1].numpy() for i, one in moved.items()}
    np.savez(file, **arrays)
    assert main(["check", str(artifact.path), "--golden", str(file)]) == 2
    assert "it must differ by the rounding of constants only" in capsys.readouterr().err


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence(artifact, tmp_path, case):
    arrays, problem = BAD[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(HarnessError, match="bad.npz") as caught:
        read_golden(tmp_path / "bad.npz", artifact)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_cost_of_precision_that_is_refused_is_not_written(artifact, tmp_path):
    call = Call((torch.zeros(2, 8),) * 2, {0: Expected((torch.zeros(2, 8),), math.inf)})
    with pytest.raises(HarnessError, match="rounding/0 is inf; a number from 0 to 0.1 is needed"):
        write_golden(tmp_path / "golden.npz", {"forward": {"sequence0": (call,)}})
    assert not list(tmp_path.iterdir())


def test_a_file_that_claims_too_much_is_refused_before_it_is_read(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.golden.files.MAX_FILE_BYTES", 100)
    np.savez_compressed(tmp_path / "bomb.npz", **{"forward/0.0/in/0": np.zeros(1 << 20)})
    with pytest.raises(HarnessError, match="have more than 100 bytes"):
        read_golden(tmp_path / "bomb.npz", artifact)


@pytest.mark.parametrize("content", [b"", b"junk" * 50, pickle.dumps([1])])
@pytest.mark.parametrize("name", ["bad.npz", "bad.safetensors"])
def test_what_is_no_such_file_is_refused(artifact, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HarnessError, match=name):
        read_golden(tmp_path / name, artifact)
    assert not zipfile.is_zipfile(tmp_path / name)


def test_an_export_of_a_language_model_that_has_lost_its_description_is_an_error(mixed_program):
    lost = Subject(mixed_program[0], options=ExportOptions())
    case = run_check(artifact_checks()["parity"], lost, "mil:widen", suite="test")
    assert case.outcome == "error" and "neither a constant 'forward_input_len'" in case.reason


def plain(x, y):
    """Compute what `mixed_program` does not."""
    return x - y, y


def returns_one(x, y):
    """Return one tensor, where the program has two."""
    return x


def returns_too_few_values(x, y):
    """Return outputs of another shape than the program's."""
    return x[:1], y[:1]


def returns_another_shape(x, y):
    """Return outputs of as many elements as the program's."""
    return x.flatten(), y.flatten()


def returns_nan(x, y):
    """Return outputs that nothing can be compared with."""
    return x * torch.nan, y


def returns_text(x, y):
    """Return what is not a tensor."""
    return "x"


def returns_a_module(x, y):
    """Make a module, but take arguments."""
    return torch.nn.Identity()


def makes_a_function():
    """Return a function that cannot take the inputs."""
    return lambda: torch.nn.Identity()


def exits():
    """Leave the process when the module is made."""
    raise SystemExit(0)


def exits_later(x, y):
    """Leave the process when the module is called."""
    raise SystemExit(0)


def raises(x, y):
    """Raise an error of the user's."""
    raise ZeroDivisionError("of mine")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tests.subject.test_golden:returns_one", "1 tensors; method 'forward' has 2 outputs"),
        ("tests.subject.test_golden:no_such", "cannot be loaded: AttributeError"),
        ("tests.subject.test_golden:ONE", "is a ndarray; give an nn.Module"),
        ("tests.subject.test_golden:BAD", "has no method 'forward', only "),
        ("tests.subject.test_golden:returns_too_few_values", "its output 0 has shape [1, 8]; the"),
        ("tests.subject.test_golden:returns_another_shape", "its output 0 has shape [16]; the"),
        ("tests.subject.test_golden:returns_nan", "its output 0 holds NaN or infinity"),
        ("tests.subject.test_golden:returns_text", "it returns no tensor but a str"),
        ("tests.subject.test_golden:returns_a_module", "no tensor but a Identity; a function that"),
        ("tests.subject.test_golden:makes_a_function", "takes 0 positional arguments"),
        ("tests.subject.test_golden:exits", "cannot be loaded: SystemExit: 0"),
        ("tests.subject.test_golden:exits_later", "fails for method 'forward': SystemExit: 0"),
        (
            "tests.subject.test_golden:raises",
            "fails for method 'forward': ZeroDivisionError: of mine",
        ),
    ],
)
def test_a_bad_reference_is_one_sentence(artifact, name, problem):
    with pytest.raises(HarnessError) as caught:
        Reference.imported(name).golden(artifact, all_inputs(artifact, 0))
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_function_that_takes_the_inputs_is_a_reference(artifact):
    golden = Reference.imported("tests.subject.test_golden:plain").golden(
        artifact, all_inputs(artifact, 0)
    )
    call = golden["forward"]["sequence0"][0]
    assert torch.equal(call.expected[0].values[0], call.inputs[0].double() - call.inputs[1])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((2, 8), (2, 8), True),
        ((), (1,), True),
        ((1, 8), (8,), False),
        ((1, 1), (1,), False),
        ((1, 8), (2, 4), False),
    ],
)
def test_only_a_scalar_has_two_shapes(one, other, same):
    assert same_shape(one, other) == same_shape(other, one) == same


NET = material.mlp()


def named(x):
    """Compute with a module among the file's own names."""
    return NET(x)


def closed():
    """Return a function that closes over its module."""
    net = material.mlp()
    return {"forward": lambda x: net(x)}


class Hidden:
    """Computes with a module that only its attribute holds."""

    def __init__(self):
        self.net = material.mlp()

    def __call__(self, x):
        """Call the module in the dtype of its weights."""
        return self.net(x.float())


hidden = {"forward": Hidden()}


@pytest.fixture(scope="module")
def perceptrons(tmp_path_factory):
    """Return a sound .pte in fp16, and one of which a weight is 0.1 too large."""
    folder = tmp_path_factory.mktemp("perceptrons")
    sound, broken = material.mlp(), material.mlp()
    broken[2].weight.data[0, 0] += 0.1
    return [
        material.write_pte(folder / f"{number}.pte", {"forward": module}, (torch.randn(2, 8),))
        for number, module in enumerate((sound, broken))
    ]


@pytest.mark.parametrize("name", ["named", "closed", "hidden"])
def test_a_function_around_a_module_is_a_reference(perceptrons, name):
    subjects = [Subject(path, reference=f"{__name__}:{name}") for path in perceptrons]
    check = value_checks()["outputs"]
    sound, broken = (run_check(check, one, "mil:widen", suite="test") for one in subjects)
    assert (sound.outcome, broken.outcome) == ("pass", "fail"), sound.reason
    is_measured = "a function, cannot be rounded" in broken.reason
    assert is_measured == (name == "hidden"), broken.reason
    if name != "hidden":  # its weights are rounded, as those of a module are
        assert "1e-05 is allowed" in broken.reason
        found = run_check(value_checks()["reference-weights"], subjects[1], suite="test")
        assert found.outcome == "fail" and "values of '" in found.reason


def talks():
    """Return a module that prints, as this function does, and as a program that it starts does."""
    print("making")
    subprocess.run(["echo", "of a child"], check=True)
    net = material.mlp()
    net.register_forward_pre_hook(lambda module, given: print("calling"))
    return net


def test_what_a_users_code_prints_is_not_among_the_results(perceptrons, capfd):
    words = [str(perceptrons[0]), "--reference", f"{__name__}:talks"]
    assert main(["check", *words, "--runtime", "mil:widen", "--json"]) == 0
    printed = capfd.readouterr()
    _, *cases, _ = map(json.loads, printed.out.splitlines())
    assert len(cases) > 1 and {"making", "of a child", "calling"} <= {*printed.err.splitlines()}
