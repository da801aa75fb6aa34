"""A user's models and artifacts by name: `harness.toml`, or `[tool.harness]`."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from harness.cli import main
from harness.errors import HarnessError
from harness.fixtures import model, project
from harness.fixtures.cache import exported, fixture
from harness.fixtures.project import EXAMPLE, SCHEMA, read_project
from harness.fixtures.subjects import locate
from harness.results import read_run

SCHEMA_JSON = json.loads(SCHEMA.read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project whose model and artifact are those of `tiny`, and its working folder."""
    tiny = fixture("tiny")
    (tmp_path / "weights").symlink_to(tiny.folder)
    (tmp_path / "shipped.pte").symlink_to(exported("tiny", model("tiny").options))
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    write(tmp_path / "harness.toml")
    return tmp_path


MINE = """
[subjects.mine]
checkpoint = "weights/checkpoint.pth"
params = "weights/params.json"
tokenizer = "weights/tokenizer.model"
exporter = "coreml"
modes = ["multifunction"]
options = { input_len = 16, max_context_len = 128, target_split_size = "none" }
"""
SHIPPED = """
[subjects.shipped]
artifact = "shipped.pte"
checkpoint = "weights/checkpoint.pth"
params = "weights/params.json"
"""


def write(path, text=MINE + SHIPPED):
    path.write_text(text, encoding="utf-8")
    project._project_above.cache_clear()


