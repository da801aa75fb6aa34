"""`combine_packages`, judged by coremltools' reader and `save_multifunction` and by execution."""

import errno
import itertools
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from harness.artifact import Package
from harness.artifact.facts import duplicate_bytes, sharing
from harness.artifact.proto import parse_specification
from harness.errors import ArtifactError, HarnessError
from harness.packages import combine_packages
from tests.mil.programs import run, save

RANDOM = np.random.default_rng(7)
SHARED = RANDOM.standard_normal((64, 64)).astype(np.float32)
OWN = RANDOM.standard_normal((64, 64)).astype(np.float32)
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHT = "Data/com.apple.CoreML/weights/weight.bin"


def two_layers(other, activation):
    """Return a program of two linear layers: SHARED, then `other`."""

    def build(mb, a):
        hidden = getattr(mb, activation)(x=mb.linear(x=a, weight=SHARED))
        return mb.linear(x=hidden, weight=other)

    return build


def branching(mb, a):
    """A program with weights in the blocks of a condition."""
    return mb.cond(
        pred=mb.greater(x=mb.reduce_sum(x=a), y=np.float32(0)),
        _true_fn=lambda: mb.matmul(x=a, y=SHARED),
        _false_fn=lambda: mb.matmul(x=a, y=OWN),
    )


@pytest.fixture(scope="module")
def prefill():
    return save(two_layers(OWN, "relu"), [(5, 64)])


@pytest.fixture(scope="module")
def decode():
    return save(two_layers(SHARED, "tanh"), [(1, 64)])


def path(package):
    return Path(package.what)


@pytest.fixture
def combined(prefill, decode, tmp_path):
    output = tmp_path / "both.mlpackage"
    parts = [(path(prefill), "main", "prefill"), (path(decode), "main", "decode")]
    combine_packages(parts, output, "decode")
    return output


def files(folder):
    return {
        name: p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
        for name in [p.relative_to(folder).as_posix()]
    }


def sample(rows):
    return np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)


def edited(package, folder, change):
    """Return a copy of a package whose specification `change` has edited."""
    copy = Path(shutil.copytree(path(package), folder / f"{len(list(folder.iterdir()))}.mlpackage"))
    model = parse_specification(memoryview((copy / MODEL).read_bytes()), "here")
    change(model)
    (copy / MODEL).write_bytes(model.SerializeToString())
    return copy


def test_every_function_computes_what_its_part_does(combined, prefill, decode):
    package = Package.from_folder(combined)
    assert sorted(package.functions) == ["decode", "prefill"]
    for name, part, rows in (("prefill", prefill, 5), ("decode", decode, 1)):
        (expected,) = run(part, sample(rows))
        (result,) = run(package, sample(rows), function=name)
        np.testing.assert_array_equal(result, expected)


def test_coremltools_opens_it_and_reads_the_parts_weights(combined):
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(combined), skip_model_load=True)
    spec = model.get_spec()
    assert spec.specificationVersion == 9
    assert spec.description.defaultFunctionName == "decode"
    program = load(spec, spec.specificationVersion, model.weights_dir)
    assert set(program.functions) == {"prefill", "decode"}
    for name, second in (("prefill", OWN), ("decode", SHARED)):
        layers = program.functions[name].find_ops(op_type="linear")
        for layer, weight in zip(layers, (SHARED, second), strict=True):
            np.testing.assert_array_equal(layer.weight.val, weight)


def test_it_describes_functions_as_save_multifunction_does(combined, prefill, decode, tmp_path):
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    descriptor.add_function(prefill.what, "main", "prefill")
    descriptor.add_function(decode.what, "main", "decode")
    descriptor.default_function_name = "decode"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "theirs.mlpackage"))
    theirs = Package.from_folder(tmp_path / "theirs.mlpackage")
    ours = Package.from_folder(combined)
    for field in ("functions", "defaultFunctionName", "input", "output", "state"):
        assert getattr(ours.model.description, field) == getattr(theirs.model.description, field)
    assert sharing(ours) == sharing(theirs)
    assert len(files(combined)[WEIGHT]) == len(theirs.files[WEIGHT])


def test_equal_weights_are_stored_once(combined):
    package = Package.from_folder(combined)
    matrix, bias = SHARED.nbytes, 64 * 4
    # both functions hold SHARED; decode holds it twice, and then refers to one place
    assert sharing(package).stored == 2 * matrix + bias
    assert sharing(package).shared == matrix + bias
    assert duplicate_bytes(package) == 0


