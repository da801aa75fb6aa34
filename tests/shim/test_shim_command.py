"""`harness shim -- COMMAND`: the commands that it starts, does not change, and refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli import shim as command_line
from harness.cli.shim import python_command
from harness.errors import HarnessError
from harness.shim import SITE, install, is_installed

pytestmark = pytest.mark.linux  # on a Mac the command changes nothing
ROOT = Path(__file__).parents[2]
LINE = "harness shim: Core ML is stood in for by this project's executor, policy strict\n"
SHOWN = """
import json, os, sys
import harness.shim
print(json.dumps({
    "arguments": sys.argv[1:],
    "installed": harness.shim.is_installed(),
    "heavy": sorted({"torch", "coremltools"} & set(sys.modules)),
    "platform": sys.platform,
    "path": sys.path,
    "environment": dict(os.environ),
}))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "show.py").write_text(SHOWN)
    return tmp_path


@pytest.fixture
def start(folder):
    """Return a function that starts a command in a folder, under the shim or not."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("HARNESS_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*words, shim=True, more=None, **options):
        command = [sys.executable, "-m", "harness", "shim"] if shim else []
        return subprocess.run(
            [*command, *words],
            cwd=folder,
            env={**environment, **(more or {})},
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )

    return run


@pytest.mark.parametrize(
    "words",
    [
        ("--", sys.executable, "show.py", "a", "--policy"),
        ("--", sys.executable, "-W", "ignore", "-Xutf8", "show.py", "a", "--policy"),
        ("--", sys.executable, "-m", "show", "a", "--policy"),
        ("--", sys.executable, "-c", SHOWN, "a", "--policy"),
        ("--", "show.py", "a", "--policy"),
        ("--", "-m", "show", "a", "--policy"),
        ("--", "-c", SHOWN, "a", "--policy"),
        (sys.executable, "show.py", "a", "--policy"),
    ],
)
def test_a_python_command_has_the_stand_in(start, words):
    done = start(*words)
    assert (done.returncode, done.stderr) == (0, LINE)
    seen = json.loads(done.stdout)
    assert seen["installed"] and seen["heavy"] == [] and seen["platform"] == sys.platform
    assert seen["arguments"] == ["a", "--policy"]


def test_nothing_else_is_changed(start, folder):
    words = (sys.executable, "show.py")
    plain, under = (json.loads(start(*words, shim=shim).stdout) for shim in (False, True))
    assert not plain["installed"] and under["installed"]
    assert under["path"] == plain["path"]
    differing = {
        name
        for name in plain["environment"].keys() | under["environment"].keys()
        if plain["environment"].get(name) != under["environment"].get(name)
    }
    assert differing == {"PYTHONPATH"}
    assert under["environment"]["PYTHONPATH"] == f"{SITE}{os.pathsep}{ROOT}"
    assert [path.name for path in folder.iterdir()] == ["show.py"]


def test_children_of_the_command_have_it_too(start):
    nested = "import subprocess, sys; subprocess.run([sys.executable, 'show.py'], check=True)"
    assert json.loads(start("--", "-c", nested).stdout)["installed"]


def test_a_sitecustomize_of_the_users_own_still_runs(start, folder):
    own = folder / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("print('mine')")
    done = start("--", "-c", SHOWN, more={"PYTHONPATH": f"{own}{os.pathsep}{ROOT}"})
    *own_lines, shown = done.stdout.splitlines()
    assert own_lines == ["mine", "mine"]  # in `harness shim` itself, and in the command
    assert json.loads(shown)["installed"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("raise SystemExit(7)", 7),
        ("raise ValueError", 1),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})", -signal.SIGTERM),
    ],
)
def test_the_exit_status_is_the_commands(start, code, status):
    assert start("--", sys.executable, "-c", code).returncode == status


def test_standard_input_reaches_the_command(start):
    assert start("--", "-c", "print(input()[::-1])", input="abc\n").stdout == "cba\n"


@pytest.mark.parametrize(("holds", "status"), [("True", 0), ("False", 1)])
def test_pytest_is_a_python_command(start, folder, holds, status):
    (folder / "test_it.py").write_text(
        f"import harness.shim\ndef test(): assert harness.shim.is_installed() is {holds}"
    )
    done = start("--", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
    assert done.returncode == status, done.stdout


@pytest.mark.parametrize("policy", ["strict", "widen", "double"])
def test_the_policy_is_handed_on_and_named(start, policy):
    done = start("--policy", policy, "--", "-c", "import os; print(os.environ['HARNESS_POLICY'])")
    assert done.stdout == f"{policy}\n" and done.stderr.endswith(f"policy {policy}\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no command; write it after --"),
        (["ls"], "is not a Python command; the stand-in works inside"),
        (["no-such-command"], "no-such-command: no such command"),
        ([sys.executable, "-I", "show.py"], "runs Python with -I, which ignores PYTHONPATH"),
        ([sys.executable, "-W", "error", "-uE", "-c", "0"], "runs Python with -E"),
        ([sys.executable, "-S", "-m", "show"], "runs Python with -S"),
    ],
)
def test_what_cannot_have_the_stand_in_is_refused(words, sentence, capsys):
    assert main(["shim", "--", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "refused"),
    [
        ("#!/usr/bin/env python3", False),
        ("#!/opt/some/bin/python3.11 -W ignore", False),
        ("#!/bin/sh\n'''exec' '/a very/long path/python' \"$0\" \"$@\"", False),
        ("#!/usr/bin/env -S python3 -I", True),
        ("#!/bin/sh\npython3 show.py", False),  # a shell that finds a Python in its second line
        ("#!/bin/bash", True),
        ("\x7fELF", True),
    ],
)
def test_a_program_is_judged_by_its_first_lines(tmp_path, head, refused):
    program = tmp_path / "tool"
    program.write_text(f"{head}\n")
    program.chmod(0o755)
    if refused:
        with pytest.raises(HarnessError):
            python_command([str(program)], os.environ, None)
    else:
        assert python_command([str(program), "-I"], os.environ, None).program == str(program)


def test_options_of_a_script_are_not_pythons(tmp_path):
    command = python_command([sys.executable, "-bb", "x.py", "-I"], {"A": "1"}, "double")
    assert command.arguments == (sys.executable, "-bb", "x.py", "-I")
    assert command.environment == {"A": "1", "PYTHONPATH": str(SITE), "HARNESS_POLICY": "double"}


def test_an_unknown_policy_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["shim", "--policy", "exact", "--", "python"])
    assert "exact" in capsys.readouterr().err


def test_on_a_mac_core_ml_itself_is_used(monkeypatch, capsys):
    started = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(command_line.os, "execve", lambda *call: started.append(call))
    main(["shim", "--", sys.executable, "show.py"])
    assert started == [(sys.executable, (sys.executable, "show.py"), dict(os.environ))]
    assert "this is a Mac; Core ML itself is used" in capsys.readouterr().err
    assert install() is False and not is_installed()


def test_it_comes_too_late_once_coremltools_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", sys)
    with pytest.raises(HarnessError, match="imported before the stand-in .* was installed"):
        install()
    assert not is_installed()


def test_the_program_beside_this_python_comes_before_those_in_path(tmp_path):
    other = tmp_path / "pytest"
    other.write_text("#!/bin/sh\nexec something-else\n")
    other.chmod(0o755)
    command = python_command(["pytest"], {"PATH": str(tmp_path)}, None)
    assert Path(command.program) == Path(sys.executable).parent / "pytest"
