"""A script that cannot run at all passes no check of the suite of runners, and shows no defect."""

import sys
from types import SimpleNamespace

import pytest

from harness.checks.findings import check_names
from harness.checks.run import run_check
from harness.errors import NotInstalledError
from harness.suites.runners import worker
from harness.suites.runners.older import OLDER
from harness.suites.runners.places import Run, Wanted
from harness.suites.runners.scenarios import SCENARIOS, check_no_new_tokens
from harness.suites.runners.script import Bench
from harness.suites.runners.tools import TOOLS
from harness.suites.runners.vocabularies import VOCABULARIES

NEEDS_FILES = ("ids", "one-method", "params-context")  # they judge runs as the others do
NOTHING = [
    pytest.param(one, mode, status, id=f"{one.check.name}-{mode}-{status}")
    for one in SCENARIOS
    for mode in one.modes
    for status in (0, 1)
    if one.check.name not in NEEDS_FILES and (one.check.name, status) != ("new-tokens-0", 0)
]


class Dead(Bench):
    """A bench whose scripts end with a status before they read the prompt."""

    def __init__(self, mode, status, problem="ImportError: undefined symbol"):
        self.mode, self.model = mode, "tiny"
        self.ended = Run(status, problem, "", "", 0.0, [], [], [])
        self.vocabulary = SimpleNamespace(
            prompt=lambda n, start=0: "a" * n, piece=lambda token: "b", encode=lambda text: [1]
        )
        phase = SimpleNamespace(input_len=16)
        self.layout = SimpleNamespace(prefill=phase, context=128, vocab_size=512)

    def run(self, prompt, n, *more, **options):
        return self.ended

    def wanted(self, prompt, n, vocabulary, lookahead=False):
        return Wanted([1], [2, 3][:n], n, frozenset())

    def with_options(self, **options):
        return self

    def tokenizer(self, name, settings):
        return self.vocabulary


@pytest.mark.parametrize(("scenario", "mode", "status"), NOTHING)
def test_a_script_that_does_nothing_passes_no_check(scenario, mode, status):
    case = run_check(scenario.check, Dead(mode, status), suite="runners", fixture="x", mode=mode)
    assert case.outcome in ("fail", "error") and not case.traceback, case.reason


def test_a_refusal_of_no_new_tokens_names_the_option():
    dead = Dead("single", 2, "error: argument --max_new_tokens: at least 1")
    assert [one.ok for one in check_no_new_tokens.findings(dead)] == [True]


def test_a_native_runtime_that_does_not_load_is_no_defect_of_a_script(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "executorch.extension.pybindings.portable_lib", None)
    with pytest.raises(NotInstalledError, match=r"does not load .*executorch@PYTHON"):
        worker.run({"module": "json.tool", "arguments": [], "folder": str(tmp_path), "fault": None})


def test_no_check_of_a_script_has_the_name_of_one_with_codes():
    names = {one.check.name for one in (*SCENARIOS, *VOCABULARIES, *TOOLS, *OLDER)}
    assert not names & {*check_names()}