def test_equal_bytes_of_another_dtype_stay_apart(tmp_path):
    ints = save(
        lambda mb, a: mb.add(x=a, y=np.zeros((64, 64), np.int32)), [(64, 64)], dtype="int32"
    )
    floats = save(lambda mb, a: mb.add(x=a, y=np.zeros((64, 64), np.float32)), [(64, 64)])
    output = tmp_path / "c.mlpackage"
    combine_packages([(path(ints), "main", "i"), (path(floats), "main", "f")], output)
    package = Package.from_folder(output)
    kinds = {
        name: {package.blob(*reference).dtype for reference in package.weights(name)}
        for name in package.functions
    }
    assert kinds == {"i": {"INT32"}, "f": {"FLOAT32"}}


def test_weights_in_nested_blocks_are_moved(prefill, tmp_path):
    nested = save(branching, [(3, 64)])
    output = tmp_path / "c.mlpackage"
    combine_packages([(path(prefill), "main", "p"), (path(nested), "main", "n")], output)
    package = Package.from_folder(output)
    for values in (sample(3), np.abs(sample(3)), -np.abs(sample(3))):
        np.testing.assert_array_equal(run(package, values, function="n")[0], run(nested, values)[0])


def test_a_weight_that_is_an_operations_input_is_moved(decode, prefill, tmp_path):
    def inline(model):
        block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
        constants = {op.outputs[0].name: op for op in block.operations if op.type == "const"}
        for op in block.operations:
            for argument in op.inputs.values():
                for binding in argument.arguments:
                    if binding.name in constants:
                        binding.value.CopyFrom(constants[binding.name].attributes["val"])

    changed = edited(decode, tmp_path, inline)
    output = tmp_path / "c.mlpackage"
    combine_packages([(path(prefill), "main", "p"), (changed, "main", "d")], output)
    result = run(Package.from_folder(output), sample(1), function="d")
    np.testing.assert_array_equal(result[0], run(decode, sample(1))[0])


def test_functions_of_a_combined_package_combine_again(combined, prefill, tmp_path):
    output = tmp_path / "again.mlpackage"
    parts = [
        (combined, "decode", "one"),
        (combined, "prefill", "two"),
        (path(prefill), "main", "x"),
    ]
    combine_packages(parts, output)
    package = Package.from_folder(output)
    (expected,) = run(prefill, sample(5))
    for name in ("two", "x"):
        np.testing.assert_array_equal(run(package, sample(5), function=name)[0], expected)
    assert sharing(package).stored == sharing(Package.from_folder(combined)).stored
    assert package.model.description.defaultFunctionName == "one"


def test_the_weight_file_is_what_coremltools_writes(tmp_path):
    """Sizes are not multiples of 64 and all contents differ, so the files must be equal."""

    def build(mb, a):
        first, second = RANDOM.standard_normal((2, 33, 64)).astype(np.float32)
        hidden = mb.linear(x=a, weight=first, bias=second[0, :33])
        return mb.linear(x=hidden, weight=second[:21, :33], bias=second[1, :21])

    package = save(build, [(2, 64)])
    output = tmp_path / "c.mlpackage"
    combine_packages([(path(package), "main", "main")], output)
    assert files(output)[WEIGHT] == bytes(package.files[WEIGHT])


def test_the_same_parts_give_the_same_bytes(combined, prefill, decode, tmp_path):
    again = tmp_path / "elsewhere" / "both.mlpackage"
    again.parent.mkdir()
    copies = [
        Path(shutil.copytree(path(p), again.parent / p.what.rsplit("/")[-1]))
        for p in (prefill, decode)
    ]
    combine_packages(
        [(copies[0], "main", "prefill"), (copies[1], "main", "decode")], again, "decode"
    )
    assert files(again) == files(combined)


def test_other_weights_give_other_identifiers(prefill, decode, tmp_path):
    for number, part in enumerate((prefill, decode)):
        combine_packages([(path(part), "main", "f")], tmp_path / f"{number}.mlpackage")
    manifests = {(tmp_path / f"{n}.mlpackage/Manifest.json").read_text() for n in range(2)}
    assert len(manifests) == 2


