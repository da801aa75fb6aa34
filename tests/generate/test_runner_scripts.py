"""A script that cannot run at all passes no check of the suite of runners, and shows no defect."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import executorch
import pytest
from packaging.version import Version

from harness.checks.findings import check_names, read_known_defects
from harness.checks.run import run_check
from harness.errors import NotInstalledError
from harness.results.known import judge_against_known
from harness.suites.runners import scenarios, worker
from harness.suites.runners.older import OLDER, Older
from harness.suites.runners.places import Run, Wanted
from harness.suites.runners.scenarios import SCENARIOS, check_no_new_tokens
from harness.suites.runners.script import Bench
from harness.suites.runners.tools import TOOLS
from harness.suites.runners.vocabularies import VOCABULARIES

ROOT = Path(__file__).parents[2]
KNOWN = read_known_defects(ROOT / "suites" / "known.toml")
ALL = (*SCENARIOS, *VOCABULARIES, *TOOLS, *OLDER)
RUNS_NONE = "run-lookahead-options"  # it reads what a script declares
NOTHING = [
    pytest.param(one, mode, status, id=f"{one.check.name}-{one.fixture}-{mode}-{status}")
    for one in ALL
    for mode in one.modes
    for status in (0, 1)
    if one.check.name != RUNS_NONE
]


class Idle:
    """Scripts that end with a status before they read the prompt."""

    def __init__(self, status, problem):
        self.ended, self.runs = Run(status, problem, "", "", 0.0, [], [], []), 0

    def __call__(self, module, *arguments, fault=None):
        self.runs += 1
        return self.ended

    def source(self, module):
        return Path(*executorch.__path__).joinpath(*module.split(".")[1:]).with_suffix(".py")


class Dead(Bench):
    """A bench of tiny whose scripts are idle; what they would be given is made up."""

    def __init__(self, mode, status, folder, problem="ImportError: undefined symbol"):
        exporter = SimpleNamespace(versions={})
        super().__init__(Idle(status, problem), exporter, "tiny", mode, folder)
        self.vocabulary = SimpleNamespace(
            prompt=lambda n, start=0: "a" * n,
            piece=lambda token: "b",
            encode=lambda text: [1],
            decode=lambda ids: "",
            stops=frozenset(),
            path=folder / "tokenizer.json",
            config=folder / "tokenizer_config.json",
        )
        phase = SimpleNamespace(input_len=16)
        self.layout = SimpleNamespace(prefill=phase, context=128, vocab_size=512)
        package = SimpleNamespace(files={"Manifest.json": b"{}"}, functions=())
        delegate = SimpleNamespace(bundle=SimpleNamespace(package=package))
        artifact = SimpleNamespace(path=folder / "a.pte", delegates={"forward": [delegate]})
        self.subject = SimpleNamespace(artifact=artifact, options=self.source.options)

    def arguments(self, vocabulary):
        return ["--model", "a.pte"]

    def wanted(self, prompt, n, vocabulary, lookahead=False):
        return Wanted([1], [2, 3, 4, 300][:n], n, frozenset())

    def with_options(self, **options):
        return self

    def tokenizer(self, name, settings):
        return self.vocabulary


@pytest.mark.parametrize(("scenario", "mode", "status"), NOTHING)
def test_a_script_that_does_nothing_passes_no_check(scenario, mode, status, tmp_path, monkeypatch):
    dead = Dead(mode, status, tmp_path)
    monkeypatch.setattr(scenarios, "Bench", lambda *_: dead)  # of the other mode
    if scenario.check.name != "older-export":
        monkeypatch.setattr(Older, "export", lambda self, made: tmp_path / "older.pte")
    fixture = f"executorch:{scenario.fixture}"
    case = run_check(scenario.check, dead, suite="runners", fixture=fixture, mode=mode)
    assert case.outcome in ("fail", "error") and not case.traceback, case.reason
    assert dead.scripts.runs, "the script was not run"
    if status == 0:
        versions = {"executorch": Version("1.4.1")}
        assert judge_against_known(case, KNOWN, versions).outcome != "known"


REFUSALS = {
    "exits": "raise SystemExit('no prompt was given')",
    "declares": "import argparse; argparse.ArgumentParser().error('--n must be 1')",
    "raises": "import sys; print('a note', file=sys.stderr); raise ValueError('two\\nlines')",
    "says nothing": "import sys; sys.exit(3)",
    "wraps": "import sys; sys.exit(256)",
    "does nothing": "",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_end_of_a_script_is_what_a_shell_sees(monkeypatch, tmp_path, name):
    (tmp_path / "refusing.py").write_text(REFUSALS[name])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(worker, "_load_native_runtime", lambda: None)
    request = {"module": "refusing", "arguments": [], "folder": str(tmp_path), "fault": None}
    told = worker.run(request | {"record": str(tmp_path / "record.pt")})
    command = [sys.executable, "-m", "refusing"]
    shell = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    last = shell.stderr.splitlines()[-1] if shell.stderr else ""
    assert (told["status"], told["problem"]) == (shell.returncode, last)
    assert bool(last) == (name in ("exits", "declares", "raises"))


def test_a_refusal_of_no_new_tokens_names_the_option(tmp_path):
    dead = Dead("single", 2, tmp_path, "error: argument --max_new_tokens: at least 1")
    assert [one.ok for one in check_no_new_tokens.findings(dead)] == [True]


def test_a_native_runtime_that_does_not_load_is_no_defect_of_a_script(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "executorch.extension.pybindings.portable_lib", None)
    with pytest.raises(NotInstalledError, match=r"does not load .*executorch@PYTHON"):
        worker.run({"module": "json.tool", "arguments": [], "folder": str(tmp_path), "fault": None})


def test_no_check_of_a_script_has_the_name_of_one_with_codes():
    names = {one.check.name for one in ALL}
    assert not names & {*check_names()}
