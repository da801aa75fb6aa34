"""What sharing saves and could save, against sums over the checkpoint's tensors and the files."""

import json
import math
import shutil
import struct

import pytest

from harness.artifact import open_artifact
from harness.artifact.exported import PROGRAM
from harness.artifact.facts import storage
from harness.checks import artifact_checks, run_check
from harness.cli import main
from harness.fixtures.small_llama import PARAMS, export_small, write_model
from harness.models.config import parse_params
from harness.subject import Subject

FLOATS = {"linear_quantize": "none", "embedding_quantize": None}
SHAPES = parse_params(PARAMS).weight_shapes
ALL = sum(2 * math.prod(shape) for shape in SHAPES.values())  # bytes in fp16
TABLE = 2 * math.prod(SHAPES["output.weight"])
MODEL = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Return a function that makes the export of some options once."""
    made = {}

    def get(tied=False, **options):
        key = str((tied, options))
        if key not in made:
            model = tmp_path_factory.mktemp("model")
            write_model(model, tied)
            made[key] = export_small(model, model / "out", **FLOATS, **options)
        return made[key]

    return get


@pytest.fixture
def copied(exports, tmp_path):
    """Return a function that copies an export, to be edited."""
    return lambda **options: shutil.copytree(exports(**options), tmp_path / "copy")


def found(folder):
    """Return the facts that are not 0."""
    facts = vars(storage(open_artifact(folder)))
    return {name: size for name, size in facts.items() if size}


def write_into_program(package, function):
    """Move the first weight of a function into its program; return its size in bytes."""
    from coremltools.proto.Model_pb2 import Model

    model, weights = Model.FromString((package / MODEL).read_bytes()), package / WEIGHTS
    body = model.mlProgram.functions[function]
    values = (op.attributes["val"] for op in body.block_specializations[body.opset].operations)
    value = next(value for value in values if value.HasField("blobFileValue"))
    data = weights.read_bytes()
    _, _, size, start = struct.unpack_from("<IIQQ", data, value.blobFileValue.offset)
    value.immediateValue.tensor.bytes.values = data[start : start + size]
    (package / MODEL).write_bytes(model.SerializeToString())
    return size


def uncall(folder, method):
    """Remove a method from an exported folder's program."""
    program = json.loads((folder / PROGRAM).read_text())
    del program["methods"][method]
    (folder / PROGRAM).write_text(json.dumps(program))


def bytes_below(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_one_method_has_nothing_to_share(exports):
    assert found(exports()) == {"used": ALL, "stored": ALL}


def test_two_methods_that_share_store_each_weight_once(exports):
    shared = exports(mode="multifunction")
    assert found(shared) == {"used": 2 * ALL, "stored": ALL, "saved": ALL}


def test_two_methods_that_do_not_could_save_half(exports):
    apart = exports(mode="multifunction", weight_sharing="none")
    assert found(apart) == {"used": 2 * ALL, "stored": 2 * ALL, "repeated": ALL}


def test_equal_weights_in_two_packages_are_stored_again(exports):
    """A tied output layer is stored twice: no package can refer to another's weights."""
    assert found(exports(tied=True)) == {"used": ALL, "stored": ALL, "repeated": TABLE}


def test_a_weight_in_the_program_is_stored_again_beside_the_file(copied):
    folder = copied(mode="multifunction")
    size = write_into_program(folder / "blocks", "forward")
    assert size == 2 * PARAMS["dim"] or size in {2 * math.prod(s) for s in SHAPES.values()}
    assert found(folder) == {
        "used": 2 * ALL,
        "stored": ALL + size,
        "saved": ALL - size,
        "repeated": size,
        "in_programs": size,
    }
    write_into_program(folder / "blocks", "prefill")
    assert found(folder)["repeated"] == size  # two programs, and no entry of the file is used
    assert found(folder)["in_programs"] == 2 * size


def test_functions_and_packages_that_no_method_calls_are_counted(copied):
    folder = copied(mode="multifunction")
    size = write_into_program(folder / "blocks", "forward")
    uncall(folder, "forward")
    assert found(folder)["uncalled"] == size  # all else is prefill's, too
    shutil.copytree(folder / "head", folder / "spare")
    assert found(folder)["unreferenced"] == bytes_below(folder / "spare" / "model.mlpackage")


def test_a_second_copy_that_is_called_is_stored_again(copied):
    folder = copied(mode="multifunction")
    shutil.copytree(folder / "head", folder / "other")
    program = json.loads((folder / PROGRAM).read_text())
    program["methods"]["prefill"]["calls"][-1]["package"] = "other"
    (folder / PROGRAM).write_text(json.dumps(program))
    head = found(folder)["repeated"]
    assert head == TABLE + 2 * math.prod(SHAPES["norm.weight"])
    case = run_check(artifact_checks()["copies"], Subject(folder), suite="test")
    assert case.outcome == "fail" and "is a copy of package 2" in case.reason
    assert case.facts["bytes stored again"] == head
    assert "no method calls" in case.reason


def test_the_commands_tell_it_in_bytes(exports, copied, capsys):
    sound, folder = exports(mode="multifunction"), copied(mode="multifunction")
    size = write_into_program(folder / "blocks", "forward")
    assert main(["inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"sharing saves {(ALL - size) / 1000:.1f} kB" in said
    assert f"{size} bytes are in programs; they belong in weight files" in said
    assert f"{size} bytes more could be saved: they are stored again" in said
    assert main(["diff", str(sound), str(folder)]) == 1
    said = capsys.readouterr().out
    assert f"weight bytes saved by sharing: {ALL} -> {ALL - size}" in said
    assert f"weight bytes in programs: 0 -> {size}" in said