def test_a_state_and_a_package_without_weights(tmp_path):
    import coremltools as ct
    import torch

    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1, 4))

        def forward(self, x):
            self.seen.add_(x)
            return self.seen * 1.0

    model = ct.convert(
        torch.jit.trace(Counter(), torch.ones(1, 4), check_trace=False),  # a state counts calls
        inputs=[ct.TensorType("x", (1, 4))],
        outputs=[ct.TensorType("y")],
        states=[ct.StateType(ct.TensorType(shape=(1, 4)), name="seen")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "state.mlpackage"))
    plain = save(lambda mb, a: mb.relu(x=a), [(2, 3)])
    output = tmp_path / "c.mlpackage"
    combine_packages(
        [(tmp_path / "state.mlpackage", "main", "s"), (path(plain), "main", "p")], output
    )
    described = {f.name: f for f in Package.from_folder(output).model.description.functions}
    assert [state.name for state in described["s"].state] == ["seen"]
    assert len(described["p"].state) == 0
    (result,) = run(Package.from_folder(output), np.float32([[-1, 0, 2]] * 2), function="p")
    np.testing.assert_array_equal(result, [[0, 0, 2]] * 2)
    ct.models.MLModel(str(output), skip_model_load=True).get_spec()


def test_an_older_opset_keeps_its_meaning(decode, tmp_path):
    old = save(lambda mb, a: mb.linear(x=a, weight=OWN), [(2, 64)], target="iOS15")
    output = tmp_path / "c.mlpackage"
    combine_packages([(path(old), "main", "old"), (path(decode), "main", "new")], output)
    package = Package.from_folder(output)
    assert {n: f.opset for n, f in package.functions.items()} == {
        "old": "CoreML5",
        "new": "CoreML8",
    }
    assert package.model.specificationVersion == 9
    (result,) = run(package, sample(2), function="old")
    np.testing.assert_array_equal(result, run(old, sample(2))[0])


def test_metadata_is_kept_where_the_packages_agree(prefill, decode, tmp_path):
    def sign(author, note):
        def change(model):
            model.description.metadata.author = author
            model.description.metadata.license = "MIT"
            model.description.metadata.userDefined["note"] = note

        return change

    parts = [
        (edited(prefill, tmp_path, sign("A", "same")), "main", "p"),
        (edited(decode, tmp_path, sign("B", "same")), "main", "d"),
    ]
    made = combine_packages(parts, tmp_path / "c.mlpackage")
    metadata = Package.from_folder(tmp_path / "c.mlpackage").model.description.metadata
    assert (metadata.license, metadata.userDefined["note"]) == ("MIT", "same")
    assert metadata.author == "" and made.left_out == ("author",)


def refused(parts, output, problem, **options):
    """The call is refused and leaves no file behind."""
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(HarnessError, match=problem) as caught:
        combine_packages(parts, output, **options)
    assert "\n" not in str(caught.value)
    assert sorted(output.parent.rglob("*")) == before


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "c.mlpackage"


def test_names_that_collide_are_refused(prefill, decode, place):
    parts = [(path(prefill), "main", "main"), (path(decode), "main", "main")]
    refused(parts, place, "both become the function 'main'")


@pytest.mark.parametrize("name", ["", "a b", "1st", "a-b", "../x", "a\n", "fü"])
def test_a_name_that_no_function_can_have_is_refused(prefill, place, name):
    refused([(path(prefill), "main", name)], place, "cannot name a function")


def test_a_missing_function_or_package_is_refused(prefill, place):
    refused([], place, "nothing to combine")
    refused([(path(prefill), "other", "x")], place, "no function 'other'; its functions: main")
    refused([(place.parent / "no.mlpackage", "main", "x")], place, "no such folder")
    refused([(path(prefill), "main", "x")], place, "default function 'y'", default_function="y")
    refused([(path(prefill), "main", "x")], place.with_suffix(".pte"), "must end in .mlpackage")


def weight_offset(model, offset):
    for op in model.mlProgram.functions["main"].block_specializations["CoreML8"].operations:
        if op.attributes["val"].WhichOneof("value") == "blobFileValue":
            op.attributes["val"].blobFileValue.offset = offset


CHANGES = {
    "no weight at offset 100": lambda m: weight_offset(m, 100),
    "claims bytes": lambda m: weight_offset(m, 1 << 60),
    "described 0 times": lambda m: m.description.functions.add(name="other"),
    "updatable": lambda m: setattr(m, "isUpdatable", True),
    "no block for its opset": lambda m: setattr(m.mlProgram.functions["main"], "opset", "CoreML6"),
}


