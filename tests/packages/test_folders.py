"""Exported folders of `harness export --exporter coreml`, extracted and compared."""

import json

import numpy as np
import pytest

from harness.artifact import Package, open_artifact
from harness.diff import diff_artifacts
from harness.errors import HarnessError
from harness.packages import combine_packages, extract_packages
from tests.mil.programs import save
from tests.packages.payloads import payload, program, reference

NAMES = (["a"], ["out"])
METHODS = ("decode", "prefill")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return a package of two functions."""
    weight = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    source = save(lambda mb, a: mb.linear(x=a, weight=weight), [(1, 64)]).what
    output = tmp_path_factory.mktemp("shared") / "shared.mlpackage"
    combine_packages([(source, "main", method) for method in METHODS], output)
    return Package.from_folder(output)


@pytest.fixture
def write(shared, tmp_path):
    """Return a function that writes a folder whose methods call the package `blocks`."""

    def make(name, call="blocks", constant=7):
        metadata = {m: {"inputNames": ["a"], "outputNames": ["out"]} for m in METHODS}
        values = {"a": ["float32", [1, 64]], "out": ["float32", [1, 64]]}
        content = {
            "format": "harness-export",
            "version": 1,
            "methods": {
                method: {
                    "values": values,
                    "inputs": ["a"],
                    "outputs": ["out"],
                    "calls": [{"package": call, "function": method}],
                }
                for method in METHODS
            },
            "constants": {"answer": constant},
        }
        files = {
            "program.json": json.dumps(content).encode(),
            "blocks/metadata.json": json.dumps({"identifier": "x", "methods": metadata}).encode(),
            **{f"blocks/model.mlpackage/{n}": bytes(d) for n, d in shared.files.items()},
        }
        for file, data in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(data)
        return tmp_path / name

    return make


def test_a_package_is_taken_out_once(write, shared, tmp_path):
    extraction = extract_packages(open_artifact(write("a")), tmp_path / "out")
    (found,) = extraction.packages
    assert [(use.method, use.function) for use in found.used_by] == [(m, m) for m in METHODS]
    assert (found.key, extraction.unused) == ("blocks", {})
    taken = Package.from_folder(tmp_path / "out" / found.package)
    assert {n: bytes(d) for n, d in taken.files.items()} == {
        n: bytes(d) for n, d in shared.files.items()
    }


def test_a_missing_package_is_an_error(write, tmp_path):
    for number, call in enumerate(("lost", "..", "../b/blocks", "/etc")):
        with pytest.raises(HarnessError, match="which does not exist"):
            extract_packages(open_artifact(write(f"{number}", call=call)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_folders_are_compared(write):
    first, same, other = write("a"), write("b"), write("c", constant=8)
    assert diff_artifacts(open_artifact(first), open_artifact(same)) == []
    found = diff_artifacts(open_artifact(first), open_artifact(other))
    assert [(d.kind, d.what) for d in found] == [("constant", "answer")]


def test_a_folder_and_a_program_are_compared_by_their_parts(write, shared, tmp_path):
    """Two exporters' artifacts of one model differ in packing only."""
    named = {"blocks": payload(shared, decode=NAMES, prefill=NAMES)}
    delegates = {method: [reference("blocks", method)] for method in METHODS}
    pte = program(tmp_path / "a.pte", delegates, named)
    found = diff_artifacts(open_artifact(pte), open_artifact(write("a")))
    kinds = {(d.kind, d.what) for d in found}
    assert kinds == {("size", "bytes"), ("constant", "answer"), ("delegate", "identifier")}
