"""A checkout with one changed line is told from its release, by conformance and by the gate.

So is one whose line is unchanged: it exports the release's program. And ExecuTorch's runtime of
another version gets a Core ML backend.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.export.environments import environment
from harness.results import read_run
from harness.suites.versions.checkouts import ORDER, SCALE, SHARING, Change, write_checkout

ROOT = Path(__file__).resolve().parents[2]
MODE = ("--mode", "multifunction", "--runtime", "mil:widen")
RUNTIME_TESTS = (
    "tests/shim/test_executorch_stand_in.py::test_every_test_inside_passes",
    "tests/runtimes/test_executorch.py",
)
RUNTIME_VERSION = "1.5.1"


def harness(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def conformance(exporter: str, results: Path) -> tuple[int, Path]:
    """Run the suite on tiny by one exporter; return pytest's exit status and the result stream."""
    done = harness("conformance", "--exporter", exporter, *MODE, "--results", results)
    stream = results / "conformance.jsonl"
    assert stream.is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    return done.returncode, stream


def failures(stream: Path) -> dict[str, str]:
    return {case.check: case.reason for case in read_run(stream).cases if not case.passes}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the release's result stream, and its artifact."""
    folder = tmp_path_factory.mktemp("release")
    status, stream = conformance("executorch", folder)
    assert status == 0 and not failures(stream)
    return stream, export("executorch", folder / "release.pte")


def export(exporter: str, output: Path) -> Path:
    done = harness(
        "export", "--model", "tiny", "--mode", "multifunction", "--exporter", exporter, "-o", output
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def test_an_unchanged_checkout_is_as_good_as_its_release(
    release: tuple[Path, Path], tmp_path: Path
) -> None:
    checkout = write_checkout(tmp_path / "checkout")
    status, stream = conformance(f"executorch@{checkout}", tmp_path)
    assert status == 0 and not failures(stream)
    assert "+src." in read_run(stream).header.exporters["executorch"]["executorch"]
    assert harness("gate", release[0], stream).returncode == 0


CHANGES = [
    pytest.param(
        SCALE,
        {"parity": "decode error", "residues": ""},
        ["logits of decode", "= mul, "],
        id="scale",
    ),
    pytest.param(
        SHARING,
        {"weight-sharing": "1 functions", "sharing-size": "packages"},
        ["pte bytes", "sharing of the blocks' weights is lost"],
        id="sharing",
    ),
    pytest.param(ORDER, {"cache-rows": ""}, ["constant decode_kv_cache_specs"], id="order"),
]


@pytest.mark.parametrize(("change", "failing", "named"), CHANGES)
def test_a_changed_line_is_told_from_the_release(
    release: tuple[Path, Path],
    tmp_path: Path,
    change: Change,
    failing: dict[str, str],
    named: list[str],
) -> None:
    """Conformance fails by the named checks, and the gate names what changed."""
    checkout = write_checkout(tmp_path / "checkout", change)
    status, stream = conformance(f"executorch@{checkout}", tmp_path)
    found = failures(stream)
    assert status == 1 and found.keys() >= failing.keys(), found
    for check, words in failing.items():
        assert words in found[check], found[check]
    streams = harness("gate", release[0], stream)
    assert streams.returncode == 1 and all(check in streams.stdout for check in failing)
    artifact = export(f"executorch@{checkout}", tmp_path / "head.pte")
    artifacts = harness("gate", release[1], artifact, "--runtime", "mil:widen")
    assert artifacts.returncode == 1, artifacts.stdout + artifacts.stderr
    said = " ".join(artifacts.stdout.split())
    assert all(words in said for words in named), said


@pytest.mark.parametrize("version", ["1.3.1", "1.5.1"])
def test_another_versions_wheel_carries_all_but_what_is_known(version: str, tmp_path: Path) -> None:
    """Run the installation suite on another version; 1.5 has more headers and the library."""
    words = ["--exporter", f"executorch@{version}", "--results", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(
        [*command, "suites/installation"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    cases = read_run(tmp_path / "installation.jsonl").cases
    assert {case.fixture for case in cases} == {f"executorch-{version}"} and len(cases) == 10
    known = {case.check for case in cases if case.outcome == "known"}
    assert ("install-libraries" in known) == (version == "1.3.1")


@pytest.mark.parametrize("tests", RUNTIME_TESTS)
def test_another_versions_runtime_is_used_alike(tests: str) -> None:
    """Run the stand-in's tests, and those of the runtime `executorch`, with another version."""
    overlay = environment(RUNTIME_VERSION).overlay
    assert overlay is not None
    path = os.pathsep.join([str(overlay), str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