@pytest.mark.parametrize("problem", CHANGES)
def test_a_broken_part_is_refused(prefill, decode, place, tmp_path, problem):
    broken = edited(decode, tmp_path, CHANGES[problem])
    refused([(path(prefill), "main", "p"), (broken, "main", "d")], place, problem)


def test_programs_of_two_versions_are_refused(prefill, decode, place, tmp_path):
    other = edited(decode, tmp_path, lambda m: setattr(m.mlProgram, "version", 2))
    refused([(path(prefill), "main", "p"), (other, "main", "d")], place, "of versions 1 .*, 2 ")


def test_weights_that_overlap_cannot_fill_the_disk(decode, place, tmp_path):
    """If each entry claimed nearly the whole file, the output would grow with their square."""
    count, size = 300, 1 << 16
    copy = edited(decode, tmp_path, lambda m: repeat_weight(m, count))
    blob = bytearray(np.random.default_rng(0).bytes(64 * (count + 1) + size))
    blob[:64] = struct.pack("<II", count, 2).ljust(64, b"\0")
    for index in range(count):
        entry = struct.pack("<IIQQQ", 0xDEADBEEF, 2, size - 64 * index, 64 * (count + 1), 0)
        blob[64 * (index + 1) : 64 * (index + 2)] = entry.ljust(64, b"\0")
    (copy / WEIGHT).write_bytes(blob)
    refused([(copy, "main", "d")], place, "its weights overlap")


def repeat_weight(model, count):
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    constant = next(op for op in block.operations if op.type == "const")
    for index in range(1, count + 1):
        copy = block.operations.add()
        copy.CopyFrom(constant)
        copy.attributes["val"].blobFileValue.offset = 64 * index


def test_an_existing_package_is_replaced_only_when_asked(combined, prefill):
    parts = [(path(prefill), "main", "only")]
    refused(parts, combined, "exists; name another, or give --force")
    combine_packages(parts, combined, replace=True)
    assert sorted(Package.from_folder(combined).functions) == ["only"]
    assert [p.name for p in combined.parent.iterdir()] == [combined.name]


def test_a_package_may_be_replaced_by_its_own_combination(combined, prefill):
    (expected,) = run(prefill, sample(5))
    combine_packages([(combined, "prefill", "only")], combined, replace=True)
    (result,) = run(Package.from_folder(combined), sample(5), function="only")
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_that_is_not_a_package_is_never_replaced(prefill, place, kind):
    if kind == "folder":
        place.mkdir()
        (place / "mine.txt").write_text("x")
    else:
        place.write_text("x")
    refused([(path(prefill), "main", "x")], place, "not a folder of this kind", replace=True)


def test_a_missing_folder_is_reported(prefill, tmp_path):
    with pytest.raises(HarnessError, match="cannot write into .*nowhere: No such file"):
        combine_packages([(path(prefill), "main", "x")], tmp_path / "nowhere" / "c.mlpackage")


def test_a_full_disk_is_reported_and_leaves_nothing(prefill, place, monkeypatch):
    from harness.artifact.blob import WeightFile

    def full(self, blob):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WeightFile, "_append", full)
    refused([(path(prefill), "main", "x")], place, "cannot be written .No space left on device")


@pytest.mark.parametrize("moment", range(6))
def test_an_interrupted_call_leaves_nothing(prefill, decode, place, monkeypatch, moment):
    from harness.artifact.blob import WeightFile

    calls, append = itertools.count(), WeightFile._append

    def interrupted(self, blob):
        if next(calls) == moment:
            raise KeyboardInterrupt
        return append(self, blob)

    monkeypatch.setattr(WeightFile, "_append", interrupted)
    parts = [(path(prefill), "main", "p"), (path(decode), "main", "d")]
    if moment < 3:
        with pytest.raises(KeyboardInterrupt):
            combine_packages(parts, place)
        assert list(place.parent.iterdir()) == []
    else:  # only three weights differ
        combine_packages(parts, place)
        assert [p.name for p in place.parent.iterdir()] == [place.name]


def test_a_folder_under_construction_is_not_a_package(prefill, decode, place, monkeypatch):
    """A killed process leaves a folder without a manifest, which is written last."""
    import harness.packages as module

    def killed(folder, digest):
        with pytest.raises(ArtifactError, match=r"no Manifest.json"):
            Package.from_folder(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        combine_packages([(path(prefill), "main", "p")], place)
