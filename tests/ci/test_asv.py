"""asv finds the benchmarks, runs them and records their results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.files import cache_folder
from harness.fixtures import model
from harness.fixtures.cache import exported
from harness.runtimes import RUNTIMES
from harness.suites.benchmarks import language_models

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def asv(tmp_path_factory):
    """Return a function that runs asv with our configuration, but other output folders."""
    folder = tmp_path_factory.mktemp("asv")
    config = json.loads((ROOT / "asv.conf.json").read_text(encoding="utf-8"))
    config["repo"] = str(ROOT)
    config["benchmark_dir"] = str(ROOT / config["benchmark_dir"])
    for name in ("env_dir", "results_dir", "html_dir"):
        config[name] = str(folder / name)
    (folder / "asv.conf.json").write_text(json.dumps(config), encoding="utf-8")
    environment = {
        **os.environ,
        "HOME": str(folder),  # where asv keeps the machine's name
        "HARNESS_CACHE": str(cache_folder()),
        "HARNESS_BENCH_PROFILE": "fast",
    }

    def run(*words):
        command = [sys.executable, "-m", "asv", *words, "--config", str(folder / "asv.conf.json")]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("machine", "--yes")
    run.results = folder / "results_dir"
    return run


@pytest.fixture(scope="module")
def commit():
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if found.returncode:
        pytest.skip("asv needs a git checkout, and this is none")
    return found.stdout.strip()


def test_asv_runs_a_benchmark_skips_another_and_keeps_the_samples(asv, commit):
    out = asv(
        "run",
        f"--environment=existing:{sys.executable}",
        f"--set-commit-hash={commit}",
        "--record-samples",
        "--show-stderr",
        "--bench=track_prefill\\('tiny', 'multifunction', '(mil:widen|executorch)'\\)",
        "--bench=track_size",
    )
    (path,) = asv.results.glob(f"*/{commit[:8]}-*.json")
    results = json.loads(path.read_text(encoding="utf-8"))
    rows = {
        name: dict(zip(results["result_columns"], row, strict=False))
        for name, row in results["results"].items()
    }
    prefill = rows["language_models.Latency.track_prefill"]
    samples = [taken for taken in prefill["samples"] if taken]
    available = "asv: skipped" not in out
    assert [len(taken) for taken in samples] == [3] * (2 if available else 1)
    assert all(0 < sample < 1000 for taken in samples for sample in taken)
    sizes = rows["language_models.Size.track_size"]["result"]
    assert len(sizes) == 2 and all(100_000 < size < 10_000_000 for size in sizes)


def test_a_runtime_that_is_not_to_be_had_is_skipped_with_its_reason():
    unavailable = dict.fromkeys(RUNTIMES, "this is no Mac")
    with pytest.raises(NotImplementedError, match="this is no Mac"):  # asv treats it as a skip
        language_models.Latency().setup(unavailable, "tiny", "single", "coreml:cpu_only")


def test_a_runtime_that_crashes_when_asked_is_no_skip(monkeypatch):
    class Crashing:
        def unavailable(self):
            raise HarnessError("its process died")

    monkeypatch.setattr(language_models, "get_runtime", lambda name: Crashing())
    assert language_models.why_unavailable("executorch") is None


def imported(more="", cwd=ROOT, **environment):
    """Import the benchmarks in a new process, run more code there, and return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", f"import harness.suites.benchmarks.language_models as m\n{more}"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=cwd,
        check=False,
    )


def test_an_unknown_profile_is_a_sentence():
    done = imported(HARNESS_BENCH_PROFILE="quick")
    assert done.stderr.endswith("is 'quick'; choose from fast, regular, large, huge\n")


def test_subjects_of_a_project_are_measured_by_name(tmp_path):
    """Also by another exporter; an artifact that exists is measured in its own mode."""
    (tmp_path / "shipped.pte").symlink_to(exported("tiny", model("tiny").options))
    settings = '[subjects.shipped]\nartifact = "shipped.pte"\n'
    (tmp_path / "harness.toml").write_text(settings, encoding="utf-8")
    more = (
        "print(m.FIXTURES)\nfor name in m.FIXTURES: print(m.export_of(name, 'single'))\n"
        "m.export_of('shipped', 'multifunction')"
    )
    done = imported(more, tmp_path, HARNESS_BENCH_SUBJECTS="shipped,coreml:tiny")
    lines = done.stdout.splitlines()
    assert lines[0] == "['shipped', 'coreml:tiny']" and lines[1] == str(tmp_path / "shipped.pte")
    assert "tiny-single-coreml-" in lines[2]
    assert done.stderr.endswith("NotImplementedError: shipped is an artifact of mode single\n")
