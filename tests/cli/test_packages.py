"""`harness combine`, `extract` and `diff` as commands, and `inspect` on their results."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from harness.artifact import Package, open_artifact
from harness.cli import main
from tests.mil.programs import run, save

WEIGHT = np.random.default_rng(5).standard_normal((32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def one():
    return Path(save(lambda mb, a: mb.linear(x=a, weight=WEIGHT), [(1, 32)]).what)


@pytest.fixture(scope="module")
def four():
    return Path(save(lambda mb, a: mb.linear(x=a, weight=WEIGHT), [(4, 32)]).what)


@pytest.fixture
def both(one, four, tmp_path):
    assert (
        main(["combine", f"{four}:prefill", f"{one}:decode", "-o", str(tmp_path / "b.mlpackage")])
        == 0
    )
    return tmp_path / "b.mlpackage"


def functions(path):
    return sorted(Package.from_folder(path).functions)


def test_the_call_of_the_readme(one, four, tmp_path, capsys):
    output = tmp_path / "c.mlpackage"
    assert main(["combine", f"{four}:prefill", f"{one}:decode", "-o", str(output)]) == 0
    assert functions(output) == ["decode", "prefill"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output}: ") and lines[0].endswith("default function 'prefill'")
    assert lines[1:3] == [f"  prefill: from {four}:main", f"  decode: from {one}:main"]
    # the matrix and its bias of zeros, stored for two functions
    assert lines[3] == "  weights: 4,224 bytes stored for 8,448 used"


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [("", ["decode", "prefill"]), (":decode", ["decode"]), (":decode=step", ["step"])],
)
def test_what_is_named_of_a_package_of_several(both, tmp_path, suffix, expected):
    output = tmp_path / "c.mlpackage"
    assert main(["combine", f"{both}{suffix}", "-o", str(output)]) == 0
    assert functions(output) == expected


def test_a_path_may_hold_a_colon(both, tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    both.rename(folder / "x.mlpackage")
    assert main(["combine", f"{folder}/x.mlpackage", "-o", str(tmp_path / "c.mlpackage")]) == 0
    assert (
        main(["combine", f"{folder}/x.mlpackage:decode", "-o", str(tmp_path / "d.mlpackage")]) == 0
    )
    assert functions(tmp_path / "d.mlpackage") == ["decode"]


REFUSED = {
    ("{one}", "{four}"): "both become the function 'main'",
    ("{both}:other",): "no function 'other'; its functions: decode, prefill. To rename one, write",
    ("{both}:other=x",): "no function 'other'",
    ("{one}:",): "'' cannot name a function",
    ("{one}:x=",): "'' cannot name a function",
    ("nothing.mlpackage:x",): "no such folder",
    ("{one}:x", "--default", "y"): "no part becomes the default function 'y'",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_bad_call_is_one_sentence_and_status_2(one, four, both, tmp_path, capsys, words):
    given = [word.format(one=one, four=four, both=both) for word in words]
    capsys.readouterr()
    assert main(["combine", *given, "-o", str(tmp_path / "c.mlpackage")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert REFUSED[words] in captured.err
    assert not (tmp_path / "c.mlpackage").exists()


def test_force_replaces(one, both, capsys):
    assert main(["combine", f"{one}:f", "-o", str(both)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["combine", f"{one}:f", "-o", str(both), "--force", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["default_function"], made["stored"], made["left_out"]) == ("f", 4224, [])
    assert functions(both) == ["f"]


def test_inspect_shows_a_combined_package(both, capsys):
    capsys.readouterr()
    assert main(["inspect", str(both)]) == 0
    text = capsys.readouterr().out
    for line in (
        "package 0: multifunction, ",
        "  function decode: CoreML8, 4.2 kB of weights",
        "  function prefill: CoreML8, 4.2 kB of weights",
        "    activations: ",
        "  weights: 4.2 kB stored for 8.4 kB used, 4.2 kB shared by all functions",
    ):
        assert line in text, text


def test_extract_says_what_stands_where(mixed_program, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["extract", str(mixed_program[0]), "-o", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{output}/package_0/model.mlpackage: ")
    assert lines[0].endswith("used by forward delegate 0 (main)")
    assert lines[-1] == f"{output}/extracted.json"
    package = Package.from_folder(output / "package_0/model.mlpackage")
    (bundle,) = [b for b in open_artifact(mixed_program[0]).bundles if len(b.package.functions)][:1]
    assert package.model == bundle.package.model


def test_extract_prints_its_list_as_json(mixed_program, tmp_path, capsys):
    assert main(["extract", str(mixed_program[0]), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert capsys.readouterr().out == (tmp_path / "out/extracted.json").read_text()


def test_what_is_extracted_combines(mixed_program, tmp_path):
    """A user extracts two packages of a .pte and combines them; both functions still compute."""
    output = tmp_path / "out"
    main(["extract", str(mixed_program[0]), "-o", str(output)])
    parts = sorted(output.glob("package_*/model.mlpackage"))
    assert len(parts) == 2
    words = [f"{part}:f{number}" for number, part in enumerate(parts)]
    assert main(["combine", *words, "-o", str(tmp_path / "c.mlpackage")]) == 0
    combined = Package.from_folder(tmp_path / "c.mlpackage")
    for number, part in enumerate(parts):
        alone = Package.from_folder(part)
        inputs = [np.ones((2, 8), np.float32)] * len(alone.functions["main"].inputs)
        for ours, theirs in zip(
            run(combined, *inputs, function=f"f{number}"), run(alone, *inputs), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_diff_of_the_same_is_0_and_says_so(one, capsys):
    assert main(["diff", str(one), str(one)]) == 0
    assert capsys.readouterr().out == f"{one} and {one} are the same, byte by byte\n"


def test_diff_ignores_what_exporters_draw_at_random_and_says_so(one, tmp_path, capsys):
    other = shutil.copytree(one, tmp_path / "other.mlpackage")
    text = (other / "Manifest.json").read_text()
    for identifier in json.loads(text)["itemInfoEntries"]:
        text = text.replace(identifier, str(uuid4()))
    (other / "Manifest.json").write_text(text)
    assert main(["diff", str(one), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "are the same but for" in printed and "Ignored: 1 " in printed
    assert main(["diff", str(one), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []


def test_diff_is_1_and_shows_both_sides(one, four, capsys):
    assert main(["diff", str(one), str(four)]) == 1
    text = capsys.readouterr().out
    assert text.startswith(f"--- {one}\n+++ {four}\n")
    assert "\nfunction 'main'\n  input a: FLOAT32[1, 32] -> FLOAT32[4, 32]\n" in text
    assert "  operation 0: linear_0:\n    - linear(bias=weight FLOAT32[32]" in text


def test_diff_prints_json(one, four, capsys):
    assert main(["diff", str(one), str(four), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["differences"]
    assert {
        "where": "function 'main'",
        "kind": "input",
        "what": "a",
        "a": "FLOAT32[1, 32]",
        "b": "FLOAT32[4, 32]",
    } in found


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_diff_of_what_is_no_artifact_is_2(one, tmp_path, capsys, name):
    (tmp_path / "empty").write_bytes(b"")
    assert main(["diff", str(one), str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and str(tmp_path / name) in captured.err


def test_what_artifacts_name_cannot_drive_a_terminal(one, four, capsys, monkeypatch):
    from harness.diff import Difference

    evil = Difference("a\x1b[2J", "kind\n", "what\r", "x\x1b[31m", ["\x1b"])
    monkeypatch.setattr("harness.diff.diff_artifacts", lambda a, b: [evil])
    assert main(["diff", str(one), str(four)]) == 1
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\r" not in text and len(text.splitlines()) == 5


@pytest.mark.parametrize("command", ["combine", "extract", "diff"])
def test_neither_torch_nor_coremltools_is_imported(one, four, tmp_path, command):
    words = {
        "combine": [f"{one}:a", f"{four}:b", "-o", str(tmp_path / "c.mlpackage")],
        "extract": [str(one), "-o", str(tmp_path / "out")],
        "diff": [str(one), str(four)],
    }
    code = (
        "import sys; from harness.cli import main; status = main(sys.argv[1:]);"
        "found = {'torch', 'coremltools', 'executorch'} & set(sys.modules);"
        "sys.exit(','.join(found) or status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "-q", *words[command]], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (int(command == "diff"), "")


@pytest.mark.parametrize("place", ["file/out", "no/out", "n" * 240])
def test_a_place_that_cannot_be_written_to_is_one_sentence(both, tmp_path, capsys, place):
    (tmp_path / "file").write_text("a file")
    for command in ("extract {both} -o {out}", "combine {both} -o {out}.mlpackage"):
        words = [word.format(both=both, out=tmp_path / place) for word in command.split()]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(tmp_path) in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mlpackage", "file"]
