"""The rehearsal fails for a test that must not run on a Mac, and reads the job's own steps."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.results import read_run
from harness.suites.rehearsal import __main__ as rehearsal
from harness.suites.rehearsal.sample import one_of_each
from harness.suites.rehearsal.stand_in import MEASURED, lines_of
from harness.suites.rehearsal.steps import Step, environment, mac_steps, write_programs

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "tests" / "operators" / "miniature" / "iOS15"
pytestmark = pytest.mark.linux  # a Mac needs no rehearsal
LINUX_ONLY = {
    "proc": "open('/proc/self/status').close()",
    "through pathlib": "__import__('pathlib').Path('/proc/cpuinfo').read_text()",
    "full": "open('/dev/full', 'w').close()",
    "memfd": "__import__('os').memfd_create('x')",
    "affinity": "__import__('os').sched_getaffinity(0)",
    "prctl": "__import__('ctypes').CDLL(None).prctl",
    "platform": "assert __import__('sys').platform == 'linux'",
    "system": "assert __import__('platform').system() == 'Linux'",
}
ALLOWED = {
    "a Mac's platform": "assert __import__('sys').platform == 'darwin'",
    "a library": "import psutil, numba; assert psutil.virtual_memory().total and psutil.LINUX",
    "another module": "from harness.results import machine\n"
    "    assert machine.platform.system() == 'Darwin' and type(machine) is not type(sys)",
    "a file": "open(__file__).close()",
    "core ml": "from coremltools.libcoremlpython import _MLModelProxy\n"
    "    from harness.shim import is_installed; assert not is_installed()",
    "chip": "from harness.results.machine import this_machine\n"
    "    assert this_machine()['cpu'] == 'Apple M1 (Virtual)'",
}


def test_what_a_mac_does_not_have_fails_and_the_rest_passes(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    rows = list((LINUX_ONLY | ALLOWED).values())
    text = "import sys\n\n" + "".join(
        f"def test_{i}():\n    {row}\n\n" for i, row in enumerate(rows)
    )
    (tmp_path / "tests" / "test_mini.py").write_text(text)
    (tmp_path / "programs").mkdir()
    write_programs(tmp_path / "programs")
    variables = environment(tmp_path / "programs", tmp_path / "lines")
    variables["PYTHONPATH"] += f":{ROOT}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(
        [*command, "tests", "-rA"], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    passed = {line.rpartition("_")[2] for line in lines if line.startswith("PASSED")}
    failed = {line.split()[1].rpartition("_")[2] for line in lines if line.startswith("FAILED")}
    assert failed == {str(i) for i in range(len(LINUX_ONLY))}, done.stdout[-3000:]
    assert passed == {str(i) for i in range(len(LINUX_ONLY), len(rows))}


RESTORED = """
import sys


