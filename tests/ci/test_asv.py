"""asv measures a commit of a user's repository, on a machine of which only the class is known."""

import json
import math
import os
import socket
import subprocess
import sys

import pytest

from harness.errors import HarnessError
from harness.files import cache_folder
from harness.fixtures import model
from harness.fixtures.cache import exported
from harness.runtimes import BASELINE, RUNTIMES
from harness.suites.benchmarks import __main__ as commands
from harness.suites.benchmarks import figures, history, language_models
from harness.suites.benchmarks import repository as repositories

MACHINE = "macos-15-m1"


def git(folder, *words):
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    return done.stdout.strip()


def repository(folder, **files):
    """Make a git repository of one commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def run(folder, *words, status=0, home=None):
    """Run a command of the benchmarks in a folder; return its output."""
    command = [sys.executable, "-m", "harness.suites.benchmarks", *words]
    variables = {**os.environ, "HOME": str(home or folder), "HARNESS_CACHE": str(cache_folder())}
    done = subprocess.run(
        command, capture_output=True, text=True, env=variables, cwd=folder, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Measure a user's artifact in their own repository; return the folder and asv's output."""
    folder = repository(tmp_path_factory.mktemp("user") / "work")
    (folder / "shipped.pte").symlink_to(exported("tiny", model("tiny").options))
    settings = '[subjects.shipped]\nartifact = "shipped.pte"\n'
    (folder / "harness.toml").write_text(settings, encoding="utf-8")
    words = ["--subject", "shipped", "--runtime", "mil:widen", "--runtime", "executorch"]
    words += ["--rounds", "1", "--machine", MACHINE]
    out = run(folder, "run", *words, "--bench", "track_decode_at_0", "--bench", "Size")
    return folder, out