def test_subjects_are_found_from_a_folder_below(folder, capsys):
    mine = project.project().subjects["mine"]
    assert mine.options.mode == "multifunction" and mine.options.target_split_size is None
    assert mine.files["checkpoint"] == folder / "weights/checkpoint.pth"
    assert main(["models", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert names[:3] == ["mine", "shipped", "tiny"]


def test_pyproject_may_hold_them(folder):
    (folder / "harness.toml").unlink()
    text = (MINE + SHIPPED).replace("[subjects", "[tool.harness.subjects")
    write(folder / "pyproject.toml", text)
    assert set(project.project().subjects) == {"mine", "shipped"}


def test_a_pyproject_of_others_is_passed_by(folder):
    write(folder / "deeper/pyproject.toml", "[tool.other]\n")
    assert set(project.project().subjects) == {"mine", "shipped"}


def test_commands_take_a_subject_by_name(folder, capsys):
    assert main(["check", "mine", "--check", "weights", "--check", "program"]) == 0
    assert "pass  weights" in capsys.readouterr().out  # the checkpoint went with the name
    assert main(["inspect", "shipped", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(folder / "shipped.pte")
    assert main(["diff", "mine", "mine"]) == 0


def test_a_name_says_who_exports_how(folder):
    path = locate("coreml:tiny+b4w/multifunction").path
    assert path == exported(
        "tiny",
        model("tiny").options.__class__(
            mode="multifunction", input_len=16, max_context_len=128, linear_quantize="b4w"
        ),
        exporter="coreml",
    )
    assert locate(str(path)) is None and locate("missing.pte") is None
    for word, sentence in {
        "mien": "did you mean 'mine'?",
        "tiny+b9w": "'b9w' is not one of none, b4w, c4w",
        "shipped/single": "shipped is an artifact; give its name alone",
        "minee/single": "did you mean 'mine'?",
        "coreml:tinyy": "did you mean 'tiny'?",
        "mine/sngl": "mine is a subject: give mine/multifunction",
        "nothing-like-it": "`harness models` lists mine, shipped, tiny",
    }.items():
        with pytest.raises(HarnessError, match=re.escape(sentence)):
            locate(word)


def test_params_are_found_beside_the_checkpoint_as_on_the_command_line(folder, tmp_path):
    alone = "".join(line for line in MINE.splitlines(True) if not line.startswith("params"))
    write(folder / "harness.toml", alone)
    assert fixture("mine").params == folder / "weights" / "params.json"
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "c.pth").touch()
    write(folder / "harness.toml", alone.replace("weights/checkpoint", "lonely/c"))
    with pytest.raises(HarnessError, match=r"lonely: it holds no params\.json and no config\.json"):
        fixture("mine")


BAD = {
    "not TOML": ("[subjects", "cannot be read as TOML"),
    "key": ("runtime = ['x']", "unknown key 'runtime'; did you mean 'runtimes'?"),
    "far key": ("zzz = 1", "unknown key 'zzz'; choose from runtimes, known"),
    "subject's key": (
        MINE.replace("tokenizer", "tokeniser"),
        "subjects.mine: unknown key 'tokeniser'; did you mean 'tokenizer'?",
    ),
    "option": (
        MINE.replace("input_len", "input-len"),
        "subjects.mine.options: unknown key 'input-len'; did you mean 'input_len'?",
    ),
    "value": (MINE.replace("128", "'128'"), "subjects.mine.options.max_context_len: '128' is not"),
    "options that do not fit": (
        MINE.replace("128", "8"),
        "subjects.mine.options: input_len must be a whole number from 1 to 7",
    ),
    "half a model": (
        MINE.replace("checkpoint =", "description ="),
        "subjects.mine: checkpoint is missing: params are those of a checkpoint",
    ),
    "nothing to judge": ("[subjects.x]", "subjects.x: a subject needs a checkpoint"),
    "nesting": ("a = " + "[" * 5000, "cannot be read as TOML"),
    "a value near one": (
        MINE.replace("multifunction", "multifuncton"),
        "subjects.mine.modes.0: 'multifuncton' is not one of single, multifunction; did you mean",
    ),
    "prompts alone": (
        MINE.replace("tokenizer =", "prompts = ['x']\ndescription ="),
        "subjects.mine: prompts need a tokenizer",
    ),
    "a reference": (
        SHIPPED.replace("artifact", "reference = 'x'\nartifact"),
        "subjects.shipped.reference: 'x' is not MODULE:FUNCTION",
    ),
    "two sources": (
        SHIPPED.replace("artifact", "reference = 'x:y'\ngolden = 'g.npz'\nartifact"),
        "subjects.shipped: keep one of reference and golden",
    ),
    "an exporter": (
        MINE.replace('"coreml"', '"coremll"'),
        "subjects.mine.exporter: 'coremll' is not an exporter; give executorch,",
    ),
    "an exporter of none": ('[exporters]\na = "b"', "exporters.a: 'b' is not an exporter"),
    "an empty place": ('[exporters]\na = "executorch@"', "exporters.a: 'executorch@' is not"),
    "two makers": (
        MINE + 'build = { module = "a" }',
        "subjects.mine: keep one of build and checkpoint",
    ),
    "a build's tokenizer": (
        '[subjects.a]\nbuild = { module = "a" }\ntokenizer = "../t"',
        "subjects.a.tokenizer: give the name of the file that build writes",
    ),
    "a build's key": (
        '[subjects.a]\nbuild = { module = "a", setings = {} }',
        "subjects.a.build: unknown key 'setings'; did you mean 'settings'?",
    ),
    "a runtime": ('runtimes = ["mil:wide"]', "runtimes: no runtime 'mil:wide'"),
    "a name": ('[subjects."../x"]\nartifact = "a"', "subjects: '../x' is not a name"),
    "a built-in's name": (MINE.replace(".mine", ".tiny"), "subjects.tiny has the name of a built"),
    "a margin": ("margins = { size = -1 }", "margins.size: -1 is less than the minimum"),
    "huge": ("#" * (1 << 20) + "\n", "larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence(folder, capsys, name):
    text, sentence = BAD[name]
    write(folder / "harness.toml", text)
    assert main(["models"]) == 2
    err = capsys.readouterr().err
    assert f"harness models: {folder / 'harness.toml'}: " in err and sentence in err
    assert err.count("\n") == 1


def test_a_subject_that_is_not_built_yet_hinders_no_other(folder, capsys):
    missing = MINE.replace("weights/params", "nowhere/params").replace("mine", "later")
    write(folder / "harness.toml", missing + SHIPPED.replace("shipped.pte", "no.pte") + MINE)
    assert main(["models"]) == 0 and main(["inspect", "mine"]) == 0
    capsys.readouterr()
    for name, key in {"later": "params", "shipped": "artifact"}.items():
        assert main(["inspect", name]) == 2
        assert f"subjects.{name}.{key}: there is no {folder}" in capsys.readouterr().err


def test_a_folder_does_not_hide_a_subject_of_its_name(folder):
    Path("shipped").mkdir()
    Path("mine").touch()
    assert locate("shipped").path == folder / "shipped.pte"
    assert locate("mine") is None


def test_a_golden_file_of_a_subject_is_written(folder, capsys):
    assert main(["golden", "shipped", "--runtime", "mil:widen", "-o", "g.npz"]) == 0
    assert Path("g.npz").is_file()


@pytest.mark.parametrize("kind", ["folder", "dangling", "loop"])
def test_a_settings_file_that_cannot_be_read_is_not_passed_by(folder, capsys, kind):
    path = folder / "harness.toml"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere" if kind == "dangling" else path)
    project._project_above.cache_clear()
    assert main(["models"]) == 2
    assert f"{path}: cannot be read (" in capsys.readouterr().err


def test_settings_are_defaults_of_commands(folder, capsys, monkeypatch):
    write(folder / "harness.toml", 'runtimes = ["mil:double"]\n' + MINE + SHIPPED)
    assert main(["check", "shipped", "--check", "greedy"]) == 0
    assert "greedy on mil:double" in capsys.readouterr().out
    assert main(["check", "shipped", "--check", "greedy", "--runtime", "mil:widen"]) == 0
    assert "greedy on mil:double" not in capsys.readouterr().out


def test_the_example_is_whole_and_sound(tmp_path, monkeypatch, capsys):
    """Without its comment signs it validates, and it names every key of the schema."""
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0 and main(["init"]) == 2
    assert "exists already" in capsys.readouterr().err
    text = (tmp_path / "harness.toml").read_text(encoding="utf-8")
    assert text == EXAMPLE.read_text(encoding="utf-8")
    assert read_project(tmp_path / "harness.toml", tomllib.loads(text)).subjects == {}
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    whole = tomllib.loads("\n".join(line for line in lines if re.match(r"\[|\w+ = ", line)))
    Draft202012Validator(SCHEMA_JSON).validate(whole)
    subject = SCHEMA_JSON["$defs"]["subject"]["properties"]
    named = set().union(*(table for table in whole["subjects"].values()))
    assert set(whole) == set(SCHEMA_JSON["properties"]) and named == set(subject)
    options = whole["subjects"]["my-model"]["options"]
    assert set(options) == set(subject["options"]["properties"])


def test_the_built_in_models_are_declared_in_the_same_form():
    table = Path(project.__file__).with_name("models.toml")
    Draft202012Validator(SCHEMA_JSON).validate(tomllib.loads(table.read_text(encoding="utf-8")))


TOY = """
[subjects.toy]
build = { module = "MODULE", files = ["sizes.json"] }
tokenizer = "tokenizer.json"
exporter = "coreml"
options = { input_len = 4, max_context_len = 32, target_split_size = "none" }
"""
TOY_MODULE = """
import json
from pathlib import Path
from harness.fixtures.random_model import build as build_random
def build(folder):
    sizes = json.loads((Path(__file__).parents[1] / "sizes.json").read_text())
    build_random(folder, sizes, seed=FIRST)
"""
SIZES = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "vocab_size": 320}


@pytest.fixture
def toy(folder, monkeypatch, request):
    """A subject whose weights a module of the user's makes; its name is new in each test."""
    monkeypatch.setenv("HARNESS_CACHE", str(folder / "cache"))
    (folder / "sizes.json").write_text(json.dumps(SIZES), encoding="utf-8")
    package = f"toys_{abs(hash(request.node.name))}"
    (folder / package).mkdir()
    write(folder / "harness.toml", TOY.replace("MODULE", f"{package}.small"))
    return folder / package / "small.py"


def test_a_users_module_makes_a_model(folder, toy, capsys):
    """The model is made again only when what it is made of changes."""
    toy.write_text(TOY_MODULE.replace("FIRST", "1"), encoding="utf-8")
    assert main(["check", "toy", "--runtime", "mil:widen"]) == 0, capsys.readouterr().out
    first = fixture("toy")
    assert fixture("toy") == first and first.tokenizer.is_file()
    (folder / "sizes.json").write_text(json.dumps(SIZES | {"n_layers": 2}), encoding="utf-8")
    assert fixture("toy").folder != first.folder


@pytest.mark.parametrize(
    ("code", "sentence"),
    {
        "absent": (None, ".small in"),
        "wrong": ("def build(folder): raise ValueError('no')", "build failed: ValueError: no"),
        "idle": ("def build(folder): pass", "small wrote no checkpoint.pth"),
    }.values(),
    ids=["absent", "wrong", "idle"],
)
def test_a_users_module_that_makes_nothing_is_one_sentence(toy, capsys, code, sentence):
    if code:
        toy.write_text(code, encoding="utf-8")
    assert main(["inspect", "toy"]) == 2
    err = capsys.readouterr().err
    assert "harness inspect: toy: " in err and sentence in err and "Traceback" not in err


def test_what_a_users_module_prints_is_not_among_the_results(toy, capfd):
    toy.write_text("print('importing')\n" + TOY_MODULE.replace("FIRST", "1)\n    print('building'"))
    assert main(["check", "toy", "--runtime", "mil:widen", "--json"]) == 0
    printed = capfd.readouterr()
    assert all(map(json.loads, printed.out.splitlines()))
    assert {"importing", "building"} <= {*printed.err.splitlines()}


WITH_TEXT = SHIPPED + 'tokenizer = "weights/tokenizer.model"\nprompts = ["Today is Friday."]\n'


def test_an_artifact_has_a_tokenizer_and_prompts(folder, capsys):
    write(folder / "harness.toml", WITH_TEXT)
    prompt = ["--prompt", "Today is Friday. Tomorrow is", "--max-new-tokens", "4"]
    assert main(["run", "shipped", *prompt]) == 0
    assert "Saturday" in capsys.readouterr().out
    words = ["check", "shipped", "--runtime", "mil:widen", "--json", "--check"]
    assert main([*words, "greedy-prompts"]) == 0
    _, case, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert (case["check"], case["outcome"]) == ("greedy-prompts", "pass")
    assert case["comparisons"] > 4
    assert main([*words, "program"]) == 0
    assert "greedy-prompts" not in capsys.readouterr().out


def test_prompts_find_a_model_that_continues_them_in_another_way(folder, capsys):
    """The artifact is that of the checkpoint of other layers."""
    import torch

    weights = torch.load(folder / "weights" / "checkpoint.pth", weights_only=True)
    weights["output.weight"] = weights["output.weight"].flip(0)
    torch.save(weights, folder / "other.pth")
    text = WITH_TEXT.replace("weights/checkpoint.pth", "other.pth")
    write(folder / "harness.toml", text)
    words = ["--runtime", "mil:widen", "--check", "greedy-prompts"]
    assert main(["check", "shipped", *words]) == 1
    assert "tokens are not the oracle's" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["check", "shipped", "--check", "greedy-prompts"],
        ["run", "shipped", "--prompt", "x"],
        ["conformance", "--fixture", "shipped", "-k", "prompts"],
    ],
    ids=lambda words: words[0],
)
def test_a_tokenizer_that_does_not_exist_is_one_sentence(folder, words):
    write(folder / "harness.toml", WITH_TEXT.replace("tokenizer.model", "absent.model"))
    command = [sys.executable, "-m", "harness", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "absent.model" in done.stderr, done
    assert "Traceback" not in done.stdout + done.stderr


def test_the_schema_has_the_options_of_an_export(folder):
    Draft202012Validator.check_schema(SCHEMA_JSON)
    properties = SCHEMA_JSON["$defs"]["subject"]["properties"]["options"]["properties"]
    assert {"mode", *properties} == set(model("tiny").options.as_dict())


def test_conformance_judges_a_users_artifact_with_known_defects(folder, capfd):
    """In the user's folder, by its name, in its own mode; the user's known defects hold."""
    issue = "https://example.com/7"
    entry = f'[[known]]\nissue = "{issue}"\nreproduction = "none"\ncheck = "program"\n'
    (folder / "mine.toml").write_text(entry, encoding="utf-8")
    write(folder / "harness.toml", 'known = ["mine.toml"]\n' + SHIPPED)
    words = ["--fixture", "shipped", "--runtime", "mil:widen", "-k", "program or weights or greedy"]
    command = [sys.executable, "-m", "harness", "conformance", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    run = read_run(Path("results/conformance.jsonl"))
    assert {case.id: case.outcome for case in run.cases} == {
        "conformance/program[shipped,single,-]": "fail",  # it passes: the defect is gone
        "conformance/weights[shipped,single,-]": "pass",
        "conformance/greedy[shipped,single,mil:widen]": "pass",
    }, done.stdout
    assert issue in done.stdout and done.returncode == 1


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "pass"), (1.01, "fail")])
def test_conformance_holds_a_users_artifact_against_its_golden_file(folder, factor, outcome):
    assert main(["golden", "shipped", "--runtime", "mil:widen", "-o", "../golden.npz"]) == 0
    with np.load("../golden.npz") as stored:
        values = dict(stored)
    values = {name: v * factor if "/out/" in name else v for name, v in values.items()}
    np.savez("../golden.npz", **values)
    write(folder / "harness.toml", '[subjects.s]\nartifact = "shipped.pte"\ngolden = "golden.npz"')
    words = ["--fixture", "s", "--runtime", "mil:widen", "-k", "outputs or reference_weights"]
    command = [sys.executable, "-m", "harness", "conformance", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    run = read_run(Path("results/conformance.jsonl"))
    assert {(case.check, case.runtime): case.outcome for case in run.cases} == {
        ("outputs", "mil:widen"): outcome,
        ("reference-weights", "-"): "skip",  # a golden file has no parameters
    }, done.stdout
    assert done.returncode == int(outcome == "fail")
