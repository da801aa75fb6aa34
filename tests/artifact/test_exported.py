"""Exported folders: sound ones are read, damaged ones refused."""

import json
import shutil

import numpy as np
import pytest

from harness.artifact import open_artifact
from harness.artifact.facts import artifact_facts
from harness.cli import main
from harness.errors import ArtifactError


@pytest.fixture(scope="module")
def sound():
    from dataclasses import replace

    from harness.fixtures.cache import exported, fixture

    options = replace(fixture("tiny").options, mode="multifunction")
    return exported("tiny", options, exporter="coreml")


@pytest.fixture
def edited(sound, tmp_path):
    """Copy the folder, edit its program.json, and open the copy."""

    def open_edited(edit):
        shutil.copytree(sound, tmp_path / "copy")
        path = tmp_path / "copy" / "program.json"
        program = json.loads(path.read_text())
        edit(program, tmp_path / "copy")
        path.write_text(json.dumps(program))
        artifact = open_artifact(tmp_path / "copy")
        artifact_facts(artifact)
        return artifact

    return open_edited


def test_a_folder_has_the_facts_of_a_program(sound):
    facts = artifact_facts(open_artifact(sound))
    assert facts.kind == "folder"
    assert [method.name for method in facts.methods] == ["forward", "prefill"]
    assert [d.function for d in facts.methods[1].delegates] == ["prefill"] * 3
    assert [package.multifunction for package in facts.packages] == [True] * 3
    assert facts.size == sum(p.stat().st_size for p in sound.rglob("*") if p.is_file())


def test_constants_are_numbers_and_views_of_the_file(sound):
    constants = open_artifact(sound).constants
    assert constants["vocab_size"] == 512
    assert constants["prefill_mask_specs"].tolist() == [[1, 127]]
    tables = np.stack([constants["freqs_cos"], constants["freqs_sin"]]).astype(float)
    assert tables.shape[1:] == (128, 8)
    assert np.abs(np.square(tables).sum(0) - 1).max() < 2e-3


def test_a_package_that_nobody_calls_is_told(edited):
    def copy(program, folder):
        name = program["methods"]["forward"]["calls"][0]["package"]
        shutil.copytree(folder / name, folder / "again")

    artifact = edited(copy)
    (size,) = artifact.pte.unused.values()
    assert list(artifact.pte.unused) == ["package 'again'"]
    assert size == artifact.packages[0].size


def test_it_is_shown_by_inspect(sound, capsys):
    assert main(["inspect", str(sound)]) == 0
    assert "folder" in capsys.readouterr().out.splitlines()[0]


def _set(**fields):
    return lambda program, folder: program.update(fields)


def _method(**fields):
    return lambda program, folder: program["methods"]["forward"].update(fields)


def _constant(value):
    return lambda program, folder: program["constants"].update(freqs_cos=value)


EDITS = {
    "another format": (_set(format="other"), "needs 'format' 'harness-export'"),
    "a later version": (_set(version=2), "version 2; version 1 is known"),
    "no method": (_set(methods={}), "a non-empty 'methods'"),
    "a method that calls nothing": (_method(calls=[]), "method 'forward': needs 'values'"),
    "a call without a package": (_method(calls=[{}]), "a call needs 'package'"),
    "a package that is not there": (
        _method(calls=[{"package": "gone", "function": None}]),
        "calls package 'gone', which does not exist",
    ),
    "a package outside": (
        _method(calls=[{"package": "../copy/head", "function": None}]),
        "calls package '../copy/head', which does not exist",
    ),
    "an unknown value": (_method(inputs=["tokens", "nothing"]), "'nothing' is not one of its"),
    "a dtype that is none": (_method(values={"tokens": ["object", [1]]}), "not a dtype and a"),
    "a negative size": (_method(values={"tokens": ["int32", [-1]]}), "not a dtype and a shape"),
    "a constant past the end": (
        _constant({"dtype": "float16", "shape": [1 << 20, 64], "offset": 0}),
        "constant 'freqs_cos' claims bytes 0 to 134217728",
    ),
    "a constant before the start": (
        _constant({"dtype": "float16", "shape": [1], "offset": -2}),
        "constant 'freqs_cos' claims bytes -2",
    ),
    "a constant that is none": (_constant([1]), "not a number, a text or an array"),
    "a constant named like a method": (
        _set(constants={"forward": 1}),
        "'forward' is a method and a constant",
    ),
    "no metadata": (
        lambda program, folder: (folder / "head" / "metadata.json").unlink(),
        "no metadata.json in the payload",
    ),
    "no package": (
        lambda program, folder: shutil.rmtree(folder / "head" / "model.mlpackage"),
        "instead of a model.mlpackage",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_damaged_program_is_refused(edited, name):
    edit, sentence = EDITS[name]
    with pytest.raises(ArtifactError) as error:
        edited(edit)
    assert sentence in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null", '"a"', "\xff"])
def test_a_file_that_is_not_a_program_is_refused(tmp_path, text):
    (tmp_path / "program.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"program\.json"):
        open_artifact(tmp_path)