def test_a_shown_platform(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert sys.platform == "linux"


def test_ends_with_its_test():
    assert sys.platform == "darwin"
"""


def test_a_platform_that_a_test_shows_ends_with_that_test(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    (tmp_path / "tests" / "test_restored.py").write_text(RESTORED)
    variables = environment(tmp_path, tmp_path / "lines")
    variables["PYTHONPATH"] += f":{ROOT}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout[-3000:]


def test_the_workers_of_a_run_take_the_sample_too(tmp_path):
    (tmp_path / "tests").mkdir()
    run = "import pytest\n\n@pytest.mark.parametrize('x', range(9))\ndef test_x(x):\n    pass\n"
    (tmp_path / "tests" / "test_x.py").write_text(run)
    variables = environment(tmp_path, tmp_path / "lines", everything=False)
    variables["PYTHONPATH"] += f":{ROOT}"
    ours = "from pathlib import Path\nfrom harness.suites.rehearsal import sample\n"
    (tmp_path / "conftest.py").write_text(f"{ours}sample._OURS = (Path({str(tmp_path)!r}),)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "tests"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout[-3000:]


def test_core_ml_may_pass_what_is_listed_and_ours_is_not_compared_there(tmp_path):
    write_programs(tmp_path)  # coremltools asks one for the version of macOS
    variables = environment(tmp_path, tmp_path / "lines") | {"HARNESS_POLICY": "widen"}
    variables["PYTHONPATH"] += f":{ROOT}"
    files = [MINIATURE / name for name in ("mini_ops.py", "test_image_resizing.py")]
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "suites/operators/pytest.ini"]
    command += ["-p", "harness.suites.operators.plugin", "--native", "--results", tmp_path]
    done = subprocess.run([*command, *files], env=variables, capture_output=True, text=True)
    found = read_run(tmp_path / "operators" / "operators.jsonl").cases
    (listed,) = (case for case in found if case.check == "iOS15/test_image_resizing.py")
    assert listed.outcome == "pass", done.stdout[-3000:]
    assert (listed.facts["passed"], listed.facts["listed"], listed.facts["failed"]) == (1, 1, 0)
    compared = {c.fixture: c for c in found if c.check == "against-core-ml"}
    assert compared["mul"].outcome == "pass" and compared["mul"].comparisons


def test_one_of_the_parameters_of_a_test_runs_and_all_of_the_runtimes(tmp_path):
    names = ["a.py::f[1]", "a.py::f[2-x[0]]", "a.py::C::f[1]", "b.py::f", "b.py::f[1]"]
    chosen = one_of_each(names)
    assert chosen == one_of_each(names[::-1]) and len(set(chosen)) == 3
    assert {name.partition("[")[0] for name in chosen} == {"a.py::f", "a.py::C::f", "b.py::f"}
    variables = environment(tmp_path, tmp_path / "lines", everything=False)
    variables["PYTHONPATH"] += f":{ROOT}"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    files = ["tests/runtimes/test_shared_tensors.py", "tests/test_replacing.py"]
    done = subprocess.run(
        [*command, *files], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    names = [line.partition("[") for line in done.stdout.splitlines() if "::" in line]
    counts = Counter(name for name, *_ in names)
    assert {n for name, n in counts.items() if "replacing" in name} == {1}, (
        done.stdout + done.stderr
    )
    assert max(n for name, n in counts.items() if "shared_tensors" in name) > 10


def test_the_steps_are_those_of_the_workflow():
    steps = mac_steps()
    assert steps[0].session == "conformance"  # it records before anything can fail
    assert {"--runtime", "coreml:cpu_only", "mil:strict", "mil:widen"} <= set(steps[0].arguments)
    assert Step("operators", ("--native",)) in steps
    assert "tests" in {step.session for step in steps}
    assert "rehearsal" not in {step.session for step in steps}


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ("{run: make all}", "'make all' is not `nox -s SESSION"),
        ("{run: 'nox -s ${{ github.sha }}'}", "cannot evaluate 'github.sha'"),
        ("{run: nox -s lint, if: always()}", "cannot evaluate"),
    ],
)
def test_a_step_that_cannot_be_rehearsed_is_refused(tmp_path, step, sentence):
    (tmp_path / "ci.yml").write_text(
        "jobs:\n  conformance:\n    strategy: {matrix: {include: [{runner: macos-15}]}}\n"
        f"    steps: [{step}]\n"
    )
    with pytest.raises(HarnessError, match=sentence):
        mac_steps(tmp_path / "ci.yml")


def test_a_command_of_a_mac_that_is_not_recorded_fails(tmp_path):
    write_programs(tmp_path)
    run = [str(tmp_path / "sysctl"), "-n"]
    assert subprocess.run([*run, "hw.model"], capture_output=True).stdout == b"VirtualMac2,1\n"
    assert subprocess.run([*run, "hw.unknown"], capture_output=True).returncode == 1


def test_lines_that_did_not_run_fail_and_are_listed():
    (module, path) = MEASURED[0], ROOT / f"{MEASURED[0].replace('.', '/')}.py"
    lines = sorted(lines_of(path))
    noted = [f"{module}:{line}" for line in lines]
    whole, *others = rehearsal.line_cases(noted)
    assert whole.outcome == "pass" and whole.comparisons == len(lines) > 50
    assert {case.outcome for case in others} == {"fail"}
    missing = len(lines) // 10
    short = next(iter(rehearsal.line_cases(noted[missing:])))
    assert short.outcome == "fail" and f"{lines[0]}, {lines[1]}" in short.reason


def test_a_failed_step_fails_the_rehearsal_and_is_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "mac_steps", lambda: [Step("lint", ()), Step("tests", ())])
    monkeypatch.setattr(rehearsal, "run", lambda step, nox, variables: step.session == "tests")
    assert rehearsal.rehearse(["lint"], "python", tmp_path) == 0
    assert rehearsal.rehearse(["lint", "tests"], "python", tmp_path) == 1
    assert "cannot show" in capsys.readouterr().out
    assert (tmp_path / "rehearsal.jsonl").stat().st_size
    with pytest.raises(HarnessError, match="no step 'bench' in the Mac job; it has lint, tests"):
        rehearsal.rehearse(["bench"], "python", tmp_path)
