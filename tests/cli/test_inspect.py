"""`harness inspect`: its text, its JSON, and its errors for bad files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from harness.cli import main
from tests.subject import material

COMMAND = [sys.executable, "-m", "harness", "inspect"]


def inspected(capsys, *arguments):
    status = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    assert status == 0 and captured.err == ""
    return captured.out


def test_it_shows_methods_delegates_functions_and_constants(mixed_program, capsys):
    path = mixed_program[0]
    text = inspected(capsys, path)
    size = path.stat().st_size
    assert text.startswith(f"{path}: pte, {size / 1000:.1f} kB\n")
    for line in (
        "method forward: 2 delegate calls, 1 aten::relu.out",
        "  in x: float32 [2, 8]",
        "  delegate 0: package 0, no function named",
        "  function main: CoreML8, ",
        "  answer = 42",
        "  name = mixed",
        "  table = int16 [5] [0, 1, 2, 3, 4]",
    ):
        assert line in text, line


def test_json_holds_what_the_text_shows(mixed_program, capsys):
    facts = json.loads(inspected(capsys, mixed_program[0], "--json"))
    assert facts["kind"] == "pte" and facts["size"] == mixed_program[0].stat().st_size
    (method,) = facts["methods"]
    assert [tensor["shape"] for tensor in method["inputs"]] == [[2, 8], [2, 8]]
    assert [tensor["shape"] for tensor in method["outputs"]] == [[2, 8], [2, 8]]
    assert method["kernel_calls"] == {"aten::relu.out": 1}
    assert facts["constants"]["table"] == {"dtype": "int16", "shape": [5], "values": [*range(5)]}
    counted = [sum(f["operations"].values()) for p in facts["packages"] for f in p["functions"]]
    assert len(counted) == 2 and min(counted) > 0


def test_it_shows_a_package(mixed_program, tmp_path, capsys):
    from harness.artifact import open_artifact

    bundle = open_artifact(mixed_program[0]).bundles[0]
    for name, content in bundle.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    text = inspected(capsys, tmp_path / "model.mlpackage")
    assert "mlpackage, " in text.splitlines()[0]
    assert "package 0: single function, " in text


def test_states_are_shown_with_shape_and_dtype(tmp_path, capsys):
    path = material.write_recipe(tmp_path / "model.mlpackage", "ranged")
    capsys.readouterr()  # the progress of coremltools
    text = inspected(capsys, path)
    assert "     in causalMask: FLOAT16 [1, 1, ?, ?]\n" in text
    assert "  state keyCache: FLOAT16 [2, 1, 16, 32]\n" in text
    facts = json.loads(inspected(capsys, path, "--json"))["packages"][0]["functions"][0]
    assert [tensor["name"] for tensor in facts["states"]] == ["keyCache", "valueCache"]
    assert [tensor["name"] for tensor in facts["inputs"]] == ["inputIds", "causalMask"]


def test_neither_torch_nor_coremltools_is_imported(mixed_program):
    code = (
        "import sys; from harness.cli import main; main(sys.argv[1:]);"
        "found = {'torch', 'coremltools', 'executorch'} & set(sys.modules);"
        "sys.exit(','.join(found) or 0)"
    )
    command = [sys.executable, "-c", code, "inspect", "-q", str(mixed_program[0])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


BAD = {
    "empty.pte": b"",
    "garbage.pte": bytes(range(256)),
    "name-only.pte": b"\0\0\0\0ET12",
    "not-ours.pte": b"\x04\0\0\0ET12" + b"\xff" * 64,
}


@pytest.mark.parametrize("name", [*BAD, "missing.pte", "pipe.pte", "folder", "cut.pte"])
def test_a_bad_file_is_one_sentence_and_status_2(mixed_program, tmp_path, capsys, name):
    path = tmp_path / name
    if name in BAD:
        path.write_bytes(BAD[name])
    elif name == "pipe.pte":
        os.mkfifo(path)
    elif name == "folder":
        path.mkdir()
    elif name == "cut.pte":
        path.write_bytes(mixed_program[0].read_bytes()[:9000])
    assert main(["inspect", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"harness inspect: {path}")
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


def test_a_reader_that_goes_away_is_no_error(mixed_program):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "-q", str(mixed_program[0]), "--all"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_artifact_names_cannot_drive_a_terminal(mixed_program, capsys, monkeypatch):
    from harness.artifact.facts import ArtifactFacts, Storage

    constants = {"a\x1b[31m": "x\ny", "half": "\ud800", "ü": 1}
    facts = ArtifactFacts("p", "pte", 1, (), (), constants, Storage(0, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr("harness.artifact.facts.artifact_facts", lambda artifact: facts)
    text = inspected(capsys, mixed_program[0])
    assert text.splitlines()[-3:] == ["  a\\x1b[31m = x\\ny", "  half = \\ud800", "  ü = 1"]


def test_several_constants_of_one_method_are_shown(capsys, mixed_program, monkeypatch):
    from harness.artifact import Artifact

    values = {"eos": (128001, 128009), "both": (1, np.arange(2))}
    monkeypatch.setattr(Artifact, "constants", values)
    assert "  eos = [128001, 128009]\n" in inspected(capsys, mixed_program[0])
    facts = json.loads(inspected(capsys, mixed_program[0], "--json"))
    assert facts["constants"]["both"][1]["values"] == [0, 1]


def test_the_activation_peak_is_that_of_the_values_alive_at_one_time():
    """An input of 16 bytes lives to the end, and two of three results of 16 bytes meet."""
    from harness.artifact.facts import package_facts
    from tests.mil.programs import save, save_flexible

    def chain(mb, a):
        return mb.sqrt(x=mb.square(x=mb.relu(x=a, name="first"), name="second"), name="third")

    (facts,) = package_facts(save(chain, [(4,)]), None).functions
    assert (facts.activations.bytes, facts.activations.is_minimum) == (48, False)
    assert facts.activations.operation == "square 'second'"
    (facts,) = package_facts(save_flexible(chain, [((4, None), "fp32")]), None).functions
    assert (facts.activations.bytes, facts.activations.is_minimum) == (48, True)