def results(folder):
    (path,) = (folder / ".asv").glob(f"*/results/{MACHINE}/*-py*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def row(record, name):
    values = record["results"][f"language_models.{name}"]
    return dict(zip(record["result_columns"], values, strict=False))


def test_a_users_artifact_has_a_time_a_ratio_and_a_size(measured):
    record = results(measured[0])
    decode = row(record, "PerToken.track_decode_at_0")
    assert decode["params"] == [
        ["'shipped'"],
        ["'-'"],
        ["'single'"],
        ["'mil:widen'", "'executorch'"],
    ]
    assert 0 < decode["result"][0] < 1000 and len(decode["samples"][0]) == 1
    skipped = decode["result"][1]
    assert math.isnan(skipped) or skipped > 0  # the second on a Mac
    ratio = row(record, "PerTokenRatio.track_decode_at_0")["result"][0]
    assert 0.01 < ratio < 100 and ratio != decode["result"][0]
    (size,) = row(record, "Size.track_bytes")["result"]
    assert size == (measured[0] / "shipped.pte").stat().st_size


def test_a_result_says_what_it_depends_on(measured):
    session = results(measured[0])["session"]
    assert {"torch", "coremltools", "executorch"} <= session["versions"].keys()
    assert {"os", "release", "build", "cpu"} <= session["machine"].keys()
    assert session["machine"]["build"]
    assert session["options"]["rounds"] == 1


def test_a_series_is_named_by_the_class_of_machine_alone(measured):
    """No host, no folder, no number of processors: a fresh runner adds a point."""
    record = results(measured[0])
    python = ".".join(map(str, sys.version_info[:2]))
    assert record["params"] == {"machine": MACHINE, "python": python}
    text = json.dumps(record)
    assert socket.gethostname() not in text and str(measured[0]) not in text
    assert sys.prefix not in text


def test_a_modified_file_is_not_filed_under_the_commit(tmp_path):
    folder = repository(tmp_path / "work", file="a")
    (folder / "file").write_text("b", encoding="utf-8")
    out = run(folder, "run", status=2)
    assert "1 files differ from commit" in out and "(file); commit them" in out


def test_an_artifact_that_cannot_be_read_fails_and_one_that_is_skipped_measures_nothing(tmp_path):
    folder = repository(tmp_path / "work")
    (folder / "bad.pte").write_bytes(exported("tiny", model("tiny").options).read_bytes()[:1000])
    settings = '[subjects.bad]\nartifact = "bad.pte"\n'
    (folder / "harness.toml").write_text(settings, encoding="utf-8")
    words = ["run", "--subject", "bad", "--runtime", "mil:widen", "--bench", "Size"]
    assert "a benchmark failed" in run(folder, *words, status=1)
    assert "nothing was measured" in run(folder, *words, "--mode", "single", status=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--subject", "tinny"], "tinny"),
        (["run", "--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["run", "--machine", "a/b"], "--machine a/b: use letters"),
        (
            ["run", "--runtime", "mil:wide"],
            "no runtime 'mil:wide'; did you mean 'mil:widen'? choose from",
        ),
        (["run", "--exporter", "executorch@/nowhere"], "executorch@/nowhere: give a version"),
        (["run", "--exporter", "coreml", "--exporter", "coreml"], "coreml is named twice"),
        (["track"], "there are no results, nor on a branch benchmarks"),
        (["track", "--threshold", "-1"], "--threshold -1.0: give a percentage"),
        (["track", "--accept", "nothing"], "has no commit 'nothing'"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, words, message):
    out = run(repository(tmp_path / "work"), *words, status=2)
    assert message in out and "Traceback" not in out


def test_a_folder_that_is_in_no_repository_is_a_sentence(tmp_path):
    assert "is not in a git repository with a commit" in run(tmp_path, "track", status=2)


def test_a_checkout_of_executorch_has_a_history_of_its_own(tmp_path, monkeypatch):
    checkout = repository(tmp_path / "executorch")
    (checkout / "src" / "executorch").mkdir(parents=True)
    monkeypatch.chdir(repository(tmp_path / "work"))
    found, exporters = commands._repository([f"executorch@{checkout}", "coreml"])
    assert found.commit == git(checkout, "rev-parse", "HEAD")
    assert found.results == tmp_path / "work" / ".asv" / "executorch" / "results"
    assert exporters == {"executorch": f"executorch@{checkout}", "coreml": "coreml"}


@pytest.mark.parametrize(
    ("os_name", "release", "cpu", "name"),
    [
        ("Darwin", "15.3.1", "Apple M1", "macos-15-m1"),
        ("Darwin", "26.0", "Apple M1 (Virtual)", "macos-26-m1-virtual"),
        ("Linux", "6.1.0-9", "AMD EPYC 7763 64-Core Processor", "linux-amd-epyc-7763"),
        ("Linux", "6.1", "Intel(R) Xeon(R) CPU @ 2.20GHz", "linux-intel-xeon"),
    ],
)
def test_a_machines_class_is_its_system_and_chip(monkeypatch, os_name, release, cpu, name):
    facts = {"os": os_name, "release": release, "cpu": cpu}
    monkeypatch.setattr(history, "this_machine", lambda: facts)
    assert history.machine_class() == name


def test_asv_finds_the_benchmarks_in_an_environment_without_asv():
    """asv imports all modules beside them; it builds an environment for `asv run HEAD^!`."""
    names = [path.stem for path in repositories.BENCHMARKS.glob("*.py")]
    assert {"__main__", "figures", "language_models"} <= set(names)
    imports = "".join(f"import harness.suites.benchmarks.{name}\n" for name in names)
    code = f"import sys\nsys.modules['asv'] = None\n{imports}print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_a_runtime_that_is_not_to_be_had_is_skipped_with_its_reason():
    unavailable = dict.fromkeys(RUNTIMES, "this is no Mac")
    cache = {"folder": ".", "unavailable": unavailable}
    with pytest.raises(NotImplementedError, match="this is no Mac"):  # asv treats it as a skip
        language_models.Time().setup(cache, "tiny", "executorch", "single", "coreml:cpu_only")


def test_a_runtime_that_crashes_when_asked_is_no_skip(monkeypatch):
    class Crashing:
        def unavailable(self):
            raise HarnessError("its process died")

    monkeypatch.setattr(language_models, "get_runtime", lambda name: Crashing())
    assert language_models.why_unavailable("executorch") is None


def test_a_session_is_measured_once_and_a_failure_stays_one(tmp_path, monkeypatch):
    calls = []

    def wrong(self, runtime):
        calls.append(runtime)
        raise HarnessError("the timed run's logits are off")

    monkeypatch.setattr(figures.Session, "_measure", wrong)
    session = figures.Session(tmp_path, "tiny", "executorch", "single", 1)
    for _ in range(2):
        with pytest.raises(HarnessError, match="logits are off"):
            session.measured(BASELINE)
    assert calls == [BASELINE]


def test_a_model_that_is_not_a_language_model_has_calls_and_a_size(
    mixed_program, tmp_path, monkeypatch
):
    path = mixed_program[0]
    settings = f'[subjects.mixed]\nartifact = "{path}"\n'
    (tmp_path / "harness.toml").write_text(settings, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    session = figures.Session(tmp_path, "mixed", "-", "-", 2)
    size = ([path.stat().st_size], [])
    assert session.measured(BASELINE) == {"size": size}
    found = session.measured("mil:widen")
    assert found["size"] == size and len(found["calls"][0]) == len(found["load, cached"][0]) == 2
    assert found["calls"][1] == []


def test_wrong_logits_have_no_time(monkeypatch):
    from harness.measure.timing import WrongAnswerError
    from harness.subject import Subject

    pair = figures.Pair(Subject(exported("tiny", model("tiny").options)), "mil:strict")
    pair._round(pair._sessions[0], "mil:strict")
    pair._wanted = pair._wanted.flip(-1)
    with pytest.raises(WrongAnswerError, match="its time is not a result"):
        pair._round(pair._sessions[0], "mil:strict")


CORE_ML_TIMES = """
import json, sys
from harness.subject import Subject
from harness.suites.benchmarks.figures import Pair
print(json.dumps(Pair(Subject(sys.argv[1]), "coreml:cpu_only").figures(2)))
"""


@pytest.mark.slow
def test_core_mls_own_times_are_beside_those_of_its_calls():
    path = str(exported("tiny", model("tiny").options))
    command = [sys.executable, "-m", "harness", "shim", "--", sys.executable, "-W", "ignore"]
    done = subprocess.run(
        [*command, "-c", CORE_ML_TIMES, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    own = {name.removesuffix(figures.CORE_ML) for name in found if name.endswith(figures.CORE_ML)}
    assert own == found.keys() - {f"{name}{figures.CORE_ML}" for name in own} - {"peak memory"}
    for name in own:
        values, control = found[name + figures.CORE_ML]
        assert control == found[name][1] and len(values) == len(control) == 2
        assert all(0 < told < call for told, call in zip(values, found[name][0], strict=True))
