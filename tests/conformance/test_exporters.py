"""The exporters of a conformance run: their names in cases, and the one that others agree with."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError, NotInstalledError
from harness.export.exporters import Exporter
from harness.suites.conformance import subjects
from harness.suites.conformance.subjects import SubjectName, chosen_exporters

ROOT = Path(__file__).parents[2]
LABELS = {"/a/checkout": "executorch@1.5.0+src.1a2b3c4d"}


@pytest.fixture(autouse=True)
def no_installs(monkeypatch):
    """Exporters without an ExecuTorch: one at a path is a checkout, 9.9 is not installed."""

    def get(name, progress):
        kind, _, place = name.partition("@")
        if place == "9.9":
            raise NotInstalledError("not here")
        label = LABELS.get(place, name)
        version = label.partition("@")[2] or "1.4.1"
        return Exporter(kind, label, {"executorch": version}, {}, lambda *given: Path())

    monkeypatch.setattr(subjects, "get_exporter", get)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["executorch", "coreml"], ["executorch", "coreml"]),
        (["executorch@1.5.1", "coreml"], ["executorch", "coreml"]),
        (["executorch@/a/checkout"], ["executorch"]),
        (["executorch", "executorch@1.5.1"], ["executorch@1.4.1", "executorch@1.5.1"]),
        (
            ["executorch@1.4.1", "executorch@/a/checkout"],
            ["executorch@1.4.1", "executorch@1.5.0+src.1a2b3c4d"],
        ),
        (["executorch@9.9", "coreml"], ["executorch@9.9", "coreml"]),
    ],
)
def test_a_run_names_its_exporters(names, labels):
    found = chosen_exporters(names, print)
    assert list(found) == labels
    assert [found[label] is None for label in labels] == ["9.9" in label for label in labels]


def test_one_exporter_is_not_named_twice():
    with pytest.raises(HarnessError, match=r"--exporter executorch@1\.4\.1: .* is named twice"):
        chosen_exporters(["executorch", "executorch@1.4.1"], print)


@pytest.mark.parametrize("exporter", ["executorch@1.5.0+src.1a2b3c4d", "coreml"])
def test_a_subject_is_named_by_exporter_model_and_scheme(exporter):
    name = SubjectName.parse(f"{exporter}:tiny+b4w")
    assert (name.exporter, name.model, name.scheme) == (exporter, "tiny", "b4w")
    assert SubjectName.parse("tiny").exporter == "executorch"


def collected(*options):
    command = [sys.executable, "-m", "pytest", "suites/conformance", "--collect-only", "-q"]
    command += ["-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_all_exporters_but_the_first_executorch_must_agree_with_it():
    lines = collected("--mode", "single", "--runtime", "mil:widen").stdout.splitlines()
    agreeing = [line for line in lines if "test_exporters_agree" in line]
    assert len(agreeing) == 1 and "[coreml:tiny-single-mil:widen]" in agreeing[0]
    # No model that speaks of Paris is chosen, and no runtime that is Core ML: nothing is collected.
    assert not [line for line in lines if "paris" in line or "core_ml" in line]
    assert "deselected" in lines[-1]


def cases_in(done):
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_shards_share_the_tests_and_each_export_is_in_one():
    options = ("--fixture", "tiny", "--fixture", "layers-12", "--runtime", "mil:widen")
    shards = [cases_in(collected(*options, "--shard", f"{index}/3")) for index in (1, 2, 3)]
    everything = cases_in(collected(*options))
    assert sorted(name for shard in shards for name in shard) == sorted(everything)
    for model in ("tiny", "layers-12"):
        for mode in ("single", "multifunction"):
            holding = [s for s in shards if any(f"{model}-{mode}" in name for name in s)]
            assert len(holding) == 1


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_more_shards_than_exports_are_a_usage_error(workers):
    done = collected("--shard", "1/3", *workers)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "only 2 exports are to be judged; make 2 shards at most" in done.stderr


def test_an_unknown_exporter_is_a_usage_error():
    done = collected("--exporter", "coremll")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "there is no exporter 'coremll'" in done.stderr


def test_an_export_that_fails_is_not_tried_again(monkeypatch):
    """Every check of the subject gets the one error: an export takes minutes."""
    calls = []

    def export(*given):
        calls.append(given)
        raise HarnessError("the exporter fails")

    monkeypatch.setattr(subjects, "exported", export)
    found = subjects.Subjects(print)
    for _ in range(3):
        with pytest.raises(HarnessError, match="the exporter fails"):
            found.get("tiny", "single")
    assert len(calls) == 1


def test_the_reference_runs_beside_any_runtime_that_is_named():
    command = [sys.executable, "-m", "pytest", "suites/conformance", "--collect-only", "-q"]
    command += ["--mode", "single", "--exporter", "coreml", "-k", "parity"]
    found = [
        subprocess.run([*command, "--runtime", name], capture_output=True, text=True, cwd=ROOT)
        for name in ("mil:strict", "mil", "mil:wide")
    ]
    for runtimes, done in zip((["mil:strict", "mil:widen"], ["mil:widen"]), found, strict=False):
        lines = [line for line in done.stdout.splitlines() if "[" in line]
        assert len(lines) == len(runtimes), done.stdout
        assert all(any(runtime in line for line in lines) for runtime in runtimes)
    assert found[2].returncode and "no runtime 'mil:wide'" in found[2].stderr
