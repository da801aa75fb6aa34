"""Whatever a file is or holds, a command ends with one sentence, and soon."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from harness.artifact.proto import parse_specification
from harness.cli import main
from harness.fixtures.cache import exported
from tests.generate.test_tokenizer import byte_level
from tests.mil.programs import save
from tests.test_untrusted_files import KINDS, soon, special  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("soon")
ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e"
SPEC = "Data/com.apple.CoreML/model.mlmodel"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    weight = np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32)
    made = save(lambda mb, a: mb.relu(x=mb.linear(x=a, weight=weight), name="last"), [(1, 8)])
    return Path(shutil.copytree(made.what, tmp_path_factory.mktemp("sound") / "a.mlpackage"))


@pytest.fixture(scope="module")
def folder():
    return exported("tiny", exporter="coreml")


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run a command in a folder of its own; return its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        status = main([*map(str, words)])
        return (status, *capsys.readouterr())

    return call


@pytest.fixture
def refused(call):
    """Run a command that must end with one sentence, which holds `problem`."""

    def refused(problem, *words):
        status, out, err = call(*words)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert problem in err

    return refused


def words_of(place, package, path):
    """Return a command that reads `path` as its tokenizer, its checkpoint, ..."""
    good = path.parent / "good.json"
    good.write_text(json.dumps({"dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": 8}))
    return {
        "tokenizer": ("run", package, "--prompt", "a", "--tokenizer", path),
        "checkpoint": ("export", "--checkpoint", path, "--params", good, "-o", "o.pte"),
        "checkpoint of ours": (
            *("export", "--exporter", "coreml"),
            *("--checkpoint", path, "--params", good, "-o", "o"),
        ),
        "params": ("export", "--checkpoint", good, "--params", path, "-o", "o.pte"),
        "checked against": ("check", package, "--checkpoint", path, "--params", good),
        "inputs": ("bisect", package, "--inputs", path),
        "golden": ("check", package, "--golden", path),
        "results": ("report", path),
        "compared results": ("gate", path, path),
        "config": ("models",),
        "prompts": ("run", package, "--tokenizer", good, "--prompts", path),
        "text": ("text", package, "--tokenizer", byte_level(path.parent), "--text", path),
    }[place]


PLACES = (
    *("tokenizer", "checkpoint", "checkpoint of ours", "params", "checked against", "inputs"),
    *("golden", "results", "compared results", "prompts", "text", "config"),
)
NAMES = {"config": ("harness.toml",), "golden": ("g.npz", "g.safetensors")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_a_file_is_refused_wherever_it_is_given(
    refused, package, tmp_path, place, kind
):
    for name in NAMES.get(place, ("x",)):
        path = special(tmp_path / name, kind)
        if place == "compared results" and kind == "folder":
            refused("x", *words_of(place, package, path))  # taken for an artifact
            continue
        refused(str(name), *words_of(place, package, path))
        assert not [found for found in tmp_path.iterdir() if found.name.startswith((".", "o"))]
        path.rmdir() if kind == "folder" else path.unlink()


@pytest.mark.parametrize("place", PLACES[:-1])
def test_nul_in_a_path_is_one_sentence(refused, package, tmp_path, place):
    refused("a\\x00b: no path or name can hold NUL", *words_of(place, package, tmp_path / "a\0b"))


@pytest.mark.parametrize("key", ["checkpoint", "params", "artifact", "golden", "tokenizer"])
def test_nul_in_a_path_of_harness_toml_is_one_sentence(refused, tmp_path, key):
    is_model = key in ("checkpoint", "params")
    keys = {"checkpoint": "c", "params": "p"} if is_model else {"artifact": "a.pte"}
    lines = [f'{name} = "{text}"' for name, text in (keys | {key: "a\\u0000b"}).items()]
    (tmp_path / "harness.toml").write_text("\n".join(["[subjects.mine]", *lines]))
    refused("", "check", "mine")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "m.pte", "--tokenizer", "t", "--prompt", "p", "--runtime", ""),
        ("gate", "a.pte", "b.pte", "--runtime", ""),
        ("bench", "m.pte", "--runtime", ""),
        ("check", "m.pte", "--runtime="),
        ("check", "m.pte", "--runtime", ""),
        ("golden", "m.pte", "-o", "g.npz", "--runtime", ""),
    ],
)
def test_an_empty_runtime_is_not_the_default(refused, words):
    refused("--runtime is empty: give a value, or leave it out", *words)


def test_other_empty_words_are_one_sentence(refused):
    refused("--checkpoint is empty", "check", "m.pte", "--checkpoint", "", "--params", "p")
    refused("-o is empty", "extract", "m.pte", "-o", "")
    refused("an argument is empty", "inspect", "")


def renamed(package, target):
    """Copy a package; the names of its function, values and operations drive a terminal."""
    shutil.copytree(package, target)
    text = text_format.MessageToString(
        parse_specification(memoryview((package / SPEC).read_bytes()), "here"), as_utf8=True
    )
    spelled = text_format.text_encoding.CEscape(ESCAPE, as_utf8=True)
    for name in ("main", "last", "a"):
        text = text.replace(f'"{name}"', f'"{name}{spelled}"')
    text = text.replace("mlProgram {", f'mlProgram {{\n docString: "{spelled}"', 1)
    model = type(parse_specification(memoryview((package / SPEC).read_bytes()), "here"))()
    (target / SPEC).write_bytes(text_format.Parse(text, model).SerializeToString())
    return target


def quiet(printed):
    return not any(mark in printed for mark in ("\x1b", "\x07", "\u202e"))


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "{bad}", "--all"),
        ("inspect", "{bad}", "--json"),
        ("extract", "{bad}", "-o", "out" + ESCAPE),
        ("diff", "{bad}", "{good}", "--all"),
        ("diff", "{good}", "{bad}", "--json"),
        ("check", "{bad}"),
        ("check", "{bad}", "--runtime", "mil:strict", "--results", "results"),
        ("golden", "{bad}", "-o", f"g{ESCAPE}.npz"),
        ("bisect", "{bad}"),
        ("bisect", "{bad}", "--ranges"),
        ("bisect", "{bad}", "--method", "x" + ESCAPE),
        ("combine", "{bad}", "-o", "c.mlpackage"),
        ("gate", "{good}", "{bad}", "--tier", "structure", "--all"),
        ("run", "{bad}", "--prompt", "a", "--tokenizer", "t" + ESCAPE),
    ],
)
def test_names_in_a_package_do_not_drive_the_terminal(call, package, tmp_path, words):
    bad = renamed(package, tmp_path / "bad.mlpackage")
    _, out, err = call(*(word.format(bad=bad, good=package) for word in words))
    assert (out or err) and quiet(out) and quiet(err)


def program_of(folder, target, change):
    """Copy an exported folder with another `program.json`."""
    shutil.copytree(folder, target)
    content = json.loads((target / "program.json").read_text())
    change(content)
    (target / "program.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("command", ["inspect", "extract", "check", "diff", "bisect", "run"])
def test_names_in_a_program_do_not_drive_the_terminal(call, folder, tmp_path, command):
    def change(content):
        content["methods"]["forward" + ESCAPE] = content["methods"]["forward"]
        content["constants"]["answer" + ESCAPE] = ESCAPE

    bad = program_of(folder, tmp_path / "bad", change)
    more = {
        "extract": ("-o", tmp_path / "out"),
        "check": ("--check", "metadata-names", "--check", "references"),
        "diff": (folder,),
        "bisect": ("--method", "forward" + ESCAPE),
        "run": ("--prompt", "a", "--tokenizer", tmp_path),
    }
    _, out, err = call(command, bad, *more.get(command, ()))
    assert (out or err) and quiet(out) and quiet(err)


HALF = '"\\ud800"'


@pytest.mark.parametrize("command", [("inspect",), ("check",), ("extract", "-o", "o"), ("bisect",)])
@pytest.mark.parametrize("file", ["program.json", "metadata.json", "Manifest.json"])
def test_half_a_character_in_an_artifact_is_one_sentence(
    call, refused, folder, tmp_path, command, file
):
    bad = Path(shutil.copytree(folder, tmp_path / "bad"))
    path = next(bad.rglob(file))
    text = path.read_text()
    path.write_text(text.replace('"identifier": "', '"identifier": "\\ud800', 1))
    if file == "program.json":
        path.write_text(text.replace('"function": null', f'"function": {HALF}', 1))
    if file == "Manifest.json":
        path.write_text(text.replace("com.apple.CoreML/model", r"\ud800/model", 1))
    assert path.read_text() != text
    verb, *more = command
    if (verb, file) == ("check", "Manifest.json"):  # judged, check by check
        status, out, err = call(verb, bad)
        assert status == 1 and "Traceback" not in out + err
        return
    refused("bad", verb, bad, *more)


def test_half_a_character_beside_a_tokenizer_is_one_sentence(refused, package, tmp_path):
    byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"eos_token": {HALF}}}')
    words = ("run", package, "--prompt", "a", "--tokenizer", tmp_path)
    refused("tokenizer_config.json: not JSON: a text holds half of a character", *words)


def test_a_path_that_is_no_text_is_printed_with_an_escape(call, package, tmp_path):
    name = os.fsdecode(b"out-\xff")
    status, out, err = call("extract", package, "-o", tmp_path / name)
    assert (status, err) == (0, "") and "out-\\udcff" in out
    assert (tmp_path / name / "extracted.json").is_file()


def test_a_million_equal_names_are_one_sentence(refused, folder, tmp_path):
    bad = Path(shutil.copytree(folder, tmp_path / "bad"))
    path = next(bad.rglob("metadata.json"))
    content = json.loads(path.read_text())
    content["inputNames"] = ["a"] * 10**6
    path.write_text(json.dumps(content))
    refused("inputNames names a twice", "inspect", bad)
    content["inputNames"] = [str(n // 2) for n in range(10**6)]
    path.write_text(json.dumps(content))
    refused("499,992 more twice", "inspect", bad)


@pytest.mark.parametrize("place", ["{folder}/out", "{folder}/blocks/model.mlpackage/out"])
def test_nothing_is_written_inside_what_is_read(refused, folder, package, tmp_path, place):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    mine = Path(shutil.copytree(package, tmp_path / "a.mlpackage"))
    before = sorted(path for root in (copy, mine) for path in root.rglob("*"))
    inside = place.format(folder=copy)
    refused("lies inside", "extract", copy, "-o", inside)
    refused("lies inside", "check", copy, "--check", "references", "--results", inside)
    refused("lies inside", "golden", mine, "-o", mine / "g.npz")
    refused("lies inside", "combine", mine, "-o", mine / "b.mlpackage")
    refused("lies inside", "combine", mine, mine, "-o", mine / "Data" / "b.mlpackage", "--force")
    refused("lies inside", "gate", copy, copy, "--tier", "structure", "--results", inside)
    assert sorted(path for root in (copy, mine) for path in root.rglob("*")) == before


def test_an_extraction_is_not_replaced_by_its_own_part(call, refused, package, tmp_path):
    assert call("extract", package, "-o", "out")[0] == 0
    part = tmp_path / "out" / "package_0" / "model.mlpackage"
    refused("holds", "extract", part, "-o", "out", "--force")
    assert part.is_dir()


def test_names_that_are_one_on_a_mac_are_refused(refused, package, tmp_path):
    bad = Path(shutil.copytree(package, tmp_path / "bad.mlpackage"))
    weights = bad / "Data/com.apple.CoreML/weights"
    (weights / "WEIGHT.BIN").write_bytes(b"other")
    if len(list(weights.iterdir())) < 2:
        pytest.skip("this file system ignores case")
    refused("differ in case or accents only", "inspect", bad)
    refused("differ in case or accents only", "extract", bad, "-o", "out")
    refused("differ in case or accents only", "combine", bad, "-o", "c.mlpackage")
    assert not (tmp_path / "out").exists()
